"""The engine: one thread that owns the model, runs its steps, and lets requests join and leave between them.

A request waits until there are pages for its prompt and its longest reply; nothing that runs is ever interrupted to
make room. Commands come to the thread by a queue and are carried out between two steps; what a step made goes to the
readers' asyncio loops in one call each.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from axk1.allocator import give_back_memory
from axk1.engine.closing import Closing
from axk1.engine.interface import (
    EngineClosed,
    EngineFull,
    FinishReason,
    Generation,
    Request,
    Statistics,
    wake,
)
from axk1.engine.prefix import PrefixTree
from axk1.engine.settings import Settings, default_pages
from axk1.experts.store import store_of
from axk1.generation.batch import Sequence
from axk1.generation.loop import Loop
from axk1.generation.pages import PAGE
from axk1.generation.sampling import GREEDY
from axk1.modeling import AXK1ForCausalLM

log = logging.getLogger("axk1.engine")
FIXED_PIECE = 256
"""Tokens that prompts are cut at multiples of where that changes bits."""
LEAST_REPLY = 2_048
"""Tokens of a reply that a request with no limit may have, unless context or pool hold less."""
REST = 10.0
"""Seconds without a request after which freed memory is given back to the system."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A request in the engine."""

    generation: Generation
    sequence: Sequence
    closing: Closing | None = None
    sent: int = 0
    """Tokens of its reply that the reader has been given."""
    woken: float = -math.inf
    """When the reader was last told to look."""


class ModelEngine:
    """:class:`axk1.engine.interface.Engine` of one model. From ``start`` to ``close`` nobody else may run the model.

    Args:
        model: a causal language model in eval mode; of those that are not ours each sequence is run by itself, with
            neither pages nor kept prompts.
        settings: how it runs.

    Raises:
        ValueError: the settings ask for drafts, and the model has no MTP module.
    """

    def __init__(self, model: PreTrainedModel, settings: Settings | None = None) -> None:
        self.settings = settings = settings or Settings()
        self._model = model
        self._store = store_of(model)
        self._vocabulary: int = model.config.vocab_size
        context: int = model.config.max_position_embeddings
        pages = default_pages(model, settings.streams) if settings.pages is None else settings.pages
        self.loop = Loop(
            model, settings.drafts, prefill_tokens=settings.prompt_tokens, pages=pages, poison=settings.poison
        )
        ours = isinstance(model, AXK1ForCausalLM)
        moving = ours and model.model.rotary_emb.changes_with_length  # frequencies depend on the longest neighbour
        self.exact = self.loop.executor.exact and not moving
        piece = min(FIXED_PIECE, settings.prompt_tokens // PAGE * PAGE)
        self.loop.prompts.piece, self.loop.prompts.most = None if self.exact else piece, settings.streams
        self.loop.in_turns = True
        self.tree: PrefixTree | None = None
        if self.loop.pool is not None and settings.prefixes and not moving:
            self.tree = PrefixTree(self.loop.pool, 1 if self.exact else piece // PAGE)
            self.loop.prompts.prefixes = self.tree
        self._pages = pages if self.loop.pool is not None else 0
        self.max_tokens = min(context, self._pages * PAGE) if self._pages else context
        self._longest = min(context, self._pages * PAGE - 1) if self._pages else context
        self._entries: dict[Generation, _Entry] = {}
        names = ("prompt_tokens", "generated_tokens", "prefix_queries", "prefix_hits", "failed_steps")
        self._totals = dict.fromkeys(names, 0)
        self._drafts = [0, 0]
        self._failed = 0  # steps in a row
        self._seconds = 1.0  # that a request runs for, a running mean
        self._lock = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._waiting = 0
        self._open, self._deadline = False, math.inf
        self._statistics = Statistics(pages_total=self._pages)
        self._thread: threading.Thread | None = None

    # From any thread.

    def start(self) -> None:
        """Begins to run requests.

        Raises:
            RuntimeError: it was started before.
        """
        if self._thread is not None:
            raise RuntimeError("The engine has been started before.")
        self._open = True
        threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, args=(threads,), name="axk1-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Generation:
        """Lets ``request`` join; requests are admitted in the order they come in.

        Raises:
            EngineFull: too many wait already.
            EngineClosed: it does not run.
            ValueError: for what could never fit, or asks for what the model does not have.
        """
        limit = self._check(request)
        generation = Generation(request, self, asyncio.get_running_loop())
        generation.max_new_tokens = limit
        closing = None if request.reasoning is None else Closing(request.reasoning, len(request.prompt))
        budget = [closing] if closing is not None and closing.limit is not None else []
        sequence = Sequence(
            request.prompt,
            request.sampling,
            max_new_tokens=max(limit, 1),
            stop_ids=request.stop_ids,
            processors=[*request.processors, *budget],
            top_logprobs=request.top_logprobs,
            prompt_logprobs=request.prompt_logprobs,
            may_draft=request.drafts,
            tenant=request.tenant,
            device=self._model.device,
        )
        entry = _Entry(generation, sequence, closing)
        with self._lock:
            if not self._open:
                raise EngineClosed("The engine does not run: it was not started, or is being closed.")
            if self._waiting >= self.settings.waiting + max(self.settings.streams - len(self._entries), 0):
                raise EngineFull(min(max(self._seconds, 1.0), 60.0))
            self._waiting += 1
            self._post(partial(self._add, entry))
        return generation

    def cancel(self, generation: Generation) -> None:
        """Ends ``generation`` within one step, with its pages."""
        with self._lock:
            self._post(partial(self._cancel, generation))

    def end_reasoning(self, generation: Generation) -> None:
        """Closes the reasoning of ``generation`` at the next step."""
        with self._lock:
            self._post(partial(self._end_reasoning, generation))

    def statistics(self) -> Statistics:
        """The engine as of its last step."""
        return self._statistics

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Ends the engine, and waits for it; later calls do nothing.

        Args:
            drain: whether running and waiting requests may finish; else they are cancelled.
            timeout: seconds after which those that are left are cancelled all the same; None: no limit.
        """
        with self._lock:
            wait = (math.inf if timeout is None else timeout) if drain else 0.0
            self._deadline = min(self._deadline, time.monotonic() + wait)
            self._open = False
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.append(command)
        self._lock.notify()

    def _check(self, request: Request) -> int:
        """Tokens that the reply of ``request`` may have.

        Raises:
            ValueError: it could never be run.
        """
        named = {
            "The prompt": request.prompt,
            "logit_bias": request.sampling.logit_bias,
            "The end of the reasoning": request.reasoning.closing if request.reasoning else (),
        }
        for name, tokens in named.items():
            if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
                raise ValueError(f"{name} has a token outside the vocabulary of {self._vocabulary}.")
        length, asked = len(request.prompt), request.max_new_tokens
        most = self.max_tokens if asked != 0 else self._longest  # the token after the prompt is not run
        if length + (1 if asked is None else asked) > most:
            reply = "" if asked is None else f" and max_new_tokens is {asked}"
            raise ValueError(
                f"The prompt has {length} tokens{reply}; together they may have {most}: shorten one of them."
            )
        if asked is not None:
            return asked
        share = self._pages * PAGE // self.settings.streams if self._pages else most
        return min(most - length, max(share - length, LEAST_REPLY))

    # On the engine's thread.

    def _run(self, threads: int) -> None:
        error: BaseException | None = None
        try:
            torch.set_num_threads(threads)
            self._warm_up()
            while self._obey():
                self._advance()
        except BaseException as raised:  # a fault of the engine: readers must not wait for ever
            error = raised
            raise
        finally:
            with self._lock:
                self._open = False
            self._carry_out()
            self._end_all(error)

    def _warm_up(self) -> None:
        """Runs a few steps, so that the first request finds everything in place."""
        count = min(PAGE, self.max_tokens - 1)
        if count > 0:
            new = min(8, self.max_tokens - count)
            self.loop.add(Sequence([0] * count, GREEDY, max_new_tokens=new, device=self._model.device))
        while len(self.loop):
            self.loop.step()

    def _obey(self) -> bool:
        """Carries out what was asked for; waits while there is nothing to do.

        Returns:
            Whether the engine goes on.
        """
        if not self._entries:
            self._rest()
        if self._commands:  # without the lock: what comes just now is seen after the next step
            self._carry_out()
        if time.monotonic() >= self._deadline:
            self._end_all(None)
        return self._open or bool(self._entries or self._commands)

    def _rest(self) -> None:
        """Waits while there is nothing to do. After a while, what a crowd has left of freed memory goes back."""

        def busy() -> bool:
            return bool(not self._open or self._commands or self._entries)

        with self._lock:
            if self._lock.wait_for(busy, REST):
                return
        give_back_memory()
        with self._lock:
            self._lock.wait_for(busy)

    def _carry_out(self) -> None:
        while True:
            with self._lock:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def _add(self, entry: _Entry) -> None:
        self._entries[entry.generation] = entry
        self.loop.add(entry.sequence)

    def _cancel(self, generation: Generation) -> None:
        entry = self._entries.get(generation)
        if entry is not None:
            self._end(entry, "cancelled")
            wake([generation])
            self._publish()

    def _end_reasoning(self, generation: Generation) -> None:
        entry = self._entries.get(generation)
        if entry is None or entry.closing is None:
            return
        sequence, closing = entry.sequence, entry.closing
        reply = sequence.reply
        try:
            if closing.reasoning.is_closed(reply):
                return
        except Exception as error:  # the request's own function
            self._end(entry, "error", error)
            return wake([generation])
        if closing.limit is None:
            sequence.add_processor(closing)
        closing.end_at(len(reply))

    def _advance(self) -> None:
        """One step, and what came of it."""
        try:
            self._admit()
            self.loop.step()
            self._failed = 0
        except Exception as error:  # of the model: it may be over when the step is tried again
            self._failed += 1
            self._totals["failed_steps"] += 1
            log.error("A step of the model failed, %d in a row", self._failed, exc_info=error)
            if self._failed > 1:
                self._give_up(error)
        now = time.monotonic()
        heard = [entry.generation for entry in list(self._entries.values()) if self._deliver(entry, now)]
        self._publish()
        wake(heard)

    def _give_up(self, error: Exception) -> None:
        """Ends those whose step fails again and again: who read, or where nobody did, who reply."""
        concerned = self.loop.prompts.reading if self.loop.read_tokens else self.loop.replying
        for entry in [entry for entry in self._entries.values() if entry.sequence in concerned]:
            self._end(entry, "error", error)
            wake([entry.generation])
        self._failed = 0

    def _deliver(self, entry: _Entry, now: float) -> bool:
        """Hands over what is new of a request.

        Returns:
            Whether its reader has to look at it now.
        """
        generation, sequence = entry.generation, entry.sequence
        if generation.times.admitted is None:
            return False
        generation.progress = min(sequence.cached, sequence.history.prompt)
        first = sequence.history.prompt + entry.sent
        new = sequence.tokens[first:] if generation.max_new_tokens else []
        if new:
            self._begin(entry)
            logprobs = None if generation.request.top_logprobs is None else sequence.logprobs[entry.sent :]
            entry.sent += len(new)
            self._totals["generated_tokens"] += len(new)
            generation.push(new, logprobs)
        if not sequence.running:
            stopped = bool(new) and new[-1] in sequence.stop_ids
            reason: FinishReason = "error" if sequence.error is not None else "stop" if stopped else "length"
            self._end(entry, reason, sequence.error)
        if sequence.running and not (new and now - entry.woken >= self.settings.stream_interval):
            return False
        entry.woken = now
        return True

    def _admit(self) -> None:
        """Lets those begin that wait and for whom there is room, and takes note of when."""
        self.loop.admit()
        waiting = [entry for entry in self._entries.values() if entry.generation.times.admitted is None]
        admitted = [entry for entry in waiting if entry.sequence.table is not None]
        for entry in admitted:
            self._admitted(entry)
        if admitted:
            self._publish()

    def _admitted(self, entry: _Entry) -> None:
        """It has got its pages."""
        entry.generation.times.admitted = time.monotonic()
        with self._lock:
            self._waiting -= 1
        sequence = entry.sequence
        self._totals["prompt_tokens"] += sequence.history.prompt
        if self.tree is not None and sequence.prompt_top is None:
            self._totals["prefix_queries"] += sequence.history.prompt

    def _begin(self, entry: _Entry) -> None:
        """Its prompt has been read."""
        if entry.sent == 0:
            generation, sequence = entry.generation, entry.sequence
            generation.cached_tokens = sequence.found
            self._totals["prefix_hits"] += sequence.found
            if sequence.prompt_top is not None:
                generation.prompt_logprobs = [None, *sequence.prompt_logprobs]

    def _end(self, entry: _Entry, reason: FinishReason, error: Exception | None = None) -> None:
        """Takes a request out, with its pages. Its reader has yet to be woken."""
        generation, sequence = entry.generation, entry.sequence
        self.loop.cancel(sequence)
        if generation.times.admitted is None:
            with self._lock:
                self._waiting -= 1
        if reason == "length" and not generation.max_new_tokens:
            self._begin(entry)
        generation.drafted, generation.accepted = sequence.drafted, sequence.accepted
        self._drafts = [self._drafts[0] + sequence.drafted, self._drafts[1] + sequence.accepted]
        del self._entries[generation]
        generation.finish(reason, error)
        self._seconds += 0.1 * (time.monotonic() - generation.times.submitted - self._seconds)

    def _end_all(self, error: BaseException | None) -> None:
        """Nothing runs on: all are cancelled, or have an error."""
        entries = list(self._entries.values())
        for entry in entries:
            if error is None:
                self._end(entry, "cancelled")
            else:
                self._end(entry, "error", error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self._publish()
        wake(entry.generation for entry in entries)

    def _publish(self) -> None:
        """Makes ``statistics`` those of now."""
        pool = self.loop.pool
        running = [entry.sequence for entry in self._entries.values() if entry.sequence.table is not None]
        self._statistics = Statistics(
            running=len(running),
            waiting=self._waiting,
            pages_used=0 if pool is None else pool.in_use + pool.reserved - pool.spare,
            pages_cached=0 if pool is None else pool.spare,
            pages_total=self._pages,
            drafted=self._drafts[0] + sum(s.drafted for s in running),
            accepted=self._drafts[1] + sum(s.accepted for s in running),
            **self._totals,
            **self._experts(),
        )

    def _experts(self) -> dict[str, Any]:
        """What the experts' cache has done, where there is one."""
        if self._store is None:
            return {}
        now = self._store.counters()
        return {
            "experts_asked": now.asked,
            "experts_hit": now.hits,
            "expert_bytes": now.bytes,
            "expert_stalls": now.stalls,
            "expert_stall_seconds": now.stall_seconds,
        }

    def audit(self) -> None:
        """Counts all pages again. Between steps only: on the engine's thread, or once it is closed.

        Raises:
            RuntimeError: a page was lost, or is held by somebody who has left.
        """
        if self.loop.pool is None:
            return
        tables = [entry.sequence.table for entry in self._entries.values()]
        self.loop.pool.audit([table for table in tables if table is not None])
        kept = 0 if self.tree is None else len(self.tree)
        if not self._entries and self.loop.pool.in_use != kept:
            raise RuntimeError(f"Nothing runs, and {self.loop.pool.in_use - kept} pages are in use beside the kept.")
