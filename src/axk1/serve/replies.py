"""From what a request asks for to an engine's requests, and from their tokens to events: one way for all dialects.

A reply told whole is the sum of the events of a streamed one, so the two cannot differ.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from transformers import LogitsProcessor, MinNewTokensLengthLogitsProcessor, PreTrainedTokenizerFast

from axk1.chat.parser import Delta
from axk1.chat.reply import ReplyBuilder, StopStrings, TokenStream
from axk1.chat.tools import extract_tool_calls
from axk1.engine.interface import Chunk, Generation, Reasoning, Request
from axk1.generation.sampling import Sampling, TokenLogprobs, row_seeds
from axk1.serve.calls import CallArguments, CallEnd, CallEvent, CallStart, CallStream, Text
from axk1.serve.grammar import Grammar
from axk1.serve.thinking import Thinking

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the reasoning."""

    text: str


Event = Thought | CallEvent


@dataclass(frozen=True, slots=True)
class Step:
    """What new tokens of a choice brought: perhaps no event yet, while text is held back."""

    index: int
    """Of the choice."""
    events: list[Event]
    logprobs: list[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, and those that were found in the prefix tree; of all choices, tags and ends included, and
    those of their reasoning."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """What a request asks for, whatever its dialect."""

    prompt: list[int]
    thinking: Thinking = field(default_factory=lambda: Thinking(False))
    sampling: Sampling = field(default_factory=Sampling)
    choices: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: list[str] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    tools: bool = False
    """Whether calls are taken out of the answer."""
    parallel: bool = True
    """Whether there may be more than one."""
    grammar: str | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    raw: bool = False
    """Whether the reply is text as it comes, without reasoning and calls."""
    skip_special: bool = True
    """Whether raw text leaves out control tokens."""
    drafts: bool = True
    tenant: str = ""

    def requests(
        self, processors: Sequence[Sequence[LogitsProcessor]], reasoning: Reasoning | None, ends: frozenset[int]
    ) -> list[Request]:
        """One request of the engine for each choice, with seeds of their own."""
        seeds = row_seeds(self.sampling.seed or 0, self.choices)
        return [
            Request(
                self.prompt,
                replace(self.sampling, seed=seed),
                max_new_tokens=self.max_new_tokens,
                stop_ids=frozenset() if self.ignore_end else ends | self.stop_ids,
                processors=[*self._least(ends), *own],
                top_logprobs=self.top_logprobs,
                prompt_logprobs=self.prompt_logprobs,
                reasoning=reasoning,
                drafts=self.drafts,
                tenant=self.tenant,
            )
            for seed, own in zip(seeds, processors, strict=True)
        ]

    def _least(self, ends: frozenset[int]) -> list[LogitsProcessor]:
        if not self.min_new_tokens:
            return []
        stops = sorted(ends | self.stop_ids)
        return [MinNewTokensLengthLogitsProcessor(len(self.prompt), self.min_new_tokens, stops)]


class Failed(Exception):
    """The engine could not finish a reply; its ``__cause__`` tells why."""


class Choice:
    """A reply on its way: iterate over ``steps()``, then read ``finish`` and the counts."""

    def __init__(self, index: int, order: Order, generation: Generation, tokenizer: PreTrainedTokenizerFast) -> None:
        self.index, self.generation = index, generation
        self.finish: Finish | None = None
        self.tokens = 0
        """Taken so far: the tokens that usage counts, tags and the end included."""
        self.incomplete = False
        """Whether it was ended before its grammar's end, as no token fitted."""
        self.order = order
        self._calls = CallStream() if order.tools else None
        stop_ids = generation.request.stop_ids
        self._text = (
            _Raw(tokenizer, stop_ids, order)
            if order.raw
            else ReplyBuilder(tokenizer, order.thinking.think, len(order.prompt), stop_ids, order.stop)
        )
        self._thoughts: list[str] = []
        self._scores: list[TokenLogprobs] = []  # of tokens whose text is still held back

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning, without its closing tag."""
        return self._text.reasoning_tokens

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the reply."""
        return self._text.stop_string

    async def steps(self) -> AsyncIterator[Step]:
        """Steps as they come. The generation is cancelled when the iteration ends early.

        Raises:
            Failed: the model or a processor failed, the engine was closed, or a grammar left nothing to write.
        """
        try:
            async for chunk in self.generation:
                step = self._take(chunk)
                self._check()
                yield step
                if self.finish is not None:
                    break
            if self.finish is None:
                yield self._end()
        finally:
            self.generation.cancel()

    def _take(self, chunk: Chunk) -> Step:
        events: list[Event] = []
        before = self.tokens
        for at, token in enumerate(chunk.tokens):
            self.tokens += 1
            events += self._of_token(token, chunk.logprobs[at] if chunk.logprobs else None)
            if self._text.finish_reason is not None or self._is_enough(events):
                events += self._close("stop")
                break
        return Step(self.index, _joined(events), (chunk.logprobs or [])[: self.tokens - before])

    def _check(self) -> None:
        """Refuses a reply that was ended before it was complete, as no token fitted its grammar.

        Raises:
            Failed: it was.
        """
        try:
            for processor in self.generation.request.processors if self.finish is not None else ():
                if isinstance(processor, Grammar):
                    processor.check(self.tokens)
        except ValueError as error:
            self.finish, self.incomplete = None, True
            raise Failed("The reply is not complete.") from error

    def _of_token(self, token: int, score: TokenLogprobs | None) -> list[Event]:
        """The events of one token; text is told with the scores of its tokens, those that were held back before too."""
        of_text = self._in_text
        events = [event for delta in self._text.push(token) for event in self._event(delta.kind, delta.text)]
        if score is not None and of_text and self._in_text and token not in self.generation.request.stop_ids:
            self._scores.append(score)
        return self._scored(events)

    @property
    def _in_text(self) -> bool:
        return self._text.closed and not (self._calls is not None and self._calls.inside)

    def _scored(self, events: list[Event]) -> list[Event]:
        first = next((at for at, event in enumerate(events) if isinstance(event, Text)), None)
        if first is not None and self._scores:
            events[first] = Text(cast(Text, events[first]).text, tuple(self._scores))
            self._scores.clear()
        return events

    def _event(self, kind: str, text: str) -> list[Event]:
        if kind == "reasoning":
            self._thoughts.append(text)
            return [Thought(text)]
        return list(self._calls.feed(text)) if self._calls is not None else [Text(text)]

    def _is_enough(self, events: list[Event]) -> bool:
        """Whether the only call that is wanted is there; what follows it is left out."""
        if self.order.parallel:
            return False
        first = next((at for at, event in enumerate(events) if isinstance(event, CallEnd)), None)
        if first is None:
            return False
        del events[first + 1 :]
        self._calls = None
        return True

    def _end(self) -> Step:
        """The generation is over, without a token that said so."""
        reason = self.generation.finish_reason
        if reason in ("error", "cancelled"):
            raise Failed(f"The reply was {reason}.") from self.generation.error
        return Step(self.index, _joined(self._close("length")), [])

    def _close(self, reason: Literal["stop", "length"]) -> list[Event]:
        called = not self.order.parallel and self.order.tools and self._calls is None
        events: list[Event] = []
        for delta in [] if called else self._text.finish(reason):
            events += self._event(delta.kind, delta.text)
        if self._calls is not None:
            events += self._calls.finish()
            if self._text.finish_reason == "stop" and not self._text.closed:
                events += self._call_of_reasoning()
            called = self._calls.calls > 0 or any(isinstance(event, CallStart) for event in events)
        self.finish = "tool_calls" if called and reason == "stop" else reason
        return self._scored(events)

    def _call_of_reasoning(self) -> list[Event]:
        """A model may forget to close its reasoning before it calls: the last complete block there is the call."""
        _, calls = extract_tool_calls("".join(self._thoughts))
        if not calls:
            return []
        arguments = json.dumps(calls[-1].arguments, ensure_ascii=False)
        return [CallStart(0, calls[-1].name), CallArguments(0, arguments), CallEnd(0)]


class Running:
    """A request that is being answered, in one choice or more."""

    def __init__(self, prefix: str, orders: list[Order], choices: list[Choice], tenant: str) -> None:
        self.id = f"{prefix}{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.orders, self.choices, self.tenant = orders, choices, tenant

    async def steps(self) -> AsyncIterator[Step]:
        """The steps of all choices as they come."""
        if len(self.choices) == 1:
            async for step in self.choices[0].steps():
                yield step
            return
        iterators = [choice.steps() for choice in self.choices]
        tasks = {asyncio.ensure_future(anext(each)): each for each in iterators}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    iterator = tasks.pop(task)
                    if not isinstance(task.exception(), StopAsyncIteration):
                        yield task.result()
                        tasks[asyncio.ensure_future(anext(iterator))] = iterator
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for iterator in iterators:
                await iterator.aclose()  # pyright: ignore[reportAttributeAccessIssue]

    def cancel(self) -> None:
        """Ends all choices within one step of the engine."""
        for choice in self.choices:
            choice.generation.cancel()

    def answer_now(self) -> None:
        """Closes the reasoning of all choices that still reason."""
        for choice in self.choices:
            choice.generation.end_reasoning()

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(
            sum(len(order.prompt) for order in self.orders),
            sum(choice.generation.cached_tokens for choice in self.choices[:: self.orders[0].choices]),
            sum(choice.tokens for choice in self.choices),
            sum(choice.reasoning_tokens for choice in self.choices),
        )


def _joined(events: list[Event]) -> list[Event]:
    """``events``, pieces of the same kind that follow each other as one."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        match event, last:
            case (Thought(text), Thought(before)):
                joined[-1] = Thought(before + text)
            case (Text(text, scores), Text(before, earlier)):
                joined[-1] = Text(before + text, earlier + scores)
            case (CallArguments(index, text), CallArguments(other, before)) if index == other:
                joined[-1] = CallArguments(index, before + text)
            case _:
                joined.append(event)
    return joined


class _Raw:
    """Text of a completion as it comes: what :class:`ReplyBuilder` is for a chat."""

    closed = True
    reasoning_tokens = 0

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_ids: Collection[int], order: Order) -> None:
        self._tokens, self._stop_ids = TokenStream(tokenizer, order.skip_special), stop_ids
        self._stop = StopStrings(order.stop)
        self.finish_reason: str | None = None

    @property
    def stop_string(self) -> str | None:
        return self._stop.matched

    def push(self, token: int) -> list[Delta]:
        if token in self._stop_ids:
            return self.finish("stop")
        kept = self._stop.feed(self._tokens.push(token))
        if self._stop.found:
            self.finish_reason = "stop"
        return [Delta("answer", kept)] if kept else []

    def finish(self, reason: str) -> list[Delta]:
        if self.finish_reason is not None:
            return []
        self.finish_reason = reason
        kept = self._stop.feed(self._tokens.finish()) + ("" if self._stop.found else self._stop.finish())
        return [Delta("answer", kept)] if kept else []
