"""OpenAI's ``/v1/responses``, without what it stores: each request brings its whole input."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from axk1.generation.sampling import TokenLogprobs
from axk1.serve.blocks import Block, Blocks, Change
from axk1.serve.errors import Refusal
from axk1.serve.replies import Order, Running
from axk1.serve.routes.common import (
    MAX_LOGPROBS,
    STREAMED,
    Count,
    Events,
    Int,
    Sampled,
    Tools,
    budgets,
    event,
    headers,
    plan_tools,
    response_schema,
)
from axk1.serve.service import Service
from axk1.serve.thinking import choose

ROUTE = "/v1/responses"
_LOGPROBS = "message.output_text.logprobs"


class ResponsesBody(Sampled):
    """The body of a responses request."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Count | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[str] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking_budget: Int | None = None
    thinking_token_budget: Int | None = None
    budget_tokens: Int | None = None


def add_routes(routes: FastAPI, service: Service) -> None:
    """Adds the routes of this dialect."""

    @routes.post(ROUTE, responses=STREAMED)
    async def respond(body: ResponsesBody, http: Request) -> Response:
        """Answers an input, whole or streamed."""
        ignored = body.others(ROUTE)
        model = service.model(body.model)
        order, unread = await _order(service, body, http)
        running = await service.start("resp_", order, http)
        telling = _Telling(service, body, running, model)
        told = headers(running, [*ignored, *unread])
        if body.stream:
            return Events(service, running, telling.stream(http), told)
        (whole,) = await service.collect(running, http)
        return JSONResponse(telling.response(whole.blocks), headers=told)

    @routes.post(ROUTE + "/{id}/answer")
    async def answer_now(id: str, http: Request) -> dict[str, Any]:
        """Answer now: ends the reasoning of a response that is being streamed."""
        service.answer_now(id, http)
        return {"id": id, "object": "response.answer", "reasoning_ended": True}


async def _order(service: Service, body: ResponsesBody, http: Request) -> tuple[Order, list[str]]:
    answer = response_schema((body.text or {}).get("format"), "text.format")
    tools, unread = _tools(service, body, answer)
    effort = (body.reasoning or {}).get("effort")
    thinking = choose(service.settings.think, template=body.chat_template_kwargs, effort=effort, budgets=budgets(body))
    logprobs = _LOGPROBS in (body.include or []) or body.top_logprobs
    unread += [f"include.{name}" for name in body.include or [] if name != _LOGPROBS]
    unread += [f"text.{name}" for name in body.text or {} if name != "format"]
    unread += [f"reasoning.{name}" for name in body.reasoning or {} if name != "effort"]
    order = Order(
        prompt=await service.prompt(http, _messages(body), thinking.think, tools.shown, body.cache_salt or ""),
        thinking=thinking,
        sampling=body.sampling(),
        max_new_tokens=body.max_output_tokens,
        ignore_end=bool(body.ignore_eos),
        tools=tools.read,
        parallel=body.parallel_tool_calls is not False,
        grammar=tools.grammar,
        top_logprobs=(body.top_logprobs or 0) if logprobs else None,
        tenant=body.cache_salt or "",
    )
    return order, unread


def _tools(service: Service, body: ResponsesBody, answer: Any) -> tuple[Tools, list[str]]:
    """Functions as chats have them, and the kinds of tools that this server does not run."""
    unread = [f"tools.{tool.get('type')}" for tool in body.tools or [] if tool.get("type") != "function"]
    names = ("name", "description", "parameters", "strict")
    tools = [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
        for tool in body.tools or []
        if tool.get("type") == "function"
    ]
    mode, name = _tool_choice(body.tool_choice)
    return plan_tools(service, tools, mode, name, body.parallel_tool_calls is not False, answer), unread


def _tool_choice(choice: Any) -> tuple[str, str | None]:
    if choice is None or choice == "auto":
        return "auto", None
    if choice in ("none", "required"):
        return choice, None
    if isinstance(choice, Mapping) and choice.get("type") == "function" and isinstance(choice.get("name"), str):
        return "required", choice["name"]
    raise Refusal("tool_choice must be none, auto, required or a function's name.", param="tool_choice")


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """The input as a chat's messages: what belongs to one turn of the model (reasoning, text, calls) is one message."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items: list[dict[str, Any]] = (
        [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    )
    for item in items:
        kind = item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "function_call_output":
            output = item.get("output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind in ("message", "reasoning", "function_call"):
            _add_to_turn(messages, kind, item)
        else:
            raise Refusal(f"The input has an item of type {str(kind)[:100]!r}, which is not read.", param="input")
    return messages


def _add_to_turn(messages: list[dict[str, Any]], kind: str, item: Mapping[str, Any]) -> None:
    turn = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if turn is None or (kind == "reasoning" and (turn["content"] or turn.get("tool_calls"))):
        turn = dict[str, Any](role="assistant", content="")
        messages.append(turn)
    if kind == "reasoning":
        parts = [*(item.get("content") or []), *([] if item.get("content") else item.get("summary") or [])]
        texts = [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
        turn["reasoning_content"] = turn.get("reasoning_content", "") + "".join(texts)
    elif kind == "message":
        content = item.get("content")
        parts = [content] if isinstance(content, str) else content if isinstance(content, list) else [content]
        turn["content"] = [*([turn["content"]] if isinstance(turn["content"], str) else turn["content"]), *parts]
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as responses tell it again: nothing is left out."""
    return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}


class _Telling:
    """A reply in this dialect: items with ids, and events with numbers."""

    def __init__(self, service: Service, body: ResponsesBody, running: Running, model: str) -> None:
        self._service, self._body, self._running, self._model = service, body, running, model
        self._number = -1
        self._ids: dict[int, str] = {}
        self._mode, self._name = _tool_choice(body.tool_choice)

    def response(self, blocks: list[Block], error: Refusal | None = None) -> dict[str, Any]:
        """The response as it stands."""
        (choice,) = self._running.choices
        status = "failed" if error else {None: "in_progress", "length": "incomplete"}.get(choice.finish, "completed")
        counts = self._running.usage
        return {
            "id": self._running.id,
            "object": "response",
            "created_at": self._running.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._body.instructions,
            "max_output_tokens": self._body.max_output_tokens,
            "model": self._model,
            "output": [self._item(block, True) for block in blocks],
            "parallel_tool_calls": self._body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (self._body.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": choice.order.sampling.temperature,
            "text": {"format": self._format()},
            "tool_choice": {"type": "function", "name": self._name} if self._name else self._mode,
            "tools": [_shown(tool) for tool in self._body.tools or [] if tool.get("type") == "function"],
            "top_p": choice.order.sampling.top_p,
            "truncation": "disabled",
            "background": False,
            "presence_penalty": choice.order.sampling.presence_penalty,
            "frequency_penalty": choice.order.sampling.frequency_penalty,
            "top_logprobs": choice.order.top_logprobs or 0,
            "max_tool_calls": None,
            "service_tier": "default",
            "safety_identifier": None,
            "prompt_cache_key": None,
            "metadata": {},
            "usage": {
                "input_tokens": counts.prompt,
                "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
                "output_tokens": counts.completion,
                "output_tokens_details": {"reasoning_tokens": counts.reasoning},
                "total_tokens": counts.prompt + counts.completion,
            }
            if choice.finish
            else None,
        }

    def _format(self) -> dict[str, Any]:
        """The text's format, which was checked where it is not plain."""
        form = (self._body.text or {}).get("format")
        if form is None or response_schema(form) is None:
            return {"type": "text"}
        left_out = {"name": "answer", "strict": False}
        return (left_out if form["type"] == "json_schema" else {}) | form

    def _entries(self, tokens: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
        return [self._service.texts.entry(token) for token in tokens]

    def _item(self, block: Block, done: bool) -> dict[str, Any]:
        names = {"reasoning": "rs", "text": "msg", "call": "fc"}
        id = self._ids.setdefault(block.index, f"{names[block.kind]}_{uuid.uuid4().hex[:24]}")
        status = "completed" if done else "in_progress"
        if block.kind == "reasoning":
            content = [{"type": "reasoning_text", "text": block.text}] if done else []
            return {"id": id, "type": "reasoning", "summary": [], "content": content, "status": status}
        if block.kind == "text":
            part = [self._part(block)] if done else []
            return {"id": id, "type": "message", "role": "assistant", "status": status, "content": part}
        call = {"id": id, "type": "function_call", "call_id": f"call_{id}", "name": block.name}
        return call | {"arguments": block.text if done else "", "status": status}

    def _part(self, block: Block) -> dict[str, Any]:
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        scores = self._entries(block.logprobs)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": scores}

    async def stream(self, http: Request) -> AsyncIterator[ServerSentEvent]:
        """Events as they come."""
        blocks = Blocks()
        yield self._event("response.created", response=self.response([]))
        yield self._event("response.in_progress", response=self.response([]))
        try:
            async for step in self._service.steps(self._running):
                for each in step.events:
                    for change in blocks.feed(each):
                        for told in self._changes(change):
                            yield told
            for change in blocks.finish():
                for told in self._changes(change):
                    yield told
            response = self.response(blocks.all)
            yield self._event(f"response.{response['status']}", response=response)
        except Refusal as refusal:
            yield self._event("response.failed", response=self.response(blocks.all, error=refusal))

    def _event(self, kind: str, **fields: Any) -> ServerSentEvent:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)

    def _changes(self, change: Change) -> list[ServerSentEvent]:
        block, at = change.block, {"output_index": change.block.index}
        where = {**at, "item_id": self._item(block, False)["id"]}
        if block.kind == "call":
            return self._call_changes(change, at, where)
        inside = {**where, "content_index": 0}
        kind = "reasoning_text" if block.kind == "reasoning" else "output_text"

        def scores(tokens: Iterable[TokenLogprobs]) -> dict[str, Any]:
            return {} if block.kind == "reasoning" else {"logprobs": self._entries(tokens)}

        if change.what == "begins":
            added = self._event("response.output_item.added", **at, item=self._item(block, False))
            return [added, self._event("response.content_part.added", **inside, part=self._part(block))]
        if change.what == "grows":
            return [self._event(f"response.{kind}.delta", **inside, delta=change.text, **scores(change.logprobs))]
        return [
            self._event(f"response.{kind}.done", **inside, text=block.text, **scores(block.logprobs)),
            self._event("response.content_part.done", **inside, part=self._part(block)),
            self._event("response.output_item.done", **at, item=self._item(block, True)),
        ]

    def _call_changes(self, change: Change, at: dict[str, Any], where: dict[str, Any]) -> list[ServerSentEvent]:
        block, kind = change.block, "response.function_call_arguments"
        if change.what == "begins":
            return [self._event("response.output_item.added", **at, item=self._item(block, False))]
        if change.what == "grows":
            return [self._event(f"{kind}.delta", **where, delta=change.text)]
        return [
            self._event(f"{kind}.done", **where, name=block.name, arguments=block.text),
            self._event("response.output_item.done", **at, item=self._item(block, True)),
        ]
