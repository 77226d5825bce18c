"""OpenAI's ``/v1/chat/completions``."""

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from axk1.serve.blocks import Whole
from axk1.serve.calls import CallArguments, CallStart, Text
from axk1.serve.errors import Refusal
from axk1.serve.replies import Event, Order, Running, Step, Thought, Usage
from axk1.serve.routes.common import (
    MAX_LOGPROBS,
    STREAMED,
    Continued,
    Count,
    Events,
    Int,
    budgets,
    event,
    failure,
    headers,
    plan_tools,
    response_schema,
    structured,
)
from axk1.serve.service import Service
from axk1.serve.thinking import choose

ROUTE = "/v1/chat/completions"


class ChatBody(Continued):
    """The body of a chat request."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    thinking: dict[str, Any] | None = None
    thinking_budget: Int | None = None
    thinking_token_budget: Int | None = None
    budget_tokens: Int | None = None


def add_routes(routes: FastAPI, service: Service) -> None:
    """Adds the routes of this dialect."""

    @routes.post(ROUTE, responses=STREAMED)
    async def chat(body: ChatBody, http: Request) -> Response:
        """Answers a conversation, whole or streamed."""
        ignored = body.others(ROUTE)
        model = service.model(body.model)
        counting = body.counting()
        order = await _order(service, body, http)
        running = await service.start("chatcmpl-", order, http)
        if body.stream:
            return Events(service, running, _stream(service, counting, running, model, http), headers(running, ignored))
        wholes = await service.collect(running, http)
        return JSONResponse(_whole(service, running, wholes, model), headers=headers(running, ignored))

    @routes.post(ROUTE + "/{id}/answer")
    async def answer_now(id: str, http: Request) -> dict[str, Any]:
        """Answer now: ends the reasoning of a reply that is being streamed."""
        service.answer_now(id, http)
        return {"id": id, "object": "chat.completion.answer", "reasoning_ended": True}


async def _order(service: Service, body: ChatBody, http: Request) -> Order:
    mode, name = _tool_choice(body.tool_choice, bool(body.tools))
    answer = response_schema(body.response_format)
    rules = structured(body.structured_outputs, service)
    parallel = body.parallel_tool_calls is not False
    tools = plan_tools(service, body.tools, mode, name, parallel, answer)
    if rules is not None and tools.grammar is not None:
        raise Refusal(
            "structured_outputs excludes response_format and calls that must come.", param="structured_outputs"
        )
    template = body.chat_template_kwargs
    if body.enable_thinking is not None:
        template = {"enable_thinking": body.enable_thinking, **(template or {})}
    thinking = choose(
        service.settings.think,
        template=template,
        effort=body.reasoning_effort,
        budgets=budgets(body),
        thinking=body.thinking,
    )
    return Order(
        prompt=await service.prompt(http, body.messages, thinking.think, tools.shown, body.cache_salt or ""),
        thinking=thinking,
        sampling=body.sampling(),
        choices=body.n or 1,
        max_new_tokens=_max_tokens(body),
        tools=tools.read,
        parallel=parallel,
        grammar=rules or tools.grammar,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs or body.top_logprobs else None,
        **body.ends(),
    )


def _max_tokens(body: ChatBody) -> int | None:
    given = {value for value in (body.max_tokens, body.max_completion_tokens) if value is not None}
    if len(given) > 1:
        raise Refusal("max_tokens and max_completion_tokens differ; give one of them.", param="max_completion_tokens")
    if 0 in given:
        raise Refusal("max_tokens is 0; a reply has at least one token.", param="max_tokens")
    return next(iter(given), None)


def _tool_choice(choice: Any, any_tools: bool) -> tuple[str, str | None]:
    """Mode and name: none, auto, required, or a function's name."""
    if choice is None:
        return ("auto" if any_tools else "none"), None
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return choice, None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise Refusal("tool_choice must be none, auto, required or a function's name.", param="tool_choice")
    return "required", name


def usage(counts: Usage) -> dict[str, Any]:
    """Token counts as OpenAI's clients read them."""
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
    }


def _whole(service: Service, running: Running, wholes: list[Whole], model: str) -> dict[str, Any]:
    return {
        "id": running.id,
        "object": "chat.completion",
        "created": running.created,
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "message": _message(whole),
                "logprobs": _logprobs(service, choice.order, whole.logprobs),
                "finish_reason": choice.finish,
            }
            for choice, whole in zip(running.choices, wholes, strict=True)
        ],
        "usage": usage(running.usage),
    }


def _message(whole: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.answer or (None if whole.calls else "")}
    message["refusal"] = None
    if whole.reasoning:
        message |= {"reasoning": whole.reasoning, "reasoning_content": whole.reasoning}
    if whole.calls:
        message["tool_calls"] = [
            {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": call.text}}
            for call in whole.calls
        ]
    return message


def call_id() -> str:
    """A new id for a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _logprobs(service: Service, order: Order, tokens: Any) -> dict[str, Any] | None:
    if order.top_logprobs is None:
        return None
    return {"content": [service.texts.entry(token) for token in tokens], "refusal": None}


async def _stream(
    service: Service, counting: tuple[bool, bool], running: Running, model: str, http: Request
) -> AsyncIterator[ServerSentEvent]:
    counted, always = counting
    common = {"id": running.id, "object": "chat.completion.chunk", "created": running.created, "model": model}

    def chunk(*choices: dict[str, Any], counts: bool = always) -> ServerSentEvent:
        told = {"usage": usage(running.usage) if counts else None} if counted or always else {}
        return event({**common, "choices": list(choices), **told})

    begun: set[int] = set()
    try:
        async for step in service.steps(running):
            if step.index not in begun:  # no earlier: clients take the first chunk for the first token
                begun.add(step.index)
                yield chunk(_delta(step.index, {"role": "assistant", "content": ""}))
            for each in _deltas(service, running, step):
                yield chunk(each)
        if counted:
            yield chunk(counts=True)
    except Refusal as refusal:
        yield event(failure(http, refusal))
    yield ServerSentEvent("[DONE]", sep="\n")


def _deltas(service: Service, running: Running, step: Step) -> list[dict[str, Any]]:
    """A choice's part of the chunks that tell a step; its log-probabilities come with the first."""
    choice = running.choices[step.index]
    found = [_delta(step.index, delta) for each in step.events if (delta := _content(each)) is not None]
    if step.logprobs:
        found = found or [_delta(step.index, {})]
        found[0]["logprobs"] = _logprobs(service, choice.order, step.logprobs)
    if choice.finish:
        found.append({**_delta(step.index, {}), "finish_reason": choice.finish})
    return found


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _content(each: Event) -> dict[str, Any] | None:
    match each:
        case Thought(text):
            return {"reasoning": text, "reasoning_content": text}
        case Text(text):
            return {"content": text}
        case CallStart(index, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id(), "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return None
