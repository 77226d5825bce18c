"""What caches of experts hit, counted on a trace of what steps asked for: the store's own rule, and others beside it.

A trace is a list of (layer, experts), one for each MoE layer of each step, experts ascending, each once
(:func:`read_trace`). A step of one token asks for ``num_experts_per_tok`` in each layer, a prompt for the union of its
tokens' experts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

Trace = Sequence[tuple[int, tuple[int, ...]]]
Key = tuple[int, int]
"""Layer and number of an expert."""


class Policy(Protocol):
    """Which expert gives way."""

    def begin(self, now: int, layer: int, experts: Iterable[int]) -> None:
        """List number ``now`` of the trace asks for these."""
        ...

    def warmth(self, key: Key) -> tuple[float, ...]:
        """The expert with the least gives way."""
        ...


class Decayed:
    """The store's rule: uses, each counted ``decay`` times as much with every step of its layer since; of equal ones
    the one that was used longest ago. 1 counts uses alone (LFU); small values go by the last use, counted in steps."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._steps: dict[int, int] = defaultdict(int)
        self._uses = 0
        self._heat: dict[Key, tuple[float, int, int]] = {}

    def begin(self, now: int, layer: int, experts: Iterable[int]) -> None:
        self._steps[layer] += 1
        for expert in experts:
            self._uses += 1
            key = layer, expert
            before = self._now(key) if key in self._heat else 0.0
            self._heat[key] = before + 1.0, self._steps[layer], self._uses

    def warmth(self, key: Key) -> tuple[float, ...]:
        return self._now(key), self._heat[key][2]

    def _now(self, key: Key) -> float:
        heat, last, _ = self._heat[key]
        return heat * self._decay ** float(self._steps[key[0]] - last)


class LRU:
    """The one that was used longest ago, of all layers together."""

    def __init__(self) -> None:
        self._last: dict[Key, int] = {}
        self._uses = 0

    def begin(self, now: int, layer: int, experts: Iterable[int]) -> None:
        for expert in experts:
            self._uses += 1
            self._last[layer, expert] = self._uses

    def warmth(self, key: Key) -> tuple[float, ...]:
        return (self._last[key],)


class Belady:
    """The one whose next use is the farthest: what no cache that has to read can do better, and none can know."""

    def __init__(self, trace: Trace) -> None:
        self._uses: dict[Key, list[int]] = defaultdict(list)
        for now, (layer, experts) in enumerate(trace):
            for expert in experts:
                self._uses[layer, expert].append(now)
        self._now = 0

    def begin(self, now: int, layer: int, experts: Iterable[int]) -> None:
        self._now = now

    def warmth(self, key: Key) -> tuple[float, ...]:
        uses = self._uses[key]
        at = bisect_right(uses, self._now)
        return (-uses[at] if at < len(uses) else -float("inf"),)


def simulate(trace: Trace, slots: int, policy: Policy) -> int:
    """Hits of a cache for ``slots`` experts.

    The order is the store's (``kernels/cpu/stream.h``): experts of a list are looked at one after the other; for one
    that is missing the coldest gives way that is not on the list, else the first of the list, which has been used by
    then, and where all are still to be used the last.
    """
    held: set[Key] = set()
    hits = 0
    for now, (layer, experts) in enumerate(trace):
        policy.begin(now, layer, experts)
        listed = {(layer, expert) for expert in experts}
        for expert in experts:
            key = layer, expert
            if key in held:
                hits += 1
                continue
            if len(held) == slots:
                held.remove(_leaves(held, listed, key, policy))
            held.add(key)
    return hits


def _leaves(held: set[Key], listed: set[Key], key: Key, policy: Policy) -> Key:
    others = held - listed
    if others:
        return min(others, key=policy.warmth)
    before = [each for each in held if each < key]
    return min(before) if before else max(held)


def read_trace(numbers: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """A trace, from the numbers that :meth:`axk1.kernels.native.Stream.trace` returns."""
    trace, at = [], 0
    while at < len(numbers):
        layer, count = numbers[at], numbers[at + 1]
        trace.append((layer, tuple(numbers[at + 2 : at + 2 + count])))
        at += 2 + count
    return trace


def asked(trace: Trace) -> int:
    """Experts that a trace asks for."""
    return sum(len(experts) for _, experts in trace)
