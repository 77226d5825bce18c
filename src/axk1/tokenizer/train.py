"""Trains a byte-level BPE vocabulary and writes a folder that `AutoTokenizer.from_pretrained` loads."""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from axk1.files import write_text
from axk1.tokenizer.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, slot_tokens

BYTES = 256
DEFAULT_MAX_LENGTH = 131_072
TEMPLATE_FILE = "chat_template.jinja"
FILES = ("tokenizer.json", "tokenizer_config.json", TEMPLATE_FILE)
"""What a tokenizer is written as."""

_CJK = r"\p{Hangul}\p{Han}\u3005\p{Hiragana}\p{Katakana}\u30fc"
# What a merge may join, tried in this order. The East Asian scripts are kept apart from each other and from other
# letters: Japanese changes the script, and Korean puts particles behind Latin names, where a word ends.
_PATTERN = "|".join(
    [
        r"'(?i:s|t|d|m|ll|re|ve)(?!\p{L})",  # English contractions
        r" ?\p{Hangul}+",
        r" ?[\p{Han}\u3005]+",
        r" ?\p{Hiragana}+",
        r" ?[\p{Katakana}\u30fc]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_CJK}])[\p{{L}}\p{{M}}])+",  # a word, with the sign before it
        r"\p{N}{1,DIGITS}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation and operators
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation, leaving the last space to the word
        r"\s+",
    ]
)


def chat_template() -> str:
    """The project's chat template (Jinja source)."""
    return resources.files("axk1.tokenizer").joinpath(TEMPLATE_FILE).read_text(encoding="utf-8")


def split_pattern(digits: int = 3) -> str:
    """The regular expression whose matches bound what a merge may join."""
    return _PATTERN.replace("DIGITS", str(digits))


def new_tokenizer(digits: int = 3) -> Tokenizer:
    """An untrained byte-level BPE; numbers are cut into pieces of at most `digits` digits. There is no normaliser, so
    that decoding gives back every text exactly."""
    if digits < 1:
        raise ValueError(f"digits: {digits} given, it must be at least 1.")
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(split_pattern(digits)), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(
    documents: Iterable[str],
    *,
    vocab_size: int,
    special_slots: int,
    digits: int = 3,
    max_token_bytes: int | None = None,
) -> Tokenizer:
    """Learn `vocab_size - special_slots` ordinary entries from `documents` and add the special slots behind them.

    No ordinary token is longer than `max_token_bytes`. The result depends on the documents and options alone. Raises
    ValueError when the vocabulary has no room for the 256 bytes, or the text is too little to fill it.
    """
    ordinary = vocab_size - special_slots
    if ordinary < BYTES:
        raise ValueError(f"vocab_size: {vocab_size} leaves no room for {BYTES} bytes and {special_slots} slots.")
    if max_token_bytes is not None and max_token_bytes < 2:
        raise ValueError(f"max_token_bytes: {max_token_bytes} given, a merge needs at least 2.")
    slots = slot_tokens(special_slots)
    tokenizer = new_tokenizer(digits)
    trainer = trainers.BpeTrainer(
        vocab_size=ordinary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=None if max_token_bytes is None else max_token_bytes + 1,  # the library's limit is exclusive
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != ordinary:
        raise ValueError(f"vocab_size: the text gives only {learned} ordinary entries of {ordinary}; add text.")
    tokenizer.add_tokens([AddedToken(slot.text, special=slot.special, normalized=False) for slot in slots])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, model_max_length: int = DEFAULT_MAX_LENGTH) -> None:
    """Write `FILES` into `folder`, over those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
    }
    texts = (tokenizer.to_str(pretty=True), json.dumps(config, indent=2) + "\n", chat_template())
    for name, text in zip(FILES, texts, strict=True):
        write_text(folder / name, text)
