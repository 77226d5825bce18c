"""What the dialects share: bodies, streams, and what a choice of tools means."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from axk1.chat.messages import check_stop, check_tools
from axk1.generation.sampling import Sampling
from axk1.serve import fields, grammar
from axk1.serve.errors import Refusal, log, refusing, shape
from axk1.serve.replies import Running
from axk1.serve.service import SEED_END, Service
from axk1.serve.thinking import BUDGETS


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is the integer 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_integral)]
Int64 = Annotated[Int, Field(ge=-(2**63), lt=2**63)]
Natural = Annotated[Int, Field(ge=0, lt=2**31)]
Count = Annotated[Int, Field(ge=1, lt=2**31)]
MAX_LOGPROBS = 20


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The reply, whole or as events.", "content": {"application/json": {}, "text/event-stream": {}}}
}
"""What routes answer that can stream, for the description of the API."""


class Body(BaseModel):
    """A request's body: what is declared is honoured, what else is there is for :func:`axk1.serve.fields.ignored`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: str | None = None

    def others(self, route: str) -> list[str]:
        """Fields that were taken and change nothing.

        Raises:
            Refusal: one would change the answer.
        """
        return fields.ignored(route, self.model_extra or {})


class Sampled(Body):
    """The options of sampling, under the names of OpenAI and vLLM."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None

    def sampling(self) -> Sampling:
        """The options, with the model's defaults for those left out.

        Raises:
            Refusal: for values out of range.
        """
        names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = 0 if self.top_k == -1 else self.top_k
        if self.seed is not None:
            given["seed"] = self.seed % SEED_END
        with refusing():
            return Sampling(**given, logit_bias=_biases(self.logit_bias or {}))


class Continued(Sampled):
    """What chats and completions have in common."""

    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: Count | None = None
    max_tokens: Natural | None = None
    min_tokens: Natural | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    structured_outputs: dict[str, Any] | None = None

    def ends(self) -> dict[str, Any]:
        """How a reply ends, as an order takes it.

        Raises:
            Refusal: for stop strings that are none.
        """
        with refusing("stop"):
            stop = check_stop(self.stop)
        return {
            "stop": stop,
            "stop_ids": frozenset(self.stop_token_ids or ()),
            "ignore_end": bool(self.ignore_eos),
            "min_new_tokens": self.min_tokens or 0,
            "tenant": self.cache_salt or "",
        }

    def counting(self) -> tuple[bool, bool]:
        """Whether usage comes at the end of a stream, and whether with every chunk.

        Raises:
            Refusal: an option is neither true nor false.
        """
        options = self.stream_options or {}
        values = [options.get(name) for name in ("include_usage", "continuous_usage_stats")]
        if not all(value is None or isinstance(value, bool) for value in values):
            raise Refusal("stream_options must be true or false.", param="stream_options")
        return bool(values[0]), bool(values[1])


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    if len(given) > 4096:
        raise ValueError(f"logit_bias has {len(given)} entries; 4096 are taken.")
    try:
        return {int(id): value for id, value in given.items()}
    except ValueError:
        raise ValueError("logit_bias must be numbers by token id.") from None


def budgets(body: Body) -> dict[str, int | None]:
    """The thinking budgets that a body names."""
    return {name: getattr(body, name, None) for name in BUDGETS}


class Events(EventSourceResponse):
    """A stream of events of one reply, which is given up with it: by the reader, or because nobody reads.

    Args:
        service: whose settings hold the times.
        running: the reply.
        content: its events.
        headers: of the response.
    """

    def __init__(
        self, service: Service, running: Running, content: AsyncIterator[ServerSentEvent], headers: dict[str, str]
    ) -> None:
        super().__init__(
            content,
            headers=headers,
            ping=service.settings.ping,
            ping_message_factory=lambda: ServerSentEvent(comment="still here", sep="\n"),
            sep="\n",
            send_timeout=service.settings.send_timeout,
        )
        self._release = lambda: service.release(running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("A reader took nothing for %s seconds and was given up", self.send_timeout)
        finally:
            self._release()


def event(data: Mapping[str, Any], name: str | None = None) -> ServerSentEvent:
    """An event of a stream."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ServerSentEvent(text, event=name, sep="\n")


def failure(http: Request, refusal: Refusal) -> dict[str, Any]:
    """The body of an error that comes in the midst of a stream."""
    return shape(http.url.path, refusal)


def headers(running: Running, ignored: Sequence[str]) -> dict[str, str]:
    """The headers of a reply: the fields that changed nothing, and the seed, with which the reply comes again."""
    seed = running.choices[0].order.sampling.seed
    return {**fields.header(list(ignored)), "x-axk1-seed": str(seed), "x-request-id": running.id}


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request's tools mean for its reply."""

    shown: list[Any] | None
    """What the template is given."""
    read: bool
    """Whether calls are taken out of the answer."""
    grammar: str | None


def plan_tools(service: Service, tools: Any, mode: str, name: str | None, parallel: bool, answer: Any = None) -> Tools:
    """Tools and answer's schema as what is shown, what is read, and the grammar.

    Args:
        tools: as OpenAI's chat has them.
        mode: none, auto or required.
        name: the function that must be called, in required.
        parallel: whether there may be several calls.
        answer: a schema for the answer, None for any.

    Raises:
        Refusal: for tools that are none, or a choice that is not among them.
    """
    limits = service.settings
    service.check_tools(tools)
    with refusing("tools"):
        checked = check_tools(tools)
    if mode != "none" and mode != "auto" and not checked:
        raise Refusal("tool_choice asks for a call, but there are no tools.", param="tool_choice")
    if not checked or mode == "none":
        return Tools(None, False, None if answer is None else grammar.json_grammar(answer, limits))
    chosen = [tool for tool in checked if name is None or tool["function"]["name"] == name]
    if not chosen:
        raise Refusal(f"tool_choice names {name!r}, which is no tool of this request.", param="tool_choice")
    strict = any(tool["function"].get("strict") for tool in chosen)
    if mode == "auto" and answer is None and not strict:
        return Tools(checked, True, None)
    schema = {"type": "object"} if answer is True else answer
    rules = grammar.call_grammar(
        chosen,
        service.tokenizer,
        limits,
        parallel=parallel,
        answer=schema if mode == "auto" else None,
        text=mode == "auto" and answer is None,
    )
    return Tools(checked, True, rules)


def structured(given: Mapping[str, Any] | None, service: Service) -> str | None:
    """The grammar of ``structured_outputs``: one of json, json_object, regex, choice, grammar.

    Raises:
        Refusal: for anything else.
    """
    asked = {key: value for key, value in (given or {}).items() if value not in (None, False)}
    if not asked:
        return None
    kind, value = next(iter(asked.items()))
    makers = {
        "json": (dict, grammar.json_grammar),
        "json_object": (bool, grammar.json_grammar),
        "regex": (str, grammar.regex_grammar),
        "choice": (list, grammar.choice_grammar),
        "grammar": (str, grammar.lark_grammar),
    }
    if len(asked) > 1 or kind not in makers:
        raise Refusal(f"structured_outputs takes one of {', '.join(makers)}.", param="structured_outputs")
    wanted, make = makers[kind]
    if not isinstance(value, wanted) or (kind == "choice" and not all(isinstance(text, str) for text in value)):
        raise Refusal(f"structured_outputs.{kind} must be a {wanted.__name__}.", param="structured_outputs")
    return make(value, service.settings)


def response_schema(form: Mapping[str, Any] | None, param: str = "response_format") -> Any:
    """The schema that a ``response_format`` asks for: None for text, True for any object.

    Raises:
        Refusal: it is of an unknown type.
    """
    if form is None:
        return None
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return True
    if kind != "json_schema":
        raise Refusal(f"{param}.type is {str(kind)[:100]!r}; use text, json_object or json_schema.", param=param)
    inner = form.get("json_schema", form)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise Refusal(f"{param} has no schema.", param=param)
    return dict(schema)
