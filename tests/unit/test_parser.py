"""The streaming parser: the same result for every chunking, and nothing held back without need."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axk1.chat.parser import THINK_CLOSE, THINK_OPEN, Delta, ReasoningParser, parse, partial_suffix

PIECES = ["<think>", "</think>", "<", "</", "think", ">", "<thin", "</think", " ", "\n", "a", "답", "</think></think>"]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join)


def reference(text: str, think: bool) -> tuple[str, str, bool]:
    if not think:
        return "", text, True
    reasoning, tag, answer = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return reasoning, answer, bool(tag)


@st.composite
def chunked(draw) -> list[str]:
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17+25=42</think>42", ("17+25=42", "42", True)),
        ("<think>17+25=42</think>42", ("17+25=42", "42", True)),  # the prompt's tag repeated
        ("</think>42", ("", "42", True)),
        ("no end", ("no end", "", False)),  # ended inside the reasoning
        ("half a tag </thi", ("half a tag </thi", "", False)),
        ("", ("", "", False)),
        ("<thin", ("<thin", "", False)),
        ("a</think>b</think>c", ("a", "b</think>c", True)),  # quoted in the answer
        ("a</think><think>b</think>", ("a", "<think>b</think>", True)),
        ("a<think>b</think>c", ("a<think>b", "c", True)),  # quoted in the reasoning
        ("a<</think>b", ("a<", "b", True)),
        ("\n a \n</think>\n\n b \n", ("\n a \n", "\n\n b \n", True)),  # nothing stripped
    ],
)
def test_think_reply(text, expected):
    assert parse(text, think=True) == expected


def test_non_think_reply_is_all_answer():
    text = "<think>not</think> reasoning"
    assert parse(text, think=False) == ("", text, True)


@given(chunks=chunked(), think=st.booleans())
def test_streaming_equals_whole_text(chunks, think):
    parser = ReasoningParser(think)
    deltas = [delta for chunk in chunks for delta in parser.feed(chunk)] + parser.finish()
    streamed = tuple("".join(d.text for d in deltas if d.kind == kind) for kind in ("reasoning", "answer"))
    assert (*streamed, parser.closed) == reference("".join(chunks), think)
    assert all(delta.text for delta in deltas)
    kinds = [delta.kind for delta in deltas]
    assert kinds == sorted(kinds, reverse=True)  # all reasoning comes before the answer


@given(chunks=chunked(), think=st.booleans())
def test_holds_back_only_what_may_start_a_tag(chunks, think):
    parser, fed, given_out = ReasoningParser(think), "", 0
    for chunk in chunks:
        fed += chunk
        given_out += sum(len(delta.text) for delta in parser.feed(chunk))
        swallowed = len(THINK_OPEN) if think and fed.startswith(THINK_OPEN) else 0
        held = len(fed) - given_out - swallowed - (len(THINK_CLOSE) if think and parser.closed else 0)
        tail = fed[len(fed) - held :]
        at_start = tail == fed and THINK_OPEN.startswith(fed)
        assert held == 0 or (think and not parser.closed and (THINK_CLOSE.startswith(tail) or at_start))


def test_character_by_character():
    parser = ReasoningParser(think=True)
    deltas = [parser.feed(char) for char in "<think>a<b</think></"]
    assert deltas[7] == [Delta("reasoning", "a")]
    assert deltas[8] == []  # "<" may start the tag
    assert deltas[9] == [Delta("reasoning", "<b")]
    assert deltas[-2:] == [[Delta("answer", "<")], [Delta("answer", "/")]]


@pytest.mark.parametrize(
    ("text", "length"), [("a</thi", 5), ("</think", 7), ("<", 1), ("</think>", 0), ("", 0), ("<<", 1)]
)
def test_partial_suffix(text, length):
    assert partial_suffix(text, THINK_CLOSE) == length
