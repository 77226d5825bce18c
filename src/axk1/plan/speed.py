"""How fast a placed model can be at most: bytes and operations of a step over the rates of the memories and processors.

A bound takes everything that may go on at once as going on at once, so that no program is faster. ``in_turns`` lets the
parts of one machine wait for each other, as they do within a token of a single sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from axk1.plan.bounds import experts_touched, latent_bytes, prefill_flops
from axk1.plan.fit import CLUSTER, EXPERTS, Fit, Place
from axk1.plan.formats import tensor_bytes
from axk1.plan.memory import stage_parts
from axk1.plan.weights import active_parameters, moe_layers
from axk1.quantized.plan import FP8

PAGE = 4096
"""Bytes: what reads of a disk past the page cache are a multiple of."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
"""Of the experts in memory, for the curve."""
FASTER: dict[str, float] = dict.fromkeys(FP8, 2.0)
"""Products in eight bits, of GPUs that have them, over those in bfloat16."""


@dataclass(frozen=True)
class Speed:
    """Of a step of all sequences together."""

    tokens: float
    """That a step gives out (decoding), or takes in (prompts)."""
    bytes: dict[str, float]
    """Read, by memory, and from the ``disk``; of several equal memories, by each."""
    flops: float
    seconds: dict[str, float]
    """By what takes them: a memory's name, ``disk``, ``links``, ``products``; rates that are not known left out."""

    @property
    def limit(self) -> str | None:
        """What takes longest; None where no rate is known."""
        return max(self.seconds, key=lambda name: self.seconds[name]) if self.seconds else None

    @property
    def bound(self) -> float | None:
        """Tokens per second that no program passes; None where no rate is known."""
        return self.tokens / max(self.seconds.values()) if self.seconds else None

    @property
    def in_turns(self) -> float | None:
        """Tokens per second where nothing goes on at once."""
        return self.tokens / sum(self.seconds.values()) if self.seconds else None


@dataclass(frozen=True)
class Point:
    """Of the curve of hit rates."""

    hits: float
    """The share of wanted experts that are found in memory."""
    cache: int
    """Bytes of experts in memory for that, where tokens choose evenly and nothing is known of the next."""
    disk_bytes: float
    """Per token."""
    bound: float | None


def expert_bytes(found: Fit) -> int:
    """Of one expert of one layer, as it is read; ``weight_shape`` stands elsewhere in the file."""
    config = found.weights.config
    experts = (s for s in found.weights.tensors if s.part == EXPERTS and s.dtype != "I64")
    return round(sum(map(tensor_bytes, experts)) / max(1, moe_layers(config)) / config.n_routed_experts)


def decode(found: Fit, hits: float | None = None) -> Speed:
    """A step that gives each request one token, at the end of its context.

    Args:
        hits: the share of wanted experts found in memory, where some are on the disk; None: as tokens that choose
            evenly find them.
    """
    config, load = found.weights.config, found.load
    flops = load.requests * (2 * active_parameters(config) + attention_flops(found))
    if found.engine in CLUSTER:
        return _on_cluster(found, min(load.requests, found.parallel.pipeline), load.requests, flops, load.context)
    return _on_machine(found, load.requests, flops, found.resident if hits is None else hits, latents=True)


def prefill(found: Fit) -> Speed:
    """One step over a prompt: each memory is read once, however many experts the tokens want between them."""
    tokens, stages = found.load.prompt, found.parallel.pipeline
    flops = prefill_flops(found.weights.config, active_parameters(found.weights.config), tokens)
    if found.engine in CLUSTER:  # a prompt for each stage
        return _on_cluster(found, stages, tokens * stages, flops * stages, 0)
    return _on_machine(found, tokens, flops, found.resident, latents=False)


def curve(found: Fit) -> list[Point]:
    """Decoding by hit rate: what a cache of each size finds where tokens choose evenly."""
    points = []
    for share in SHARES:
        speed = decode(found, share)
        disk = speed.bytes.get("disk", 0.0) / speed.tokens
        points.append(Point(share, round(share * found.experts), disk, speed.bound))
    return points


def attention_flops(found: Fit) -> float:
    """Of one token: its absorbed queries against the latents of the context, and the sums of these."""
    config = found.weights.config
    each = 2 * config.num_attention_heads * (2 * config.kv_lora_rank + config.qk_rope_head_dim)
    return config.num_hidden_layers * each * found.load.context


def _on_machine(found: Fit, tokens: int, flops: float, hits: float, latents: bool) -> Speed:
    """What a cache does not find comes from the disk and is then read from memory, like what it finds."""
    config = found.weights.config
    share = experts_touched(config, tokens) / config.n_routed_experts
    read = {place.name: _dense(place.weights) + latents * place.latents for place in found.places}
    rest = float(found.experts)
    for place in found.places:
        held = place.weights.get(EXPERTS, 0) * place.count if place.name != "memory" else rest
        read[place.name] += share * held / place.count
        rest -= held
    if found.on_disk:
        each = -(-expert_bytes(found) // PAGE) * PAGE
        read["disk"] = (1 - hits) * share * each * moe_layers(config) * config.n_routed_experts
    seconds = _seconds(found.places, read)
    if "disk" in read and found.machine.disk:
        seconds["disk"] = read["disk"] / found.machine.disk
    rate = sum((place.unit.flops or 0.0) * place.count for place in found.places)
    return Speed(tokens, read, flops, seconds | ({"products": flops / rate} if rate else {}))


def _on_cluster(found: Fit, groups: int, tokens: int, flops: float, context: int) -> Speed:
    """``groups`` of sequences go through the stages one behind the other; a stage is taken as the mean of all."""
    if not found.places:
        return Speed(tokens, {}, flops, {})
    (place,), parallel, config = found.places, found.parallel, found.weights.config
    stages, group = parallel.pipeline, tokens / groups
    share = experts_touched(config, group) / config.n_routed_experts
    parts: dict[str, float] = {}
    for stage in stage_parts(found.weights, parallel):
        for part, size in stage.items():
            parts[part] = parts.get(part, 0.0) + float(size)  # of all stages: a token goes through each
    latents = group * context * latent_bytes(config) / parallel.data
    read = {place.name: _dense(parts) + parts.get(EXPERTS, 0.0) * share + latents}
    seconds = _seconds(found.places, read)
    if place.unit.flops:
        rate = place.unit.flops * place.count * groups / stages * FASTER.get(found.weights.stored, 1.0)
        seconds["products"] = flops / rate
    link = found.machine.link if parallel.stage <= found.machine.gpus else found.machine.network
    if link and parallel.tensor > 1:
        sums = 2 * config.num_hidden_layers * 2 * (parallel.tensor - 1) / parallel.tensor  # two a layer, in bfloat16
        seconds["links"] = sums * group / parallel.data * config.hidden_size * 2 / link
    return Speed(tokens, read, flops, seconds)


def _dense(parts: dict[str, int] | dict[str, float]) -> float:
    return float(sum(size for part, size in parts.items() if part not in ("embedding", "MTP", EXPERTS)))


def _seconds(places: tuple[Place, ...], read: dict[str, float]) -> dict[str, float]:
    return {place.name: read[place.name] / place.unit.bandwidth for place in places if place.unit.bandwidth}
