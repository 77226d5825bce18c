"""What servers see of an engine: a request goes in, a generation comes out token by token."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from transformers import LogitsProcessor

from axk1.generation.sampling import Sampling, TokenLogprobs

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""``stop``: one of the stop ids came. ``length``: no tokens are left. ``cancelled``: somebody asked for it, or the
engine was closed. ``error``: see ``Generation.error``."""


class EngineFull(RuntimeError):
    """The waiting list is full.

    Args:
        retry_after: seconds after which trying again is worth it.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"The engine's waiting list is full; try again in {retry_after:.0f} seconds.")
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine is being closed, or was never started."""


@dataclass(frozen=True, slots=True, eq=False)
class Reasoning:
    """The reasoning that a reply begins with, and how it ends before the model ends it.

    Args:
        closing: token ids that end it: a sentence if wanted, and ``</think>``. The reply holds them like its own.
        is_closed: whether a reply that begins with these tokens has left its reasoning. It is called on the engine's
            thread, seldom, and has to depend on the tokens alone.
        budget: tokens after which ``closing`` follows, where the reasoning is still open; None: no limit. Hard: drafts
            do not pass it.

    Raises:
        ValueError: ``closing`` is empty, or the budget is below 1.
    """

    closing: Sequence[int]
    is_closed: Callable[[Sequence[int]], bool]
    budget: int | None = None

    def __post_init__(self) -> None:
        if not self.closing:
            raise ValueError("Reasoning has no closing tokens; give those of </think> at least.")
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"The thinking budget is {self.budget}; it must be at least 1 (for 0, use Non-Think).")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A prompt to be continued. What becomes of it depends on nothing but these fields, where the engine is exact and
    sampling is greedy or has a seed.

    Args:
        prompt: token ids, at least one.
        sampling: how tokens are chosen, the seed included (``row_seeds`` makes several of one, for n choices).
        max_new_tokens: tokens of the reply at most, reasoning included. None: a fair share of what the engine can hold
            (``Generation.max_new_tokens`` tells it). 0 is allowed with ``prompt_logprobs`` only.
        stop_ids: tokens that end the reply; the one that does is part of it. Empty to ignore the end of a turn.
        processors: change the scores of this request alone, a grammar for example. Each is called on the engine's
            thread with ids ``[1, L]`` (prompt, reply, and drafts that may never become part of it) and scores
            ``[1, V]``, and has to depend on these only: a position can be scored more than once.
        top_logprobs: log-probabilities of the reply's tokens, and of so many most probable ones in each place; None:
            none at all. They are the model's own, before penalties and temperature.
        prompt_logprobs: the same for the prompt's tokens. All of the prompt is computed then: none comes from the
            prefix tree.
        reasoning: of a Think prompt; None: there is none to be closed.
        drafts: whether MTP speculation may be used, as the engine is set up to. It changes no token.
        tenant: whose prefix tree is read and written. Requests of different tenants never share a page.

    Raises:
        ValueError: for a value out of range, in one sentence.
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    stop_ids: Collection[int] = frozenset()
    processors: Sequence[LogitsProcessor] = ()
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    reasoning: Reasoning | None = None
    drafts: bool = True
    tenant: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("The prompt is empty; there must be at least one token to continue.")
        least = 1 if self.prompt_logprobs is None else 0
        if self.max_new_tokens is not None and self.max_new_tokens < least:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least {least}.")
        for name, value in (("top_logprobs", self.top_logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more.")


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of a reply, in order; never empty."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    """One for each token; None where the request asked for none."""


@dataclass(slots=True)
class Times:
    """When things happened to a generation, in seconds of ``time.monotonic``; None: not yet."""

    submitted: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    """It got its pages: its prompt is being read."""
    first_token: float | None = None
    finished: float | None = None

    @property
    def queued(self) -> float | None:
        """Seconds between being submitted and admitted."""
        return None if self.admitted is None else self.admitted - self.submitted


class Generation(AsyncIterator[Chunk]):
    """A request on its way. Iterate over it, on the asyncio loop that submitted it; the end of the iteration sets
    ``finish_reason``. An error of the model or of a processor is no exception of the iteration: see ``error``.

    Tokens that nobody reads are kept until they are read, in one chunk: so a reader that never comes holds memory of
    ``max_new_tokens`` tokens (and their log-probabilities) at most, and no pages once the reply has ended.

    Args:
        request: what is to be done.
        engine: told of ``cancel`` and ``end_reasoning``.
        loop: where it is iterated over.
    """

    def __init__(self, request: Request, engine: "Engine", loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        """With ``finish_reason`` ``error``: what the model or a processor raised."""
        self.max_new_tokens = request.max_new_tokens or 0
        """Tokens that the reply may have, once it has been submitted."""
        self.progress = 0
        """Tokens of the prompt that have been read, cached ones included."""
        self.cached_tokens = 0
        """Tokens of the prompt that came from the prefix tree."""
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        """Where asked for, one entry for each token of the prompt, None for the first; there before the first chunk."""
        self.drafted, self.accepted = 0, 0
        """Drafts that were made for it, and how many of them held."""
        self.times = Times()
        self._engine = engine
        self._unread: deque[Chunk] = deque()
        self._event = asyncio.Event()

    def cancel(self) -> None:
        """Ends it within one step, with its pages; nothing happens where it has ended. From any thread."""
        self._engine.cancel(self)

    def end_reasoning(self) -> None:
        """Answer now: closes the reasoning at the next step, by ``Reasoning.closing``. While the prompt is read, the
        reply begins with these tokens. Nothing happens where no reasoning is open. From any thread."""
        self._engine.end_reasoning(self)

    async def __anext__(self) -> Chunk:
        """All new tokens since the last chunk; at least one."""
        while not self._unread:
            if self.finish_reason is not None and not self._unread:  # it is set after the last tokens
                raise StopAsyncIteration
            self._event.clear()
            if not self._unread and self.finish_reason is None:
                await self._event.wait()
        chunk = self._unread.popleft()
        while self._unread:
            more = self._unread.popleft()
            logprobs = None if chunk.logprobs is None else [*chunk.logprobs, *(more.logprobs or [])]
            chunk = Chunk([*chunk.tokens, *more.tokens], logprobs)
        return chunk

    def push(self, tokens: list[int], logprobs: list[TokenLogprobs] | None) -> None:
        """For engines, from one thread: adds tokens, at least one. The reader sees them after :func:`wake`."""
        if self.times.first_token is None:
            self.times.first_token = time.monotonic()
        self._unread.append(Chunk(tokens, logprobs))

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """For engines, from the same thread: no more tokens come."""
        self.error, self.times.finished = error, time.monotonic()
        self.finish_reason = reason

    def ring(self) -> None:
        """Lets the reader look again. On the loop."""
        self._event.set()


def wake(generations: Iterable[Generation]) -> None:
    """For engines, from any thread: lets the readers of ``generations`` go on, with one call for each loop. Loops that
    have been closed are passed over."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Generation]] = {}
    for generation in generations:
        by_loop.setdefault(generation.loop, []).append(generation)
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_ring, those)
        except RuntimeError:  # closed: nobody reads any more
            continue


def _ring(generations: list[Generation]) -> None:
    for generation in generations:
        generation.ring()


@dataclass(frozen=True, slots=True)
class Statistics:
    """An engine at one moment; the totals are since its start and never fall."""

    running: int = 0
    """Requests that have pages."""
    waiting: int = 0
    """Requests that wait for pages or for their turn."""
    pages_used: int = 0
    """Pages of running requests, shared ones once, promised ones included."""
    pages_cached: int = 0
    """Pages of the prefix trees that no running request uses: what is given up first."""
    pages_total: int = 0
    prompt_tokens: int = 0
    """Tokens of prompts read, cached ones included."""
    generated_tokens: int = 0
    prefix_queries: int = 0
    """Tokens of prompts that were looked up in a prefix tree."""
    prefix_hits: int = 0
    """Tokens that were found there."""
    drafted: int = 0
    accepted: int = 0
    failed_steps: int = 0
    """Steps in which the model raised; a step is tried again once."""
    preemptions: int = 0
    """Times that a running request had to give way. Always 0 where admission reserves all that a request may need."""
    experts_asked: int = 0
    """Routed experts that steps asked for, where they are read from disk: of every layer and step, each once."""
    experts_hit: int = 0
    """How many of these were in the cache."""
    expert_bytes: int = 0
    """Read from disk."""
    expert_stalls: int = 0
    """Times that a step waited for a read."""
    expert_stall_seconds: float = 0.0


class Engine(Protocol):
    """Runs requests, many at once. All methods may be called from any thread, ``submit`` from a running asyncio loop;
    none waits for the model, but ``close``."""

    exact: bool
    """Whether a request's bits depend on the request alone: not on its neighbours, drafts, or cached prefixes."""
    max_tokens: int
    """Prompt and reply of one request at most: the model's context, or what the pool holds if that is less."""

    def start(self) -> None:
        """Begins to run requests.

        Raises:
            RuntimeError: it was started before.
        """
        ...

    def submit(self, request: Request) -> Generation:
        """Lets ``request`` join; requests are admitted in the order they come in.

        Raises:
            EngineFull: too many wait already.
            EngineClosed: it does not run.
            ValueError: for what could never fit, or asks for what the model does not have, in one sentence.
        """
        ...

    def cancel(self, generation: Generation) -> None:
        """What ``Generation.cancel`` does."""
        ...

    def end_reasoning(self, generation: Generation) -> None:
        """What ``Generation.end_reasoning`` does."""
        ...

    def statistics(self) -> Statistics:
        """The engine now, as of its last step."""
        ...

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Ends the engine, and waits for it; later calls do nothing. ``submit`` is refused from now on.

        Args:
            drain: whether running and waiting requests may finish; else they are cancelled.
            timeout: seconds after which those that are left are cancelled all the same; None: no limit.
        """
        ...
