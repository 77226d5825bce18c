"""Every event of ``/v1/responses``, and every whole response, fits the models of openresponses-types.

These differ from OpenAI's API, which is served, in two things: events of reasoning are ``response.reasoning.delta`` and
``.done``, without ``_text``; and the schema of a format is always null, so that none is asked for here.
"""

# pyright: reportMissingImports=false

import json
import os
import urllib.request
from typing import Any, get_args

import openresponses_types.types as published
import pytest
from pydantic import BaseModel

TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": True},
    },
    {"type": "function", "name": "clock"},
]
BODIES: list[dict[str, Any]] = [
    {"input": "hello"},
    {"input": "hello", "reasoning": {"effort": "low"}, "top_logprobs": 3, "include": ["message.output_text.logprobs"]},
    {"input": "look twice", "tools": TOOLS, "reasoning": {"effort": "low"}},
    {"input": "look twice", "tools": TOOLS, "parallel_tool_calls": False, "temperature": 0.5, "top_p": 0.9},
    {"input": "look twice", "tools": TOOLS, "tool_choice": {"type": "function", "name": "clock"}},
    {"input": "look twice", "tools": TOOLS, "tool_choice": "none", "instructions": "Be brief.", "metadata": {"a": "b"}},
    {"input": "long reply", "max_output_tokens": 5},
    {"input": "joke", "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"input": "joke", "text": {"format": {"type": "json_object"}}, "max_output_tokens": 60},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}], "store": False},
]


def ask(body: dict[str, Any]) -> str:
    request = urllib.request.Request(f"{os.environ['AXK1_URL']}/v1/responses", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read().decode()


def events(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of all events, those of reasoning under the published names."""
    lines = [line.removeprefix("data: ") for line in ask({**body, "stream": True}).split("\n") if line[:5] == "data:"]
    found = [json.loads(line) for line in lines if line != "[DONE]"]
    return [{**each, "type": each["type"].replace("response.reasoning_text.", "response.reasoning.")} for each in found]


def models() -> dict[str, type[BaseModel]]:
    """The published events by their type."""
    found = {}
    for name, kind in vars(published).items():
        if name.endswith("StreamingEvent"):
            (wanted, *_) = [value.value for value in get_type(kind)]
            found[wanted] = kind
    return found


def get_type(kind: type[BaseModel]) -> list[Any]:
    annotation = kind.model_fields["type"].annotation
    return list(get_args(annotation) or annotation)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_event_fits(body: dict[str, Any]) -> None:
    known, told = models(), events(body)
    for event in told:
        known[event["type"]].model_validate(event)
    assert {"response.created", "response.in_progress", "response.output_item.done"} <= {e["type"] for e in told}


def test_every_kind_of_event_was_seen() -> None:
    """But for ``response.failed``, which takes a model that fails."""
    parts = ("output_item", "content_part")
    texts = ("output_text", "reasoning", "function_call_arguments")
    expected = {f"response.{name}" for name in ("created", "in_progress", "completed", "incomplete")}
    expected |= {f"response.{part}.{what}" for part in parts for what in ("added", "done")}
    expected |= {f"response.{text}.{what}" for text in texts for what in ("delta", "done")}
    assert {event["type"] for body in BODIES for event in events(body)} == expected


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_response_fits(body: dict[str, Any]) -> None:
    published.ResponseResource.model_validate_json(ask(body))
