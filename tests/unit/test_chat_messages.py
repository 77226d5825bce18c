"""Messages and tools as they come from clients: taken as meant, or refused with a sentence; never misread."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axk1.chat.messages import check_messages, check_stop, check_tools
from axk1.chat.reply import Reply
from axk1.chat.tools import extract_tool_calls

CALL = {"type": "function", "function": {"name": "now", "arguments": {}}}


def assistant(**fields):
    (message,) = check_messages([{"role": "assistant", **fields}])
    assert message.pop("role") == "assistant"
    return message


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be brief."}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]}, "abc"),
        ({"role": "user", "content": {"type": "text", "text": "a"}}, "a"),
        ({"role": "user", "content": []}, ""),
        ({"role": "user", "content": "a", "name": "Kim"}, {"role": "user", "content": "a", "name": "Kim"}),
        (
            {"role": "tool", "content": "3", "tool_call_id": "x1"},
            {"role": "tool", "content": "3", "tool_call_id": "x1"},
        ),
        ({"role": "user", "content": "a", "tool_calls": None, "refusal": None, "annotations": []}, "a"),
    ],
)
def test_what_is_meant_is_taken(given, taken):
    before = json.dumps(given)
    assert check_messages([given]) == [taken if isinstance(taken, dict) else {"role": "user", "content": taken}]
    assert check_messages(given) == check_messages([given]), "one message is a list of one"
    assert json.dumps(given) == before, "the caller's object stays as it is"


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "function": {"name": "now"}},
        {"function": {"name": "now", "arguments": None}},
        {"type": "function", "function": {"name": "now", "arguments": ""}},
        {"type": "function", "function": {"name": "now", "arguments": " {} "}},
        {"name": "now", "arguments": {}},
    ],
)
def test_calls_in_every_spelling(call):
    for calls in ([call], (call,), call):
        assert assistant(content=None, tool_calls=calls) == {"content": "", "tool_calls": [CALL]}
    with_id = assistant(tool_calls=[call | {"type": "function", "id": "call_1"}])
    assert with_id["tool_calls"] == [CALL | {"id": "call_1"}]


@pytest.mark.parametrize("arguments", ['{"a": [1, "둘"]}', {"a": [1, "둘"]}, {"a": (1, "둘")}])
def test_arguments_as_text_are_the_object(arguments):
    (call,) = assistant(content="x", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])["tool_calls"]
    assert call["function"]["arguments"] == {"a": [1, "둘"]}


@pytest.mark.parametrize(
    ("fields", "content", "reasoning"),
    [
        ({"content": "4"}, "4", None),
        ({"content": "<think>2 and 2</think>4"}, "4", "2 and 2"),
        ({"content": "\n<think>\n2 and 2\n</think>\n\n4"}, "4", "2 and 2"),
        ({"content": "2 and 2</think>4"}, "4", "2 and 2"),
        ({"content": "</think>4"}, "4", ""),
        ({"content": "<think>\n\n</think>\n\n4"}, "4", ""),
        ({"content": "<think>2 and"}, "", "2 and"),  # ended inside its reasoning
        ({"content": None, "reasoning_content": "2 and"}, "", "2 and"),
        ({"content": "4", "reasoning_content": "2 and 2"}, "4", "2 and 2"),
        ({"content": "\n\n4", "reasoning_content": "\n2 and 2\n"}, "4", "2 and 2"),
        ({"content": "\n\n4", "reasoning_content": "2 and 2"}, "4", "2 and 2"),
        ({"content": "4", "reasoning": "2 and 2"}, "4", "2 and 2"),
        ({"content": "4", "reasoning": "a", "reasoning_content": "a"}, "4", "a"),
        ({"content": "4", "reasoning_content": "<think>\n2 and 2\n</think>\n"}, "4", "2 and 2"),
        ({"content": "It is </think>, see?", "reasoning_content": ""}, "It is </think>, see?", ""),
        ({"content": "\nindented", "reasoning_content": ""}, "\nindented", ""),
        ({"content": "Write <think> first."}, "Write <think> first.", None),
    ],
)
def test_reasoning_is_apart_and_bare(fields, content, reasoning):
    expected = {"content": content} | ({} if reasoning is None else {"reasoning_content": reasoning})
    assert assistant(**fields) == expected


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "System", "content": "a"}, "role is one of"),
        ({"role": ["user"], "content": "a"}, "role is one of"),
        ("hi", "role is one of"),
        ({"role": "user"}, "must be text"),
        ({"role": "user", "content": 5}, "must be text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "parts of type text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "parts of type text"),
        ({"role": "user", "content": [{"type": "text", "text": "\ud800"}]}, "lone surrogate"),
        ({"role": "user", "content": "a", "reasoning_content": "b"}, "only an assistant"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "only an assistant"),
        ({"role": "user", "content": "a", "thinking": True}, "'thinking'"),
        ({"role": "user", "content": "a", "name": 5}, "name of a user message must be text"),
        ({"role": "assistant", "content": None}, "must be text"),
        ({"role": "assistant", "content": "4", "reasoning_content": 5}, "reasoning of a"),
        ({"role": "assistant", "content": "4", "reasoning_content": "\ud800"}, "lone surrogate"),
        ({"role": "assistant", "content": "4", "reasoning_content": "a</think>b"}, "reasoning alone"),
        ({"role": "assistant", "content": "4", "reasoning_content": "a", "reasoning": "b"}, "which differ"),
        ({"role": "assistant", "content": "So <think>a</think>b"}, "what is its reasoning"),
        ({"role": "assistant", "content": "", "tool_calls": "now()"}, "list of calls"),
        ({"role": "assistant", "content": "", "tool_calls": ["now"]}, "type function"),
        ({"role": "assistant", "content": "", "tool_calls": [{"type": "custom", "name": "x"}]}, "type function"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": ""}}]}, "type function"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, "an object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]}, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}, "no JSON"),
    ],
)
def test_what_is_not_clear_is_refused(message, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        check_messages([{"role": "user", "content": "a"}, message])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


deep = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
)


@given(name=st.text(st.characters(codec=None), min_size=1), arguments=st.dictionaries(st.text(), deep), text=st.text())
def test_what_our_parser_gives_back_is_taken_and_can_be_encoded(name, arguments, text):
    written = json.dumps({"name": name, "arguments": arguments})
    answer, calls = extract_tool_calls(f"{text}<tool_call>{written}</tool_call>")
    reply = Reply("2 and 2", answer, calls, "stop", True, 1, 1, 1, 1.0)
    (message,) = check_messages([reply.message()])
    json.dumps(message, ensure_ascii=False).encode()
    assert len(message.get("tool_calls", [])) == len(calls) == 1


def test_absurdly_nested_arguments_are_refused():
    nested: dict = {}
    for _ in range(500):
        nested = {"a": nested}
    with pytest.raises(ValueError, match="more than 64"):
        check_messages([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nested}}]}])


def test_tools():
    function = {"name": "add", "parameters": {"type": "object"}}
    whole = {"type": "function", "function": function}
    for tools in (whole, [whole], (whole,), [function], [{"function": function}], [{"type": "function", **function}]):
        assert check_tools(tools) == [whole]
    assert check_tools(None) is check_tools([]) is None
    assert check_tools([test_tools]) == [test_tools]
    for bad in ("add", ["add"], [{"type": "web_search"}], [{"name": 5}], [{"name": "f", "parameters": {1}}]):
        with pytest.raises(ValueError, match=r"[Tt]ool"):
            check_tools(bad)


def test_stop_strings():
    assert check_stop("END") == check_stop(["END"]) == ["END"]
    assert check_stop(None) == check_stop(()) == []
    for bad in ("", [""], 5, [5], {"a": 1}):
        with pytest.raises(ValueError, match=r"[Ss]top"):
            check_stop(bad)
