"""An engine whose replies are in a file: it tests servers and clients, not a model.

The file is JSON: a tokenizer's checkpoint and a list of replies. The first whose ``prompt`` occurs in the decoded
prompt is written (without one: always), in Think as ``reasoning``, ``</think>`` and ``reply``. A list in ``reply`` is
chosen from by the seed. A token's logit is high and all others' are zero, so that biases, grammars and
log-probabilities act as they do on a model.

    {"tokenizer": "models/nano", "replies": [{"prompt": "weather", "reasoning": "Hot.", "reply": "30 degrees"}]}
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from axk1.engine.closing import Closing
from axk1.engine.interface import (
    EngineClosed,
    EngineFull,
    Generation,
    Request,
    Statistics,
    wake,
)
from axk1.generation.history import History
from axk1.generation.pages import PAGE
from axk1.generation.sampling import Draws, Scorer, TokenLogprobs, choose, token_logprobs

CERTAIN = 50.0
"""The logit of the script's token."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Script:
    """A reply of the file."""

    reply: list[str]
    prompt: str = ""
    reasoning: str = ""
    closes: bool = True
    """Whether the reasoning is closed; a model may forget to, and then its reply ends there."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the engine pretends to be, in seconds, and how much it takes."""

    token: float = 0.0
    prompt: float = 0.0
    """For a whole prompt, before its first token."""
    running: int = 32
    waiting: int = 256


def read_scripts(path: Path) -> tuple[str | None, list[Script], Pace]:
    """Tokenizer's checkpoint, replies and pace (``pace``: an object with the fields of :class:`Pace`) of a file.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        scripts = [
            Script(**{**entry, "reply": [entry["reply"]] if isinstance(entry["reply"], str) else entry["reply"]})
            for entry in value["replies"]
        ]
        return value.get("tokenizer"), scripts, Pace(**value.get("pace", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no file of scripted replies ({error!r}); see axk1.engine.scripted.") from error


class ScriptedEngine:
    """See :class:`axk1.engine.interface.Engine`.

    Args:
        tokenizer: encodes the scripts.
        scripts: the replies; a prompt that fits none gets an empty one.
        pace: how fast.
        max_tokens: the context that it pretends to have.
    """

    exact = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        scripts: Sequence[Script],
        pace: Pace | None = None,
        max_tokens: int = 4096,
    ) -> None:
        self.tokenizer, self.scripts, self.pace, self.max_tokens = tokenizer, scripts, pace or Pace(), max_tokens
        self._lock = threading.Condition()
        self._waiting: deque[_Run] = deque()
        self._running: list[_Run] = []
        self._seen: deque[tuple[str, list[int]]] = deque(maxlen=64)
        self._totals = Statistics()
        self._closing = self._cancelling = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to run requests."""
        if self._thread is not None:
            raise RuntimeError("The engine was started before.")
        self._thread = threading.Thread(target=self._work, name="scripted", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Generation:
        """Lets ``request`` join."""
        room = self.max_tokens - len(request.prompt)
        if room < (1 if request.max_new_tokens is None else request.max_new_tokens):
            raise ValueError(f"The prompt has {len(request.prompt)} tokens; {self.max_tokens} fit, reply included.")
        generation = Generation(request, self, asyncio.get_running_loop())
        generation.max_new_tokens = room if request.max_new_tokens is None else request.max_new_tokens
        run = _Run(generation, self._script(request), self.tokenizer)
        with self._lock:
            if self._closing or self._thread is None:
                raise EngineClosed("The engine does not run.")
            if len(self._waiting) >= self.pace.waiting:
                raise EngineFull(retry_after=1.0)
            self._waiting.append(run)
            self._lock.notify()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Ends it at its next token."""
        with self._lock:
            for run in [*self._running, *self._waiting]:
                if run.generation is generation:
                    run.cancelled = True

    def end_reasoning(self, generation: Generation) -> None:
        """Closes its reasoning at its next token."""
        with self._lock:
            for run in [*self._running, *self._waiting]:
                if run.generation is generation:
                    run.answer_now = True

    def statistics(self) -> Statistics:
        """The engine now."""
        with self._lock:
            pages = sum(-(-run.generation.max_new_tokens // PAGE) for run in self._running)
            return replace(
                self._totals,
                running=len(self._running),
                waiting=len(self._waiting),
                pages_used=pages,
                pages_total=self.pace.running * -(-self.max_tokens // PAGE),
            )

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Ends the engine, and waits for it."""
        with self._lock:
            self._closing, self._cancelling = True, not drain
            self._lock.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            with self._lock:
                self._cancelling = True
            self._thread.join()

    def _script(self, request: Request) -> tuple[list[int], list[int]]:
        """Token ids of the reasoning, with its closing tag, and of the reply."""
        prompt = self.tokenizer.decode(list(request.prompt), skip_special_tokens=False)
        found = next((script for script in self.scripts if script.prompt in prompt), Script([""]))
        reply = found.reply[(request.sampling.seed or 0) % len(found.reply)]
        if request.reasoning and not found.closes:
            return self._encode(found.reasoning), []
        thought = f"{found.reasoning}</think>" if request.reasoning else ""
        return self._encode(thought), self._encode(reply)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._waiting or self._running or self._closing):
                    self._lock.wait()
                if self._closing and not (self._waiting or self._running):
                    return
                while self._waiting and (self._waiting[0].cancelled or len(self._running) < self.pace.running):
                    self._admit(self._waiting[0])
                    self._running.append(self._waiting.popleft())
                runs = list(self._running)
            self._step(runs)
            time.sleep(self.pace.token)

    def _admit(self, run: "_Run") -> None:
        request, generation = run.generation.request, run.generation
        generation.times.admitted = time.monotonic()
        run.ready = time.monotonic() + self.pace.prompt
        prompt = list(request.prompt)
        if request.prompt_logprobs is None:
            seen = (other for tenant, other in self._seen if tenant == request.tenant)
            generation.cached_tokens = max((_shared(prompt, other) for other in seen), default=0)
        self._seen.append((request.tenant, prompt))
        totals = self._totals
        self._totals = replace(
            totals,
            prompt_tokens=totals.prompt_tokens + len(prompt),
            prefix_queries=totals.prefix_queries + len(prompt),
            prefix_hits=totals.prefix_hits + generation.cached_tokens,
        )

    def _step(self, runs: "list[_Run]") -> None:
        ended, written = [], 0
        for run in runs:
            written += run.step(self._cancelling)
            if run.generation.finish_reason is not None:
                ended.append(run)
        with self._lock:
            self._running = [run for run in self._running if run not in ended]
            self._totals = replace(self._totals, generated_tokens=self._totals.generated_tokens + written)
        wake(run.generation for run in runs)


def _shared(prompt: list[int], other: list[int]) -> int:
    """Tokens that a prompt has in common with an earlier one, in whole pages, but never all."""
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b), min(len(prompt), len(other))
    )
    return min(same, len(prompt) - 1) // PAGE * PAGE


class _Run:
    """A request that is being answered."""

    def __init__(
        self, generation: Generation, script: tuple[list[int], list[int]], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        request = generation.request
        self.generation, self.ready = generation, 0.0
        self.cancelled = self.answer_now = False
        self._thought, self._reply = script
        self._end = tokenizer.get_vocab()["<|im_end|>"]
        self._vocabulary = len(tokenizer)
        self._history = History(request.prompt, _CPU)
        self._closing = None if request.reasoning is None else Closing(request.reasoning, len(request.prompt))
        self._scorer = Scorer(request.sampling, [*request.processors, *([self._closing] if self._closing else [])])
        self._draws = Draws(request.sampling.seed, _CPU)

    @property
    def _written(self) -> list[int]:
        return self._history.tokens[self._history.prompt :]

    def step(self, cancelling: bool) -> int:
        """Writes the next token, if it is time; how many it wrote."""
        generation = self.generation
        if self.cancelled or cancelling:
            generation.finish("cancelled")
            return 0
        if time.monotonic() < self.ready:
            return 0
        try:
            return self._write()
        except Exception as error:  # what a processor raises is its request's end, not the engine's
            generation.finish("error", error)
            return 0

    def _write(self) -> int:
        generation, request = self.generation, self.generation.request
        if generation.progress == 0:
            generation.progress = len(request.prompt)
            if request.prompt_logprobs is not None:
                generation.prompt_logprobs = self._prompt_logprobs(request.prompt_logprobs)
        if len(self._written) >= generation.max_new_tokens:
            generation.finish("length")
            return 0
        if self.answer_now and self._closing is not None:
            self._closing.end_at(len(self._written))
            self.answer_now = False
        token, logits = self._next()
        self._history.tokens.append(token)
        scores = None if request.top_logprobs is None else token_logprobs(logits, [token], request.top_logprobs)
        generation.push([token], scores)
        if token in request.stop_ids:
            generation.finish("stop")
        elif len(self._written) >= generation.max_new_tokens:
            generation.finish("length")
        return 1

    def _next(self) -> tuple[int, torch.Tensor]:
        logits = torch.zeros(1, self._vocabulary)
        logits[0, self._wanted()] = CERTAIN
        scores = self._scorer(logits, self._history)
        greedy = self.generation.request.sampling.greedy
        token = int(choose(scores, None if greedy else self._draws.noise(1, self._vocabulary))[0])
        self._draws.advance(1)
        return token, logits

    def _wanted(self) -> int:
        """The token that the script has next; of its reasoning nothing more, once that is being closed."""
        forced = None if self._closing is None else self._closing.forced(self._written)
        if forced is not None:
            self._thought = []
            return forced
        script = self._thought or self._reply
        return script.pop(0) if script else self._end

    def _prompt_logprobs(self, top: int) -> list[TokenLogprobs | None]:
        prompt = list(self.generation.request.prompt)
        logits = torch.zeros(len(prompt) - 1, self._vocabulary)
        logits[range(len(prompt) - 1), prompt[1:]] = CERTAIN
        return [None, *token_logprobs(logits, prompt[1:], top)]
