"""Measures tokenizers: UTF-8 bytes of text per token, by language and for code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from axk1.tokenizer.documents import TextFile, read_documents
from axk1.tokenizer.guard import UNREADABLE, check_merges, tokenizer_errors

DEFAULT_MAX_BYTES = 1_000_000
BATCH = 64


@dataclass(frozen=True)
class Compression:
    """Bytes and tokens that one tokenizer made of the text of one label."""

    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a folder or of a tokenizer.json; ValueError when there is none, or it cannot be read."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"tokenizer: no tokenizer.json at '{path}'; give a folder that holds one, or the file.")
    check_merges(file)
    with tokenizer_errors(f"tokenizer: '{file}' cannot be read; write it again"):
        return Tokenizer.from_file(str(file))


def sample_texts(files: list[TextFile], max_bytes: int) -> dict[str, list[str]]:
    """Documents by label, from the start of its files until `max_bytes` of UTF-8 are reached.

    Raises ValueError where there is no text at all.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes: {max_bytes} given, it must be at least 1.")
    texts: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for file in files:
        for text in read_documents(file):
            if sizes.get(file.label, 0) >= max_bytes:
                break
            if text:
                texts.setdefault(file.label, []).append(text)
            sizes[file.label] = sizes.get(file.label, 0) + len(text.encode())
    if not texts:
        raise ValueError(f"corpus: the texts of {[str(file.path) for file in files]} are empty.")
    return texts


def measure(
    tokenizers: dict[str, Tokenizer], texts: dict[str, list[str]], progress: Callable[[], None] | None = None
) -> dict[str, dict[str, Compression]]:
    """What each tokenizer makes of each label's texts: {label: {tokenizer: Compression}}. `progress` is called once a
    tokenizer and label. ValueError for a text that a tokenizer cannot read."""
    table: dict[str, dict[str, Compression]] = {}
    for label, documents in texts.items():
        size = sum(len(text.encode()) for text in documents)
        table[label] = {}
        for name, tokenizer in tokenizers.items():
            batches = (documents[start : start + BATCH] for start in range(0, len(documents), BATCH))
            encodings = (tokenizer.encode_batch_fast(batch, add_special_tokens=False) for batch in batches)
            with tokenizer_errors(f"{name}: {UNREADABLE}"):
                tokens = sum(len(item.ids) for batch in encodings for item in batch)
            table[label][name] = Compression(size, tokens)
            if progress:
                progress()
    return table
