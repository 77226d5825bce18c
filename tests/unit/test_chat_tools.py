"""Hermes tool calls in a finished answer, and in one that streams in."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axk1.chat.json_scan import DEEPEST, ObjectScanner
from axk1.chat.tools import TOOL_CLOSE, TOOL_OPEN, ToolCall, ToolCallParser, extract_tool_calls

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


DECODER = json.JSONDecoder()


def whole(answer: str) -> list:
    """The same by Python's decoder over the finished text, for whole answers only."""
    parts, text, at = [], "", 0
    while (opening := answer.find(TOOL_OPEN, at)) >= 0:
        text += answer[at:opening]
        rest = answer[opening + len(TOOL_OPEN) :]
        body = rest.lstrip()
        try:
            value, end = DECODER.raw_decode(body)
            after = body[end:].lstrip()
        except (ValueError, RecursionError):
            value, after = None, ""
        fits = isinstance(value, dict) and isinstance(value.get("name"), str)
        if fits and isinstance(value.get("arguments", {}), dict) and after.startswith(TOOL_CLOSE):
            parts += [text, ToolCall(value["name"], value.get("arguments", {}))]
            text, at = "", len(answer) - len(after) + len(TOOL_CLOSE)
        else:
            text, at = text + TOOL_OPEN, opening + len(TOOL_OPEN)
    return [part for part in [*parts, text + answer[at:]] if part != ""]


def streamed(chunks: list[str]) -> list:
    parser = ToolCallParser()
    found = [part for chunk in chunks for part in parser.feed(chunk)] + parser.finish()
    parts: list = []
    for part in found:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


PIECES = [
    *BLOCKS,
    '{"',
    '":',
    '"name": "f"',
    ",",
    "}",
    "]",
    "[",
    '"arguments": {',
    "-",
    "1e",
    "5",
    ".",
    "\\",
    "\\u00",
    "NaN",
]
PIECES += [
    "Infin",
    "ity",
    "true",
    " ",
    "\u00a0",
    "\x0b",
    "<tool_call>",
    '<tool_call>{"name": "f", "arguments": {"a": ',
    "}}",
]
answers = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@settings(max_examples=500, deadline=None)
@given(answers)
def test_every_split_gives_what_the_whole_gives(answer):
    expected = whole(answer)
    for cut in range(len(answer) + 1):
        assert streamed([answer[:cut], answer[cut:]]) == expected
    assert streamed(list(answer)) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda i: st.lists(i) | st.dictionaries(st.text(), i),
        max_leaves=20,
    ),
    st.data(),
)
def test_the_scanner_knows_objects_as_python_does(value, data):
    text = json.dumps({"a": value}, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
    wrong = data.draw(st.booleans())
    if wrong:
        at = data.draw(st.integers(1, len(text)))
        text = text[: at - 1] + data.draw(st.sampled_from([*'{}[]",:0-+.eE\\ntu x\n', ""])) + text[at:]
    scanner = ObjectScanner()
    end = 0
    for at, _ in enumerate(text):
        if not (scanner.complete or scanner.failed):
            end = scanner.feed(text[: at + 1], at)
    try:
        found, length = DECODER.raw_decode(text)
        assert scanner.complete == isinstance(found, dict)
        assert not scanner.complete or end == length
    except ValueError:
        assert not scanner.complete


def test_a_long_call_takes_time_that_grows_with_its_length():
    def seconds(length: int) -> float:
        call = f'{TOOL_OPEN}{{"name": "write", "arguments": {{"text": "{"a" * length}"}}}}{TOOL_CLOSE}'
        parser, start = ToolCallParser(), time.perf_counter()
        parts = [part for at in range(0, len(call), 3) for part in parser.feed(call[at : at + 3])] + parser.finish()
        assert [type(part) for part in parts] == [ToolCall]
        return time.perf_counter() - start

    assert seconds(400_000) < 20  # parsed from the start at every piece, a tenth of that took 17 s


@pytest.mark.parametrize("inside", ["[" * (DEEPEST - 2) + "]" * (DEEPEST - 2), "1" + "0" * 4_000])
def test_what_python_decodes_is_a_call(inside):
    text, calls = extract_tool_calls(f'{TOOL_OPEN}{{"name": "f", "arguments": {{"a": {inside}}}}}{TOOL_CLOSE}')
    assert text == "" and calls == [ToolCall("f", {"a": json.loads(inside)})]


@pytest.mark.parametrize("inside", ["[" * 5_000 + "]" * 5_000, "1" + "0" * 5_000, '{"b": ' * 5_000 + "1" + "}" * 5_000])
def test_what_python_cannot_decode_stays_text(inside):
    answer = f'{TOOL_OPEN}{{"name": "f", "arguments": {{"a": {inside}}}}}{TOOL_CLOSE}'
    assert extract_tool_calls(answer) == (answer, [])
    assert extract_tool_calls(answer + WEATHER)[1] == [ToolCall("weather", {"city": "서울"})]


def test_halves_of_characters_become_replacement_characters():
    block = '<tool_call>{"name": "f\\ud800", "arguments": {"\\udfff": ["\\ud83d\\ude00", "\\udc00x"]}}</tool_call>'
    _, (call,) = extract_tool_calls(block)
    assert call == ToolCall("f\ufffd", {"\ufffd": ["\U0001f600", "\ufffdx"]})
    json.dumps(call.arguments, ensure_ascii=False).encode()
