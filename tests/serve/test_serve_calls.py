"""Tool calls that stream: whatever the chunks, the same events; and the same calls as from a whole answer."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from axk1.chat.tools import extract_tool_calls
from axk1.serve.calls import CallArguments, CallEnd, CallStart, CallStream, Text

GOOD = [
    '<tool_call>\n{"name": "f", "arguments": {"k": [2, {"s": "}</tool_call>"}]}}\n</tool_call>',
    '<tool_call>{"name": "g"}</tool_call>',
    '<tool_call>{"arguments": {"x": "é"}, "name": "h"}</tool_call>',
    "<tool_call>junk</tool_call>",
    "hello ",
    "\n",
]
BROKEN = [
    "<tool_call>",
    "</tool_call>",
    "<tool",
    '{"name": "f", "arguments": {"a": oops',
    '{"name":"f","arguments":{},"id":3}',
    '{"arguments": {"x": "é"}, "name": "h"}',
    "}",
]


def read(chunks):
    stream = CallStream()
    found = [event for chunk in chunks for event in stream.feed(chunk)] + stream.finish()
    calls = [[event.name, ""] for event in found if isinstance(event, CallStart)]
    for event in found:
        if isinstance(event, CallArguments):
            calls[event.index][1] += event.text
    assert sum(isinstance(event, CallEnd) for event in found) == len(calls)
    return "".join(event.text for event in found if isinstance(event, Text)), calls


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from([*GOOD, *BROKEN]), max_size=7), st.integers(1, 12))
def test_chunks_do_not_matter(parts, size):
    text = "".join(parts)
    whole = read([text])
    assert read(list(text)) == whole
    assert read([text[i : i + size] for i in range(0, len(text), size)]) == whole


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(GOOD), max_size=7))
def test_the_same_calls_as_of_a_whole_answer(parts):
    text, calls = read(list("".join(parts)))
    expected, whole = extract_tool_calls("".join(parts))
    assert text.strip() == expected.strip()
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [(c.name, c.arguments) for c in whole]


def test_arguments_come_as_they_are_written():
    stream = CallStream()
    assert stream.feed('<tool_call>\n{"name": "f", "arguments": {"a": ') == [
        CallStart(0, "f"),
        CallArguments(0, '{"a": '),
    ]
    assert stream.feed("12") == [CallArguments(0, "12")]
    assert stream.feed("}}\n</tool_") == [CallArguments(0, "}")]
    assert stream.feed("call>") == [CallEnd(0)]


def test_a_call_that_was_cut_off_stays_one_without_a_stray_brace():
    assert read(['<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool']) == ("", [["f", '{"a": 1}']])
    assert read(['<tool_call>\n{"name": "f", "arguments": {"a": 1']) == ("", [["f", '{"a": 1']])
    assert read(['<tool_call>\n{"name": "f"']) == ('<tool_call>\n{"name": "f"', [])


def test_a_long_block_takes_time_in_proportion():
    text = '<tool_call>{"arguments": {"x": "' + "y" * 200_000 + '"}, "name": "h"}</tool_call>'
    assert read(list(text))[1][0][0] == "h"
