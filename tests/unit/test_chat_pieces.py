"""Texts encoded piece by piece have the tokenizer's ids."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from axk1.chat.pieces import Pieces

FOLDER = Path(__file__).parents[2] / "models" / "nano"
NANO = AutoTokenizer.from_pretrained(FOLDER)
MARKERS = [token.content for token in NANO.added_tokens_decoder.values()]
KEPT = Pieces(NANO)

texts = st.lists(
    st.sampled_from([*MARKERS, "<", "<|", "|>", "im_end", "</", " ", "\n", "안녕", "12 + 7 " * 20]) | st.text()
).map("".join)


@given(text=texts)
def test_ids_are_the_tokenizers(text):
    expected = NANO.encode(text, add_special_tokens=False)
    assert KEPT.encode(text) == expected
    assert KEPT.encode(text) == expected, "the second time too"


def counted(monkeypatch, tokenizer) -> list[str]:
    """The texts that ``tokenizer`` is asked to encode from now on."""
    asked, real = [], tokenizer.encode

    def encode(text, **options):
        asked.append(text)
        return real(text, **options)

    monkeypatch.setattr(tokenizer, "encode", encode)
    return asked


def test_what_was_encoded_is_looked_up_for_its_owner_only(monkeypatch):
    pieces = Pieces(NANO)
    asked = counted(monkeypatch, NANO)
    history, question = "How are you? " * 10, "And you, tell me? " * 10
    first = pieces.encode(f"<|im_start|>{history}<|im_end|>", "a")
    longer = pieces.encode(f"<|im_start|>{history}<|im_end|>{question}", "a")
    assert longer[: len(first)] == first
    assert asked == [history, question]
    pieces.encode(f"<|im_start|>{history}<|im_end|>", "b")
    assert asked == [history, question, history]


def test_kept_pieces_are_bounded_and_the_oldest_goes(monkeypatch):
    pieces = Pieces(NANO, most=1_000)
    asked = counted(monkeypatch, NANO)
    a, b, c = ("x" * 400, "y" * 400, "z" * 400)
    for text in (a, b, a, c, a):  # b is the one that nobody asked for the longest
        pieces.encode(text)
    assert asked == [a, b, c]
    pieces.encode(b)
    assert asked == [a, b, c, b]
    long = "w" * 2_000  # more than all room: encoded each time, and nothing is left of it
    expected = pieces.encode(long)
    assert pieces.encode(long) == expected
    assert asked[-2:] == [long, long]


@pytest.mark.parametrize("option", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_a_tokenizer_whose_tokens_take_from_their_neighbours(option):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.add_tokens([AddedToken("<greedy>", **option)])
    pieces = Pieces(tokenizer)
    for text in ("one <greedy> two " * 10, "one<greedy>two" * 10):
        assert pieces.encode(text) == tokenizer.encode(text, add_special_tokens=False)
