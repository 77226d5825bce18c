"""Streams labelled documents out of files and folders, for training and measuring tokenizers."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PLAIN_TEXT_CHUNK = 16_384


@dataclass(frozen=True)
class TextFile:
    """A file and its label: the stem of its name, or of its top folder below the folder that was given."""

    path: Path
    label: str


def find_files(inputs: list[Path]) -> list[TextFile]:
    """The files named or contained in `inputs`, sorted inside each folder; hidden and empty ones and .json left out."""
    files: list[TextFile] = []
    for given in inputs:
        if given.is_file():
            files.append(TextFile(given, given.name.split(".")[0]))
        elif given.is_dir():
            relatives = sorted(path.relative_to(given) for path in given.rglob("*") if path.is_file())
            visible = [path for path in relatives if not any(part.startswith(".") for part in path.parts)]
            files += [TextFile(given / path, path.parts[0].split(".")[0]) for path in visible if path.suffix != ".json"]
        else:
            raise ValueError(
                f"corpus: '{given}' is no file or folder; give text files, .jsonl files or folders of them."
            )
    files = [file for file in files if file.path.stat().st_size]
    if not files:
        raise ValueError(f"corpus: no text in {[str(path) for path in inputs]}; build one with `axk1 corpus build`.")
    return files


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix("\ufeff")  # a byte order mark inside: of files that were joined
            if line.strip():
                yield _text(path, number, line)


def _text(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"corpus: {path} line {number} is not a JSON object with a 'text'.") from error
    if not isinstance(text, str):
        raise ValueError(f"corpus: {path} line {number}: 'text' is {text!r:.60}; it must be text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"corpus: {path} line {number}: 'text' has a lone surrogate; leave it out.") from error
    return text


def _read_plain(path: Path) -> Iterator[str]:
    """Whole lines in chunks, so that a file of any size streams."""
    lines: list[str] = []
    size = 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line in file:
            lines.append(line)
            size += len(line)
            if size >= PLAIN_TEXT_CHUNK:
                yield "".join(lines)
                lines, size = [], 0
    if lines:
        yield "".join(lines)


def read_documents(file: TextFile) -> Iterator[str]:
    """The documents of one file: the `text` of each .jsonl row, otherwise chunks of whole lines."""
    try:
        yield from _read_jsonl(file.path) if file.path.suffix == ".jsonl" else _read_plain(file.path)
    except UnicodeDecodeError as error:
        raise ValueError(f"corpus: {file.path} is not UTF-8 (byte {error.start}); convert or leave it out.") from error


def copies(text: str, weight: float) -> int:
    """How often a document of that weight is used: the whole part, and one more for a fixed share of all documents."""
    share = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    return int(weight) + (share < weight % 1)


def weighted_documents(
    files: list[TextFile], weights: Mapping[str, float], progress: Callable[[int], None] | None = None
) -> Iterator[str]:
    """Every document as often as its label's weight says (1 where none is given); `progress` gets bytes of text read.

    Raises ValueError for a weight that is negative or names a label that no file has.
    """
    labels = {file.label for file in files}
    for label, weight in weights.items():
        if label not in labels or weight < 0:
            raise ValueError(f"weight: {label}={weight} must be >= 0 and name one of {sorted(labels)}.")
    for file in files:
        for text in read_documents(file):
            for _ in range(copies(text, weights.get(file.label, 1.0))):
                yield text
            if progress:
                progress(len(text.encode()))
