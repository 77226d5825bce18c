"""OpenAI's ``/v1/completions``: text is continued as it is, and its own log-probabilities can be had (``echo``)."""

import codecs
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from axk1.generation.sampling import TokenLogprobs
from axk1.serve.calls import Text
from axk1.serve.errors import Refusal, check_count
from axk1.serve.replies import Choice, Order, Running, Step
from axk1.serve.routes.chat import usage
from axk1.serve.routes.common import MAX_LOGPROBS, STREAMED, Continued, Events, Int, event, failure, headers, structured
from axk1.serve.service import Service
from axk1.serve.tokens import TokenTexts, finite

ROUTE = "/v1/completions"
Logprobs = Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)]
_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionBody(Continued):
    """The body of a completions request."""

    prompt: str | list[str] | list[Int] | list[list[Int]]
    echo: bool | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    add_special_tokens: bool | None = None
    skip_special_tokens: bool | None = None


@dataclass(slots=True)
class _Scores:
    """The log-probabilities of a choice so far, in the four lists of this dialect."""

    texts: TokenTexts
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    _length: int = 0

    def add(self, id: int, score: TokenLogprobs | None) -> None:
        self.tokens.append(self.texts.name(id))
        self.token_logprobs.append(None if score is None else finite(score.logprob))
        self.top_logprobs.append(None if score is None else self._top(score))
        self.text_offset.append(self._length)
        self._length += len(self._decoder.decode(self.texts.bytes(id)))

    def _top(self, score: TokenLogprobs) -> dict[str, float]:
        pairs = [*score.top, (score.id, score.logprob)]
        return {self.texts.name(id): finite(logprob) for id, logprob in pairs}

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        taken = {name: getattr(self, name) for name in names}
        for name in names:
            setattr(self, name, [])
        return taken


def add_routes(routes: FastAPI, service: Service) -> None:
    """Adds the route of this dialect."""

    @routes.post(ROUTE, responses=STREAMED)
    async def complete(body: CompletionBody, http: Request) -> Response:
        """Continues one prompt or more, whole or streamed."""
        ignored = body.others(ROUTE)
        model = service.model(body.model)
        body.counting()
        prompts = _prompts(service, body)
        running = await service.start("cmpl-", [_order(service, body, ids) for ids, _ in prompts], http)
        telling = _Telling(service, body, running, [text for _, text in prompts], model)
        if body.stream:
            return Events(service, running, telling.stream(http), headers(running, ignored))
        return JSONResponse(await telling.whole(http), headers=headers(running, ignored))


def _prompts(service: Service, body: CompletionBody) -> list[tuple[list[int], str]]:
    """Ids and text of each prompt.

    Raises:
        Refusal: there is none, too many, or one is empty.
    """
    given: Any = body.prompt
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    check_count(len(prompts), service.settings.max_prompts, "prompts", "prompt")
    pairs = [_encoded(service, body, prompt) for prompt in prompts]
    if not all(ids for ids, _ in pairs):
        raise Refusal("A prompt is empty; there must be at least one token to continue.", param="prompt")
    return pairs


def _encoded(service: Service, body: CompletionBody, prompt: Any) -> tuple[list[int], str]:
    if isinstance(prompt, str):
        return service.encode(prompt, body.add_special_tokens is not False), prompt
    if any(not 0 <= id < service.vocabulary for id in prompt):
        raise Refusal("The prompt has token ids outside of the vocabulary.", param="prompt")
    return prompt, str(service.tokenizer.decode(prompt, skip_special_tokens=False)) if body.echo else ""


def _order(service: Service, body: CompletionBody, prompt: list[int]) -> Order:
    wanted = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    asked = body.prompt_logprobs if body.prompt_logprobs is not None else body.logprobs if body.echo else None
    if wanted == 0 and not body.echo:
        raise Refusal("max_tokens is 0, which is for echo with logprobs.", param="max_tokens")
    return Order(
        prompt=prompt,
        sampling=body.sampling(),
        choices=body.n or 1,
        max_new_tokens=wanted,
        grammar=structured(body.structured_outputs, service),
        top_logprobs=body.logprobs,
        prompt_logprobs=0 if wanted == 0 and asked is None else asked,
        raw=True,
        skip_special=body.skip_special_tokens is not False,
        **body.ends(),
    )


class _Telling:
    """A reply in this dialect."""

    def __init__(
        self, service: Service, body: CompletionBody, running: Running, prompts: Sequence[str], model: str
    ) -> None:
        self._service, self._body, self._running = service, body, running
        self._prompts = [prompts[i // (body.n or 1)] for i in range(len(running.choices))]
        self._scores = [_Scores(service.texts) for _ in running.choices]
        self._echoed = [not body.echo for _ in running.choices]
        self._scored: set[int] = set()
        self._common = {"id": running.id, "object": "text_completion", "created": running.created, "model": model}

    async def whole(self, http: Request) -> dict[str, Any]:
        """All choices at once."""
        wholes = await self._service.collect(self._running, http)
        choices = []
        for choice, whole in zip(self._running.choices, wholes, strict=True):
            text = self._echo(choice) + whole.answer
            choices.append(self._choice(choice, text, whole.logprobs) | {"finish_reason": choice.finish})
        return {**self._common, "choices": choices, "usage": usage(self._running.usage)}

    async def stream(self, http: Request) -> AsyncIterator[ServerSentEvent]:
        """Chunks as they come."""
        counted, always = self._body.counting()

        def chunk(choices: list[dict[str, Any]], counts: bool) -> ServerSentEvent:
            told = {"usage": usage(self._running.usage) if counts else None} if counted or always else {}
            return event({**self._common, "choices": choices, **told})

        try:
            async for step in self._service.steps(self._running):
                choice = self._running.choices[step.index]
                text = self._echo(choice) + _text(step)
                if text or step.logprobs or choice.finish:
                    told = self._choice(choice, text, step.logprobs) | {"finish_reason": choice.finish}
                    yield chunk([told], always)
            if counted:
                yield chunk([], True)
        except Refusal as refusal:
            yield event(failure(http, refusal))
        yield ServerSentEvent("[DONE]", sep="\n")

    def _echo(self, choice: Choice) -> str:
        """The prompt's text, the first time, where it is asked for; its log-probabilities with it."""
        if self._echoed[choice.index]:
            return ""
        self._echoed[choice.index] = True
        if self._body.logprobs is not None:
            scores = choice.generation.prompt_logprobs or [None] * len(choice.order.prompt)
            for id, score in zip(choice.order.prompt, scores, strict=True):
                self._scores[choice.index].add(id, score)
        return self._prompts[choice.index]

    def _choice(self, choice: Choice, text: str, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        told: dict[str, Any] = {"index": choice.index, "text": text, "logprobs": None}
        if self._body.logprobs is not None:
            for score in logprobs:
                self._scores[choice.index].add(score.id, score)
            told["logprobs"] = self._scores[choice.index].take()
        if self._body.prompt_logprobs is not None and choice.index not in self._scored:
            self._scored.add(choice.index)  # with the first chunk
            told["prompt_logprobs"] = self._prompt_logprobs(choice)
        return told

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, Any] | None]:
        """As vLLM has them: by token id."""
        told = []
        for score in choice.generation.prompt_logprobs or []:
            if score is None:
                told.append(None)
                continue
            pairs = {id: logprob for id, logprob in [*score.top, (score.id, score.logprob)]}
            texts = self._service.texts
            told.append({str(id): {"logprob": finite(p), "decoded_token": texts.name(id)} for id, p in pairs.items()})
        return told


def _text(step: Step) -> str:
    return "".join(each.text for each in step.events if isinstance(each, Text))
