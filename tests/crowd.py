"""Requests of every kind for an engine, and what each of them is alone."""

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding import Forbid
from tiny import VOCAB, tokens

from axk1.engine.closing import Closing
from axk1.engine.engine import ModelEngine
from axk1.engine.interface import Generation, Reasoning, Request
from axk1.generation import batch
from axk1.generation.loop import Loop
from axk1.generation.sampling import GREEDY, Sampling, TokenLogprobs
from axk1.generation.speculate import Drafts

CLOSING = (58, 59, 60)
SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4),
    Sampling(temperature=1.0, top_p=1.0, seed=1),
    Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.5, seed=2),
    Sampling(temperature=1.3, top_k=20, min_p=0.02, logit_bias={7: 2.0}, seed=3),
]


def is_closed(reply: Sequence[int]) -> bool:
    return CLOSING[-1] in reply


class Audited(ModelEngine):
    """Counts its pages after every step; can be made to wait, so that a test does not race with it."""

    steps = 0
    permits: threading.Semaphore | None = None
    """One is taken for each step."""
    waits_for_readers = False
    """Whether a step begins only once its readers have taken all tokens."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.ended: dict[Generation, tuple[int, list[int]]] = {}
        """Steps before each request's last, and the progress of the others then."""

    def _advance(self) -> None:
        if self.permits is not None:
            self.permits.acquire(timeout=5)
        super()._advance()
        self.audit()
        self.steps += 1
        end = time.monotonic() + 5
        while self.waits_for_readers and time.monotonic() < end:
            if not any(entry.generation._unread for entry in self._entries.values()):
                return
            time.sleep(0.0005)

    def _end(self, entry: Any, *how: Any) -> None:
        super()._end(entry, *how)
        self.ended[entry.generation] = self.steps, [each.generation.progress for each in self._entries.values()]


@dataclass
class Heard:
    """What a reader was given."""

    generation: Generation
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    """Tokens of each chunk."""


async def listen(
    engine: ModelEngine, request: Request, cancel_at: int | None = None, close_at: int | None = None
) -> Heard:
    """Reads a request to its end; cancels it, or closes its reasoning, once so many tokens have come."""
    heard = Heard(engine.submit(request))
    if cancel_at == 0:
        heard.generation.cancel()
    if close_at == 0:
        heard.generation.end_reasoning()
    async for chunk in heard.generation:
        heard.tokens += chunk.tokens
        heard.logprobs += chunk.logprobs or []
        heard.chunks.append(len(chunk.tokens))
        if cancel_at is not None and len(heard.tokens) >= cancel_at:
            heard.generation.cancel()
        if close_at is not None and len(heard.tokens) >= close_at:
            heard.generation.end_reasoning()
    return heard


def serve(engine: ModelEngine, *requests: Request) -> list[Heard]:
    """All of them at once, by an engine that is started before and closed after."""

    async def main() -> list[Heard]:
        return list(await asyncio.gather(*(listen(engine, request) for request in requests)))

    engine.start()
    try:
        return asyncio.run(main())
    finally:
        engine.close(drain=False)
        engine.audit()


def alone(model: Any, request: Request, limit: int | None = None) -> batch.Sequence:
    """The request in a loop of its own, without drafts, its prompt read at once.

    Args:
        limit: tokens after which the reasoning was closed by hand.
    """
    processors: list[Any] = list(request.processors)
    if request.reasoning is not None:
        closing = Closing(request.reasoning, len(request.prompt))
        if limit is not None:
            closing.end_at(limit)
        processors.append(closing)
    sequence = batch.Sequence(
        request.prompt,
        request.sampling,
        max_new_tokens=request.max_new_tokens or 1,
        stop_ids=request.stop_ids,
        processors=processors,
        top_logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
    )
    loop = Loop(model, Drafts(0))
    loop.add(sequence)
    while len(loop):
        loop.step()
    return sequence


@dataclass
class Visit:
    """A request, and how its reader behaves."""

    request: Request
    cancel_at: int | None = None
    close_at: int | None = None


def visits(count: int, seed: int, longest: int = 300) -> list[Visit]:
    """Prompts that begin alike, all kinds of sampling, and readers who change their minds."""
    chance = random.Random(seed)
    begins = [tokens(1, length, 1_000 + seed + length)[0].tolist() for length in (0, 64, 128, 200, longest)]

    def one(number: int) -> Visit:
        tail = tokens(1, chance.choice([1, 2, 30, 63, 64, 65, 100]), seed * 10_000 + chance.randrange(40))[0].tolist()
        prompt = chance.choice(begins) + tail
        if chance.random() < 0.2:
            prompt = prompt[: max(len(prompt) // 64 * 64, 1)]
        thinks = chance.random() < 0.4
        budget = chance.choice([None, 1, 5, 20])
        request = Request(
            prompt,
            chance.choice(SAMPLINGS),
            max_new_tokens=chance.choice([1, 2, 9, 30, 70]),
            stop_ids=frozenset(chance.sample(range(VOCAB), chance.choice([0, 0, 0, 1]))),
            processors=[Forbid(chance.randrange(1, 5))] if chance.random() < 0.2 else [],
            top_logprobs=chance.choice([0, 3]),
            prompt_logprobs=2 if chance.random() < 0.1 else None,
            reasoning=Reasoning(CLOSING, is_closed, budget) if thinks else None,
            drafts=chance.random() < 0.8,
            tenant=chance.choice(["", "a", "b"]),
        )
        cancel_at = chance.randrange(20) if chance.random() < 0.15 else None
        return Visit(request, cancel_at, chance.randrange(12) if thinks and chance.random() < 0.5 else None)

    return [one(number) for number in range(count)]


async def crowd(engine: ModelEngine, visits: list[Visit], at_once: int) -> list[Heard]:
    """All visits, at most so many at a time."""
    places = asyncio.Semaphore(at_once)

    async def visit(each: Visit) -> Heard:
        async with places:
            return await listen(engine, each.request, each.cancel_at, each.close_at)

    return list(await asyncio.gather(*(visit(each) for each in visits)))


def check(model: Any, visit: Visit, heard: Heard) -> None:
    """Tokens and log-probabilities are those of the request alone, to the bit."""
    request, generation = visit.request, heard.generation
    limit = None
    if visit.close_at is not None:  # by hand: at the first place where the closing tokens stand
        places = range(len(heard.tokens) - len(CLOSING) + 1)
        limit = next((at for at in places if tuple(heard.tokens[at : at + len(CLOSING)]) == CLOSING), None)
        if limit is None and len(heard.tokens) >= 1:
            tails = [n for n in (2, 1) if tuple(heard.tokens[-n:]) == CLOSING[:n]]
            limit = len(heard.tokens) - tails[0] if tails else None
    expected = alone(model, request, limit)
    cancelled = generation.finish_reason == "cancelled"
    assert cancelled <= (visit.cancel_at is not None)
    length = len(heard.tokens) if cancelled else len(expected.reply)
    assert heard.tokens == expected.reply[:length]
    assert heard.logprobs == expected.logprobs[:length]
    if not cancelled:
        stopped = heard.tokens[-1] in request.stop_ids
        assert generation.finish_reason == ("stop" if stopped else "length") and generation.error is None
        assert generation.progress == len(request.prompt)
    if request.prompt_logprobs is not None and heard.tokens:
        assert generation.prompt_logprobs == [None, *expected.prompt_logprobs]
    assert generation.cached_tokens % 64 == 0 and generation.cached_tokens < len(request.prompt)


def run_crowd(model: Any, count: int, seed: int, at_once: int, settings: Any) -> ModelEngine:
    """Lets a crowd in, and compares each with itself alone; the engine, closed."""
    engine, guests = Audited(model, settings), visits(count, seed)
    engine.start()
    try:
        heard = asyncio.run(crowd(engine, guests, at_once))
    finally:
        engine.close(drain=False)
    engine.audit()
    for visit, each in zip(guests, heard, strict=True):
        check(model, visit, each)
    totals = engine.statistics()
    assert (totals.running, totals.waiting, totals.pages_used) == (0, 0, 0)
    assert totals.generated_tokens == sum(len(each.tokens) for each in heard)
    return engine
