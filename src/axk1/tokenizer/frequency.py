"""The tokens that text is mostly made of: those worth drafting (FR-Spec, arXiv 2502.14856)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig

from axk1.config import AXK1Config
from axk1.tokenizer.guard import UNREADABLE, tokenizer_errors


def frequent_tokens(tokenizer: Tokenizer, documents: Iterable[str], coverage: float) -> tuple[list[int], float]:
    """The fewest tokens that make up ``coverage`` of the documents, most frequent first; then all special ones, which
    end replies and thoughts and are not in texts.

    Returns:
        their ids, and the share that they do make up.

    Raises:
        ValueError: ``coverage`` is not in (0, 1], or the documents have no token.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"--coverage: {coverage} must be above 0 and at most 1.")
    counts: Counter[int] = Counter()
    for text in documents:
        with tokenizer_errors(UNREADABLE):
            counts.update(tokenizer.encode(text, add_special_tokens=False).ids)
    total = counts.total()
    if not total:
        raise ValueError("corpus: the texts are empty; give text like the model is going to write.")
    ids, covered = [], 0
    for token, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if covered >= coverage * total:
            break
        ids.append(token)
        covered += count
    return list(dict.fromkeys([*ids, *tokenizer.get_added_tokens_decoder()])), covered / total


def save_draft_tokens(checkpoint: Path, ids: list[int]) -> None:
    """Writes ``draft_token_ids`` into the generation_config.json of ``checkpoint``; the rest of it stays."""
    try:
        settings: Any = GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    except OSError:  # a checkpoint without one
        settings = GenerationConfig.from_model_config(AXK1Config.from_pretrained(checkpoint, local_files_only=True))
    settings._from_model_config = False  # else transformers reads no entries but its own
    settings.draft_token_ids = ids
    with TemporaryDirectory(dir=checkpoint) as folder:
        settings.save_pretrained(folder)
        (Path(folder) / "generation_config.json").replace(checkpoint / "generation_config.json")
