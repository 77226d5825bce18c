"""Replies and events of OpenAI's three dialects fit the schemas of its published API description.

The file is openapi.json of github.com/openai/openai-openapi, which AXK1_OPENAPI names. Where it contradicts OpenAI's
own replies these are followed: ``usage`` of a response in progress is null; in ``/v1/completions``, which it describes
whole only, the first token of an echoed prompt has no log-probability.
"""

# pyright: reportMissingImports=false

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

DESCRIPTION = json.loads(Path(os.environ["AXK1_OPENAPI"]).read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "look twice"}]
HELLO = [{"role": "user", "content": "hello"}]
FLAT = [
    {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False},
    {"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": False},
]
TOOLS = [
    {"type": "function", "function": {name: tool[name] for name in ("name", "parameters", "strict")}} for tool in FLAT
]
USAGE = {"stream_options": {"include_usage": True}}
CHATS: list[dict[str, Any]] = [
    {"messages": HELLO},
    {"messages": HELLO, "logprobs": True, "top_logprobs": 3, "reasoning_effort": "low", **USAGE},
    {"messages": USER, "tools": TOOLS, "n": 2, **USAGE},
    {"messages": HELLO, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60},
    {"messages": HELLO, "response_format": {"type": "json_object"}, "max_tokens": 20},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "hello"},
    {"prompt": ["hello", "you"], "logprobs": 2, "n": 2, **USAGE},
]
RESPONSES: list[dict[str, Any]] = [
    {"input": "hello"},
    {"input": "hello", "top_logprobs": 2, "reasoning": {"effort": "low"}},
    {"input": "look twice", "tools": FLAT, "reasoning": {"effort": "low"}, "instructions": "Be brief."},
    {"input": "long reply", "max_output_tokens": 5},
    {"input": "joke", "text": {"format": {"type": "json_schema", "name": "joke", "schema": {"type": "object"}}}},
]
CHAT = ("CreateChatCompletionResponse", "CreateChatCompletionStreamResponse")
CASES = [
    *(("/v1/chat/completions", body, *CHAT) for body in CHATS),
    *(("/v1/completions", body, "CreateCompletionResponse", None) for body in COMPLETIONS),
    *(("/v1/responses", body, "Response", "ResponseStreamEvent") for body in RESPONSES),
]


def nullable(value: Any) -> Any:
    """Schemas in which ``nullable``, a word of OpenAPI, is said as JSON Schema says it."""
    if isinstance(value, list):
        return [nullable(each) for each in value]
    if not isinstance(value, dict):
        return value
    plain = {key: nullable(each) for key, each in value.items()}
    return {"anyOf": [plain, {"type": "null"}]} if value.get("nullable") is True else plain


COMPONENTS = nullable(DESCRIPTION["components"])


def fit(value: Any, name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": COMPONENTS}
    faults = list(Draft202012Validator(schema).iter_errors(value))
    assert not faults, [(fault.json_path, fault.message[:300]) for fault in faults[:3]]


def ask(path: str, body: dict[str, Any] | None = None) -> str:
    content = None if body is None else json.dumps({"model": "axk1", **body}).encode()
    request = urllib.request.Request(os.environ["AXK1_URL"] + path, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read().decode()


@pytest.mark.parametrize(("path", "body", "whole", "event"), CASES, ids=range(len(CASES)))
def test_replies_fit(path: str, body: dict[str, Any], whole: str, event: str | None) -> None:
    fit(json.loads(ask(path, {key: value for key, value in body.items() if key != "stream_options"})), whole)
    lines = [line for line in ask(path, {**body, "stream": True}).split("\n") if line.startswith("data: {")]
    for line in lines:
        if event is None:
            break
        told = json.loads(line.removeprefix("data: "))
        if "usage" in (part := told.get("response", {})) and part["status"] == "in_progress":
            assert part.pop("usage") is None
        fit(told, event)
    assert len(lines) > 3


def test_models_fit() -> None:
    fit(json.loads(ask("/v1/models")), "ListModelsResponse")
    fit(json.loads(ask("/v1/models/axk1")), "Model")
