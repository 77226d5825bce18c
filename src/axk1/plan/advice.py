"""What limits a plan first, and what would change it: the same arithmetic again with one thing different."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from axk1.plan.fit import CLUSTER, STREAMING, Engine, Fit, Load, default_format, fit
from axk1.plan.machines import Machine
from axk1.plan.memory import GB
from axk1.plan.speed import decode
from axk1.plan.weights import Weights, weights_as

LADDERS: dict[str, tuple[str, ...]] = {
    "axk1": ("bf16", "fp8", "int4-32", "int4-64", "int4-128", "int3-64"),
    "mlx": ("mlx-8", "mlx-6", "mlx-5", "mlx-4", "mlx-3", "mlx-2"),
    "llamacpp": ("bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k"),
}
"""Formats by engine, from most bits to fewest."""
OURS = ("bf16", "fp8", "int4-32", "int4-64", "int4-128")
WORTH = 1.05
"""A change that gains less is not named."""


@dataclass(frozen=True)
class Change:
    """Something different, and what decoding could be at most then."""

    what: str
    bound: float | None
    fits: bool


def limit(found: Fit, hits: float | None = None) -> str:
    """The first limit, in words; ``hits`` as in :func:`axk1.plan.speed.decode`."""
    if found.problem:
        return "memory: " + found.problem.rstrip(".")
    speed = decode(found, hits)
    if speed.limit is None:
        return "not known: no rate of this machine is known (--measure, or give --bandwidth and --disk)"
    words = {"disk": "reads from the disk", "products": "products of matrices", "links": "the links between GPUs"}
    return words.get(speed.limit, f"the bandwidth of {speed.limit}")


def changes(found: Fit, fraction: float | None = None) -> list[Change]:
    """What would lift the limit, the best first; where the model does not fit, what lets it."""
    now = None if found.problem else decode(found).bound
    tried = [change for change in _tried(found, fraction) if change.fits]
    if found.problem:
        return tried
    gains = [c for c in tried if c.bound and now and c.bound > WORTH * now]
    return sorted(gains, key=lambda c: -(c.bound or 0.0))


def _tried(found: Fit, fraction: float | None) -> Iterator[Change]:
    for weights in _fewer_bits(found):
        yield _again(f"weights in {weights.stored}", found, fraction, weights=weights)
    machine = found.machine
    for what, other in _other_machines(machine, found.engine):
        yield _again(what, found, fraction, machine=other)
    if found.load.context > 4096 and found.problem:
        yield _again("a context of 4,096 tokens", found, fraction, load=replace(found.load, context=4096))
    if found.engine not in STREAMING and found.on_disk:
        engine: Engine = "llamacpp" if machine.unified else "axk1"
        weights = weights_as(found.weights.config, default_format(engine))
        what = f"experts read from the disk (--engine {engine}, {weights.stored})"
        yield _again(what, found, fraction, engine=engine, weights=weights)
    if found.load.requests < 8:
        yield _again("8 requests at once (all together)", found, fraction, load=replace(found.load, requests=8))


def _other_machines(machine: Machine, engine: Engine) -> Iterator[tuple[str, Machine]]:
    host, gpu = machine.host, machine.gpu
    if engine in CLUSTER:
        yield f"twice the machines ({2 * machine.nodes})", replace(machine, nodes=2 * machine.nodes)
        return
    yield f"{2 * host.memory // GB} GB of memory", replace(machine, host=replace(host, memory=2 * host.memory))
    if host.bandwidth:
        faster = replace(host, bandwidth=2 * host.bandwidth)
        yield f"memory of {faster.bandwidth / 1e9:.0f} GB/s", replace(machine, host=faster)  # pyright: ignore[reportOptionalOperand]
    if machine.disk:
        yield f"a disk of {2 * machine.disk / 1e9:.0f} GB/s", replace(machine, disk=2 * machine.disk)
    if gpu and engine != "axk1":
        yield f"{2 * machine.gpus} GPUs", replace(machine, gpus=2 * machine.gpus)


def _fewer_bits(found: Fit) -> Iterator[Weights]:
    """Formats of the same engine with fewer bits than the model has now."""
    for name in LADDERS.get(found.engine, OURS):
        with contextlib.suppress(ValueError):  # not a format here, or not of this model's widths
            weights = weights_as(found.weights.config, name)
            if weights.sizes.total < found.weights.sizes.total:
                yield weights


def _again(
    what: str,
    found: Fit,
    fraction: float | None,
    *,
    weights: Weights | None = None,
    machine: Machine | None = None,
    load: Load | None = None,
    engine: Engine | None = None,
) -> Change:
    other = fit(
        weights or found.weights, machine or found.machine, engine or found.engine, load or found.load, fraction
    )
    return Change(what, None if other.problem else decode(other).bound, other.problem is None)
