"""A checkpoint's tokenizer in GGUF's fields: tokens, merges, how texts are cut before, special tokens, templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.reading import LARGEST_TEMPLATE, read_bytes, read_json
from axk1.config import AXK1Config
from axk1.tokenizer.train import split_pattern

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    split_pattern(3): "axk1",  # llama.cpp knows this one and the next by our patch
    split_pattern(1): "axk1-digits",
    rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}": "qwen2",
    GPT2: "gpt-2",
}
"""llama.cpp's names of the patterns by which a tokenizer cuts texts."""


def add_vocabulary(writer: Any, folder: Path, config: AXK1Config) -> None:
    """Adds the tokenizer in ``folder`` to ``writer``; without one, a vocabulary of ids alone.

    Raises:
        CheckpointError: a tokenizer that llama.cpp cannot do the work of.
    """
    if not (folder / TOKENIZER).is_file():
        writer.add_tokenizer_model("none")
        return
    values = read_json(folder / TOKENIZER)
    _check(values, folder / TOKENIZER)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(values, folder / TOKENIZER))
    tokens, types = _tokens(values, config.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    writer.add_token_merges(merges or [f"{tokens[0]} {tokens[0]}"])
    writer.add_add_bos_token(False)  # the template writes what a conversation begins with
    _add_special(writer, folder, config)


def pre_tokenizer(values: dict[str, Any], file: Path) -> str:
    """llama.cpp's name of the pattern in the tokenizer ``values``, read from ``file``.

    Raises:
        CheckpointError: a pattern that is not in the table.
    """
    found = values.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    splits = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    whole = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps)
    pattern = GPT2 if whole and not splits else splits[0] if len(splits) == 1 and not whole else None
    if pattern not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS.values())
        raise CheckpointError(f"cuts texts by a pattern that is none of those known here ({known}): {pattern!r}.", file)
    return PRE_TOKENIZERS[pattern]


def _check(values: dict[str, Any], file: Path) -> None:
    """Refuses what would be tokenized otherwise; fields as of the library ``tokenizers``."""
    model = values.get("model") or {}
    plain = model.get("type", "BPE") == "BPE" and not values.get("normalizer") and not model.get("ignore_merges")
    kinds = {step.get("type") for step in (values.get("pre_tokenizer") or {}).get("pretokenizers", [{}])}
    if (
        not plain
        or not kinds <= {"Split", "ByteLevel", None}
        or (values.get("decoder") or {}).get("type") != "ByteLevel"
    ):
        raise CheckpointError("is no byte-level BPE without a normaliser: llama.cpp would give other ids.", file)


def _tokens(values: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """All ``size`` entries and their types, those that the tokenizer does not name as unused ones."""
    tokens, types = [f"[PAD{i}]" for i in range(size)], [int(gguf.TokenType.UNUSED)] * size
    for token, index in values["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in values.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    return tokens, types


def _add_special(writer: Any, folder: Path, config: AXK1Config) -> None:
    """Special tokens and the chat template, as llama.cpp's own conversion reads them off the folder."""
    vocabulary = gguf.SpecialVocab(folder, load_merges=False, n_vocab=config.vocab_size)
    vocabulary.add_special_token = {}
    if (folder / TEMPLATE).is_file():
        vocabulary.chat_template = read_bytes(folder / TEMPLATE, LARGEST_TEMPLATE).decode()
    vocabulary.add_to_gguf(writer, quiet=True)
