"""Hermes tool calls in a finished answer, and in one that streams in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axk1.chat.tools import ToolCall, ToolCallParser, extract_tool_calls

WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "서울"}}\n</tool_call>'


def test_calls_are_taken_out_in_order():
    text, calls = extract_tool_calls(f'Let me look.\n{WEATHER}\n<tool_call>{{"name": "now"}}</tool_call>')
    assert text == "Let me look."
    assert calls == [ToolCall("weather", {"city": "서울"}), ToolCall("now", {})]


@pytest.mark.parametrize(
    "block",
    [
        "<tool_call>{not json}</tool_call>",
        '<tool_call>{"name": "f", "arguments": "text"}</tool_call>',
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>["f"]</tool_call>',
        '<tool_call>{"name": "f"} and more</tool_call>',
        '<tool_call>{"name": "f"}',
        "<tool_call>",
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_malformed_block_stays_text(block):
    assert extract_tool_calls(f" {block} ") == (f" {block} ", [])
    text, calls = extract_tool_calls(f"{block}\n{WEATHER}")
    assert (text, [call.name for call in calls]) == (block, ["weather"])


def test_answer_without_calls_is_untouched():
    assert extract_tool_calls("  plain \n") == ("  plain \n", [])


@given(
    st.text(max_size=10),
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.just("</tool_call><tool_call>"), st.integers())),
)
def test_any_call_is_read_back_even_when_it_quotes_the_tags(name, arguments):
    block = f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
    assert extract_tool_calls(block * 2) == ("", [ToolCall(name, arguments)] * 2)


BLOCKS = [
    WEATHER,
    '<tool_call>{"name": "f", "arguments": {"a": "x </tool_call> y", "b": [true, -1.5e+3, null]}}</tool_call>',
    '<tool_call> {"name": "g\\u00e9\\n\\"q"} </tool_call>',
    "<tool_call>{bad}</tool_call>",
    '<tool_call>{"name": 3}</tool_call>',
    '<tool_call>{"name": "h", "arguments": {"k": tr',
    '<tool_call>{"name": "z"} x',
    "<tool_ca",
    "</tool_call>",
    "text",
    "\n",
    "<",
]


@given(st.lists(st.sampled_from(BLOCKS), max_size=6).map("".join), st.lists(st.integers(1, 9), min_size=1))
def test_streamed_answer_gives_the_same(answer, sizes):
    parser, parts, start = ToolCallParser(), [], 0
    while start < len(answer):
        size = sizes[start % len(sizes)]
        parts += parser.feed(answer[start : start + size])
        start += size
    parts += parser.finish()
    text = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if isinstance(part, ToolCall)]
    assert (text.strip() if calls else text, calls) == extract_tool_calls(answer)


def test_streamed_text_is_not_held_back():
    parser = ToolCallParser()
    assert parser.feed("2 < 3 ") == ["2 < 3 "]
    assert parser.feed("<tool_call>{not") == ["<tool_call>{not"]
    assert parser.feed('<tool_call>{"name": "f"') == []
    assert parser.feed("}</tool_call>, done") == [ToolCall("f", {}), ", done"]
    assert parser.finish() == []
