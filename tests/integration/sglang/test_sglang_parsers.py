"""Both parsers through SGLang's own entry points, whole and streamed in pieces of every size."""

# pyright: reportMissingImports=false
import json
from types import SimpleNamespace
from typing import Any

import pytest
from sglang_checkpoints import NANO

from axk1.chat.parser import parse

REPLIES = [
    "17 + 25 = 42</think>42",
    "<think>so</think>\nYes.",
    "no end of it < /think",
    "a</think>b</think>c",
    "",
    "</think>at once",
    "한국어로 생각</think>답: 서울",
    "half a tag </thi",
]
TOOLS = ("weather", "add")


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


@pytest.fixture(scope="module")
def reasoning(engine) -> Any:
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    return ReasoningParser


@pytest.mark.parametrize("text", REPLIES)
@pytest.mark.parametrize("think", [True, False])
def test_reasoning_is_split_as_in_process(reasoning: Any, text: str, think: bool):
    expected = (parse(text, think).reasoning, parse(text, think).answer)
    whole = reasoning("axk1", stream_reasoning=False, force_reasoning=think).parse_non_stream(text)
    assert whole == expected
    for size in (1, 2, 3, 7, 100):
        parser = reasoning("axk1", force_reasoning=think)
        parts = [parser.parse_stream_chunk(piece) for piece in pieces(text, size)] + [parser.parse_stream_end()]
        assert ("".join(r for r, _ in parts), "".join(a for _, a in parts)) == expected, size


def test_reasoning_may_come_in_one_piece(reasoning: Any):
    parser = reasoning("axk1", stream_reasoning=False, force_reasoning=True)
    parts = [parser.parse_stream_chunk(piece) for piece in pieces("one two</think>three", 4)]
    assert [r for r, _ in parts if r] == ["one two"]
    assert "".join(a for _, a in parts) + parser.parse_stream_end()[1] == "three"
    unfinished = reasoning("axk1", stream_reasoning=False, force_reasoning=True)
    assert unfinished.parse_stream_chunk("cut off") == ("", "")
    assert unfinished.parse_stream_end() == ("cut off", "")


def test_thinking_is_off_unless_asked_for(reasoning: Any):
    """What SGLang reads out of a chat template goes before the parser's own default; ours tells it nothing."""
    from sglang.srt.parser.template_detection import detect_reasoning_pattern

    assert reasoning("axk1").detector.reasoning_default == "explicit_enable_thinking"
    assert reasoning("axk1").parse_non_stream("all of it is the answer") == ("", "all of it is the answer")
    assert detect_reasoning_pattern((NANO / "chat_template.jinja").read_text()) == (False, None)


@pytest.mark.parametrize(
    ("kwargs", "defaults", "think"),
    [
        (None, None, False),
        ({"enable_thinking": True}, None, True),
        ({"enable_thinking": False}, {"enable_thinking": True}, False),
        (None, {"enable_thinking": True}, True),
    ],
)
def test_a_request_and_the_servers_default_decide(
    reasoning: Any, kwargs: dict[str, bool] | None, defaults: dict[str, bool] | None, think: bool
):
    """SGLang's own decision, on a request with the defaults of --default-chat-template-kwargs merged in as it does."""
    from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat

    serving = SimpleNamespace(
        reasoning_parser="axk1",
        template_manager=SimpleNamespace(reasoning_config=None),
        _reasoning_detector=reasoning("axk1").detector,
    )
    request = SimpleNamespace(chat_template_kwargs={**(defaults or {}), **(kwargs or {})} or None)
    assert OpenAIServingChat._get_reasoning_from_request(serving, request) is think


def call(name: str, **arguments: Any) -> str:
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"


ANSWERS = [
    ("No call at all, x < y.", "No call at all, x < y.", []),
    (call("add", a=1, b=[2, 3]), "", [("add", {"a": 1, "b": [2, 3]})]),
    ("Let me see. " + call("weather", city="서울"), "Let me see.", [("weather", {"city": "서울"})]),
    (call("add", a=1) + "\n" + call("add", a=2), "", [("add", {"a": 1}), ("add", {"a": 2})]),
    (call("weather", city="</tool_call> Town"), "", [("weather", {"city": "</tool_call> Town"})]),
    ("<tool_call>not json</tool_call> so be it", "<tool_call>not json</tool_call> so be it", []),
    ('<tool_call>\n{"name": "add"', '<tool_call>\n{"name": "add"', []),
    ("<tool_call>no</tool_call>" + call("add", a=3), "<tool_call>no</tool_call>", [("add", {"a": 3})]),
    (call("unknown", x=1), "", []),
]


@pytest.fixture(scope="module")
def tools(engine) -> list[Any]:
    from sglang.srt.entrypoints.openai.protocol import Function, Tool

    return [Tool(type="function", function=Function(name=name, parameters={"type": "object"})) for name in TOOLS]


@pytest.mark.parametrize(("text", "answer", "calls"), ANSWERS)
def test_tool_calls_are_taken_out_as_in_process(
    tools: list[Any], text: str, answer: str, calls: list[tuple[str, dict[str, Any]]]
):
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    parser = FunctionCallParser(tools, "axk1")
    found_text, found = parser.parse_non_stream(text)
    assert (found_text, [(item.name, json.loads(item.parameters)) for item in found]) == (answer, calls)
    for size in (1, 3, 8, 1000):
        streaming = FunctionCallParser(tools, "axk1")
        parts = [streaming.parse_stream_chunk(piece) for piece in pieces(text, size)] + [streaming.parse_stream_end()]
        items = [item for _, part in parts for item in part]
        assert [(item.name, json.loads(item.parameters)) for item in items] == calls, size
        assert [item.tool_index for item in items] == list(range(len(items)))
        assert "".join(part for part, _ in parts).strip() == answer, size


def test_text_before_a_call_is_not_held_back(tools: list[Any]):
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    parser = FunctionCallParser(tools, "axk1")
    assert parser.parse_stream_chunk("Let me ")[0] == "Let me "
    assert parser.parse_stream_chunk("see <tool")[0] == "see "
    assert parser.parse_stream_chunk("box")[0] == "<toolbox"


def test_forced_calls_are_constrained_to_our_format(tools: list[Any]):
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    info = FunctionCallParser(tools, "axk1").detector.structure_info()("add")
    text = info.begin + '{"a": 1}' + info.end
    assert FunctionCallParser(tools, "axk1").parse_non_stream(text)[1][0].name == "add"


def test_both_names_can_be_asked_for_on_the_command_line(engine):
    from sglang.srt.server_args import _reasoning_parser_choices, _tool_call_parser_choices

    assert "axk1" in _reasoning_parser_choices() and "axk1" in _tool_call_parser_choices()
    from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
    from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES

    assert REASONING_PARSER_NAMES.count("axk1") == TOOL_CALL_PARSER_NAMES.count("axk1") == 1
