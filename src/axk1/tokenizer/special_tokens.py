"""The special tokens by name, and the reserved slots that end every vocabulary.

Ordinary ids come first; the slots follow, and a token's id is `vocab_size - slots + offset`. Offsets 0, 1 and 13 are
those of the released vocabulary (163691, 163692 and 163704 of 163,840 entries, 149 slots); the others are this
project's choice, because the released table is not public text. A released checkpoint's own tokenizer is used as it is.
"""

from dataclasses import dataclass

RELEASED_VOCAB_SIZE = 163_840
RELEASED_SLOTS = 149
NANO_SLOTS = 64

BOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|im_end|>"
UNK_TOKEN = "<|unk|>"


@dataclass(frozen=True)
class SlotToken:
    """One slot: `special` tokens vanish under `skip_special_tokens`, the others are part of what a reader sees."""

    offset: int
    text: str
    special: bool = True


NAMED_TOKENS: tuple[SlotToken, ...] = (
    SlotToken(0, BOS_TOKEN),
    SlotToken(1, PAD_TOKEN),
    SlotToken(2, UNK_TOKEN),
    SlotToken(3, "<|cls|>"),
    SlotToken(4, "<|sep|>"),
    SlotToken(5, "<|mask|>"),
    SlotToken(12, "<|im_start|>"),
    SlotToken(13, EOS_TOKEN),
    SlotToken(14, "<think>", special=False),
    SlotToken(15, "</think>", special=False),
    SlotToken(16, "<tool_call>", special=False),
    SlotToken(17, "</tool_call>", special=False),
    SlotToken(18, "<tool_response>", special=False),
    SlotToken(19, "</tool_response>", special=False),
    SlotToken(20, "<|image_start|>"),
    SlotToken(21, "<|image_pad|>"),
    SlotToken(22, "<|image_end|>"),
    SlotToken(23, "<|video_start|>"),
    SlotToken(24, "<|video_pad|>"),
    SlotToken(25, "<|video_end|>"),
)
MIN_SLOTS = 1 + max(token.offset for token in NAMED_TOKENS)


def slot_tokens(slots: int) -> list[SlotToken]:
    """All `slots` tokens in id order, unnamed offsets as `<|reserved_N|>`; ValueError below `MIN_SLOTS`."""
    if slots < MIN_SLOTS:
        raise ValueError(f"special slots: {slots} given, the named special tokens need at least {MIN_SLOTS}.")
    named = {token.offset: token for token in NAMED_TOKENS}
    return [named.get(offset, SlotToken(offset, f"<|reserved_{offset}|>")) for offset in range(slots)]


def special_token_id(text: str, vocab_size: int, slots: int) -> int:
    """The id of a named special token in a vocabulary of `vocab_size` entries, the last `slots` of them reserved."""
    for token in NAMED_TOKENS:
        if token.text == text:
            return vocab_size - slots + token.offset
    raise ValueError(f"special token: '{text}' is not one of {[token.text for token in NAMED_TOKENS]}.")
