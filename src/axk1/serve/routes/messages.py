"""Anthropic's ``/v1/messages`` and ``/v1/messages/count_tokens``, which coding clients speak."""

import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from axk1.chat.messages import check_stop
from axk1.generation.sampling import Sampling
from axk1.serve import fields
from axk1.serve.blocks import Block, Blocks, Change
from axk1.serve.errors import Refusal, refusing
from axk1.serve.replies import Choice, Order, Running
from axk1.serve.routes.common import (
    STREAMED,
    Body,
    Count,
    Events,
    Int64,
    Tools,
    event,
    failure,
    headers,
    plan_tools,
    response_schema,
)
from axk1.serve.service import Service
from axk1.serve.thinking import Thinking, choose

ROUTE = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?", re.IGNORECASE)
"""A line that one client puts before its system prompt, with other numbers each time: no prefix would be shared."""
_CHOICES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


class CountBody(Body):
    """A conversation."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    @property
    def parallel(self) -> bool:
        """Whether there may be several calls."""
        return not (self.tool_choice or {}).get("disable_parallel_tool_use", False)


class MessagesBody(CountBody):
    """The body of a messages request."""

    max_tokens: Count
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    output_config: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def add_routes(routes: FastAPI, service: Service) -> None:
    """Adds the routes of this dialect."""

    @routes.post(ROUTE, responses=STREAMED)
    async def messages(body: MessagesBody, http: Request) -> Response:
        """Answers a conversation, whole or streamed."""
        named = body.others(ROUTE)
        model = service.model(body.model)
        order, unread = await _order(service, body, http)
        running = await service.start("msg_", order, http)
        told = headers(running, [*named, *unread])
        if body.stream:
            return Events(service, running, _stream(service, running, model, http), told)
        (whole,) = await service.collect(running, http)
        content = [_content(block, block.text) for block in whole.blocks]
        return JSONResponse(_message(running, model, content), headers=told)

    @routes.post(COUNT)
    async def count(body: CountBody, http: Request) -> JSONResponse:
        """The tokens of the prompt for a conversation."""
        named = body.others(COUNT)
        service.model(body.model)
        tools, unread = _tools(service, body)
        prompt = await service.prompt(http, _messages(body), _thinking(service, body).think, tools.shown)
        return JSONResponse({"input_tokens": len(prompt)}, headers=fields.header([*named, *unread]))

    @routes.post(ROUTE + "/{id}/answer")
    async def answer_now(id: str, http: Request) -> dict[str, Any]:
        """Answer now: ends the reasoning of a message that is being streamed."""
        service.answer_now(id, http)
        return {"id": id, "type": "answer", "reasoning_ended": True}


async def _order(service: Service, body: MessagesBody, http: Request) -> tuple[Order, list[str]]:
    config = body.output_config or {}
    thinking = _thinking(service, body, config.get("effort"), body.chat_template_kwargs)
    answer = response_schema(config.get("format"), "output_config.format")
    tools, unread = _tools(service, body, answer)
    given = {name: value for name in ("temperature", "top_p") if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)
    with refusing():
        sampling, stop = Sampling(**given), check_stop(body.stop_sequences)
    order = Order(
        prompt=await service.prompt(http, _messages(body), thinking.think, tools.shown),
        thinking=thinking,
        sampling=sampling,
        max_new_tokens=body.max_tokens,
        stop=stop,
        tools=tools.read,
        parallel=body.parallel,
        grammar=tools.grammar,
    )
    return order, unread


def _thinking(
    service: Service, body: CountBody, effort: str | None = None, template: Mapping[str, Any] | None = None
) -> Thinking:
    return choose(service.settings.think, template=template, effort=effort, thinking=body.thinking)


def _tools(service: Service, body: CountBody, answer: Any = None) -> tuple[Tools, list[str]]:
    """The tools as OpenAI has them, and the kinds that are not read: those that only Anthropic's server runs."""
    unread, tools = [], []
    for tool in body.tools or []:
        if tool.get("type") not in (None, "custom"):
            unread.append(f"tools.{tool['type']}")
            continue
        schema = tool.get("input_schema") or {"type": "object"}
        function = {"name": tool.get("name"), "description": tool.get("description") or "", "parameters": schema}
        if tool.get("strict"):
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    choice = body.tool_choice or {"type": "auto"}
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise Refusal(f"tool_choice.type is {kind!r}; use auto, any, tool or none.", param="tool_choice")
    name = choice.get("name") if kind == "tool" else None
    if kind == "tool" and not isinstance(name, str):
        raise Refusal("tool_choice names no tool.", param="tool_choice")
    return plan_tools(service, tools, _CHOICES[kind], name, body.parallel, answer), unread


def _messages(body: CountBody) -> list[dict[str, Any]]:
    """The conversation as OpenAI has it."""
    system = _text(body.system, "system") if body.system is not None else ""
    system = _BILLING.sub("", system)
    messages = [{"role": "system", "content": system}] if system else []
    for message in body.messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise Refusal(f"A message's role is {role!r}; use user or assistant.", param="messages")
        blocks: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
            raise Refusal(f"The content of a {role} message must be text or a list of blocks.", param="messages")
        messages += _assistant(blocks) if role == "assistant" else _user(blocks, str(role))
    return messages


def _user(blocks: list[Mapping[str, Any]], role: str) -> list[dict[str, Any]]:
    """Results of tools, then what the user wrote."""
    results = [block for block in blocks if block.get("type") == "tool_result"]
    told: list[dict[str, Any]] = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": _text(block.get("content") or "", "tool_result"),
        }
        for block in results
    ]
    rest = [block for block in blocks if block.get("type") != "tool_result"]
    if rest or not results:
        told.append({"role": role, "content": _text(rest, f"a {role} message")})
    return told


def _assistant(blocks: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for block in blocks:
        by_kind.setdefault(str(block.get("type")), []).append(block)
    if unknown := set(by_kind) - {"text", "thinking", "redacted_thinking", "tool_use"}:
        raise Refusal(f"A block of an assistant message is {sorted(unknown)[0][:100]!r}.", param="messages")
    message: dict[str, Any] = {"role": "assistant", "content": _text(by_kind.get("text", []), "an assistant message")}
    message["reasoning_content"] = "".join(str(block.get("thinking", "")) for block in by_kind.get("thinking", []))
    if calls := by_kind.get("tool_use"):
        message["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": call.get("name"), "arguments": call.get("input") or {}},
            }
            for call in calls
        ]
    return [message]


def _text(content: Any, where: str) -> str:
    """A text, or blocks of texts.

    Raises:
        Refusal: a block is something else.
    """
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        text = block.get("text") if isinstance(block, Mapping) and block.get("type") == "text" else None
        if not isinstance(text, str):
            kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
            raise Refusal(f"{where} has a block of type {kind!r}; only text is read.", param="messages")
        texts.append(text)
    return "".join(texts)


def _content(block: Block, text: str) -> dict[str, Any]:
    """A block as this dialect has it."""
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.kind == "text":
        return {"type": "text", "text": text, "citations": None}
    call = {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": block.name, "input": {}}
    return call | ({"input": _input(text)} if text else {})


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; of a call that was cut off, none."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stop_reason(choice: Choice) -> str | None:
    if choice.stop_string is not None:
        return "stop_sequence"
    return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", None: None}[choice.finish]


def _usage(running: Running) -> dict[str, Any]:
    counts = running.usage
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_read_input_tokens": counts.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": counts.completion,
        "output_tokens_details": {"thinking_tokens": counts.reasoning},
    }


def _message(running: Running, model: str, content: list[dict[str, Any]], ended: bool = True) -> dict[str, Any]:
    (choice,) = running.choices
    return {
        "id": running.id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": _stop_reason(choice) if ended else None,
        "stop_sequence": choice.stop_string if ended else None,
        "usage": _usage(running),
    }


async def _stream(service: Service, running: Running, model: str, http: Request) -> AsyncIterator[ServerSentEvent]:
    blocks, begun = Blocks(), False
    try:
        async for step in service.steps(running):
            if not begun:  # by now it is known how much of the prompt was cached
                begun = True
                yield _event({"type": "message_start", "message": _message(running, model, [], ended=False)})
            for each in step.events:
                for change in blocks.feed(each):
                    for told in _changes(change):
                        yield told
        for change in blocks.finish():
            for told in _changes(change):
                yield told
        (choice,) = running.choices
        ended = {"stop_reason": _stop_reason(choice), "stop_sequence": choice.stop_string}
        yield _event({"type": "message_delta", "delta": ended, "usage": _usage(running)})
        yield _event({"type": "message_stop"})
    except Refusal as refusal:
        yield _event(failure(http, refusal))


def _changes(change: Change) -> list[ServerSentEvent]:
    block, index = change.block, {"index": change.block.index}
    if change.what == "begins":
        return [_event({"type": "content_block_start", **index, "content_block": _content(block, "")})]
    if change.what == "ends":
        signed = {"type": "content_block_delta", **index, "delta": {"type": "signature_delta", "signature": ""}}
        return [
            *([_event(signed)] if block.kind == "reasoning" else []),
            _event({"type": "content_block_stop", **index}),
        ]
    names = {
        "reasoning": ("thinking_delta", "thinking"),
        "text": ("text_delta", "text"),
        "call": ("input_json_delta", "partial_json"),
    }
    kind, field = names[block.kind]
    return [_event({"type": "content_block_delta", **index, "delta": {"type": kind, field: change.text}})]


def _event(data: Mapping[str, Any]) -> ServerSentEvent:
    return event(data, str(data["type"]))
