"""Where a model lies on a machine: weights by part, latents, activations and what is left, memory by memory.

On a cluster's GPUs the placement is that of ``axk1 serve --engine`` (:mod:`axk1.plan.placement`). On one machine
whatever every token reads goes to the fastest memory, with the latents; the routed experts, of which a token reads a
few, fill what is left of it, then the processor's memory, then the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from axk1.plan.machines import Machine, Unit
from axk1.plan.memory import GB, Parallel, Spare, Step, activation_bytes, fullest_parts, latents_per_token
from axk1.plan.placement import SHARES, Wish, choose
from axk1.plan.process import BASE
from axk1.plan.weights import Weights, without_mtp

Engine = Literal["axk1", "vllm", "sglang", "ktransformers", "llamacpp", "mlx"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
CLUSTER: tuple[Engine, ...] = ("vllm", "sglang")
STREAMING: tuple[Engine, ...] = ("axk1", "llamacpp")
"""Engines that read routed experts from the disk as tokens need them."""
SPARE: dict[str, Spare] = {"vllm": "middle", "sglang": "last"}
EXPERTS = "routed experts"
OVERHEAD = 3 * GB // 2
"""Estimate: a GPU's context and buffers, where no graphs are captured."""


@dataclass(frozen=True)
class Load:
    """What is served."""

    context: int
    """Tokens of each request, prompt and reply."""
    requests: int = 1
    prompt: int = 2048
    """Tokens of a prompt that are computed in one step."""

    @property
    def step(self) -> Step:
        """The largest step."""
        return Step(max(self.prompt, self.requests), self.requests)


@dataclass(frozen=True)
class Place:
    """One kind of memory of a machine, all equal ones together."""

    unit: Unit
    count: int
    usable: int
    """Bytes of one."""
    weights: dict[str, int] = field(default_factory=dict)
    """Bytes of one, by part."""
    latents: int = 0
    activations: int = 0
    reserve: int = 0

    @property
    def name(self) -> str:
        """``memory`` or a GPU's name."""
        return self.unit.name

    @property
    def used(self) -> int:
        """Bytes of one."""
        return sum(self.weights.values()) + self.latents + self.activations + self.reserve

    @property
    def free(self) -> int:
        """Bytes of one; negative: so many are missing."""
        return self.usable - self.used


@dataclass(frozen=True)
class Fit:
    """A model on a machine."""

    weights: Weights
    machine: Machine
    engine: Engine
    load: Load
    places: tuple[Place, ...]
    parallel: Parallel
    latents_per_token: int
    """Bytes on one memory of the fullest place that holds them."""
    on_disk: int = 0
    """Bytes of routed experts that no memory holds."""
    reasons: tuple[str, ...] = ()
    problem: str | None = None
    """Why it does not fit; None: it does."""

    @property
    def experts(self) -> int:
        """Bytes of all routed experts."""
        return self.weights.parts.get(EXPERTS, 0)

    @property
    def resident(self) -> float:
        """The share of the routed experts that is in memory."""
        return 1 - self.on_disk / self.experts if self.experts else 1.0


def default_engine(machine: Machine) -> Engine:
    """What people run on such a machine."""
    if machine.unified:
        return "mlx"
    if machine.gpus * machine.nodes >= 4:
        return "vllm"
    return "ktransformers" if machine.gpus else "axk1"


def default_format(engine: Engine) -> str:
    """A format that ``engine`` reads and most machines hold."""
    return {"mlx": "mlx-4", "llamacpp": "q4_k"}.get(engine, "int4")


def fit(weights: Weights, machine: Machine, engine: Engine, load: Load, fraction: float | None = None) -> Fit:
    """Places a model.

    Args:
        fraction: the part of a cluster's GPU that its engine may use; None: the first of ``SHARES`` that is enough.

    Raises:
        ValueError: the machine has no GPU for an engine that needs one, or a load that the model was not made for.
    """
    longest = weights.config.max_position_embeddings
    if not 1 <= load.context <= longest:
        raise ValueError(f"--context is {load.context}; the model was made for 1 to {longest} tokens.")
    if load.requests < 1 or load.prompt < 1:
        raise ValueError("--requests and --prompt must be at least 1.")
    if engine not in CLUSTER:
        return _on_machine(weights, machine, engine, load)
    shares = SHARES if fraction is None else (fraction,)
    tried = (_on_cluster(weights, machine, engine, load, share) for share in shares)
    return next(filter(_is_possible, tried), None) or _on_cluster(weights, machine, engine, load, shares[-1])


def _is_possible(found: Fit) -> bool:
    return found.problem is None


def _on_cluster(weights: Weights, machine: Machine, engine: Engine, load: Load, fraction: float) -> Fit:
    weights = without_mtp(weights)
    step = replace(load.step, tokens=max(load.step.tokens, 8192))
    try:
        choice = choose(weights, machine.hardware, Wish(), step, fraction, SPARE[engine])
    except ValueError as error:
        if machine.gpu is None:
            raise
        return Fit(weights, machine, engine, load, (), Parallel(), 0, problem=str(error))
    parallel, memory = choice.parallel, choice.memory
    parts = fullest_parts(weights, parallel, SPARE[engine])
    latents = load.context * load.requests * memory.latents_per_token // parallel.data
    assert machine.gpu is not None
    place = Place(machine.gpu, machine.hardware.total, memory.usable, parts)
    place = replace(place, latents=latents, activations=memory.activations, reserve=memory.reserve)
    problem = None
    if place.free < 0:
        problem = (
            f"{load.requests} request(s) of {load.context:,} tokens do not fit: latents of {memory.tokens:,} tokens "
            f"in all do on each GPU."
        )
    return Fit(
        weights,
        machine,
        engine,
        load,
        (place,),
        parallel,
        memory.latents_per_token,
        reasons=choice.reasons,
        problem=problem,
    )


def _on_machine(weights: Weights, machine: Machine, engine: Engine, load: Load) -> Fit:
    """Fills the memories from the fastest on."""
    weights = weights if engine == "axk1" else without_mtp(weights)
    per_token = latents_per_token(weights.config, Parallel())
    latents = load.context * load.requests * per_token
    activations = activation_bytes(weights.config, Parallel(), load.step)
    parts = dict(weights.parts)
    experts, embedding = parts.pop(EXPERTS, 0), parts.pop("embedding", 0)
    count, gpu = machine.gpus, machine.gpu if engine not in ("axk1", "mlx") else None
    places, rest, usable = [], experts, machine.host.memory - machine.kept
    if gpu:
        place = Place(gpu, count, gpu.memory, _each(parts, count), latents // count, activations, OVERHEAD)
        whole = 0 if engine == "ktransformers" else rest
        place, rest = _filled(place, rest, whole, count)
        places.append(place)
        host = Place(machine.host, 1, usable, {"embedding": embedding}, reserve=BASE)
    else:
        host = Place(machine.host, 1, usable, {**parts, "embedding": embedding})
        host = replace(host, latents=latents, activations=activations, reserve=BASE)
    host, rest = _filled(host, rest, rest, 1)
    places.append(host)
    found = Fit(weights, machine, engine, load, tuple(places), Parallel(), per_token, on_disk=rest)
    return replace(found, problem=_problem(found, rest))


def _filled(place: Place, experts: int, most: int, count: int) -> tuple[Place, int]:
    """``place`` with as many of the bytes ``experts`` as go in, at most ``most``; the rest."""
    held = max(0, min(most, place.free * count))
    weights = place.weights | ({EXPERTS: held // count} if held else {})
    return replace(place, weights=weights), experts - held


def _each(parts: dict[str, int], count: int) -> dict[str, int]:
    return {part: -(-size // count) for part, size in parts.items()}


def _problem(found: Fit, rest: int) -> str | None:
    for place in found.places:
        if place.free < 0:
            return (
                f"What every token reads, {found.load.requests} x {found.load.context:,} tokens of latents and the "
                f"activations need {place.used / GB:.1f} GB of {place.name}, and {place.usable / GB:.1f} may be used."
            )
    if rest and found.engine not in STREAMING:
        return f"{rest / GB:.1f} GB of experts are left over, and {found.engine} reads none from the disk."
    return None
