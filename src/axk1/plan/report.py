"""A plan as plain data: what `axk1 plan --json` prints and its tables show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from axk1.plan.advice import changes, limit
from axk1.plan.bounds import latent_bytes
from axk1.plan.fit import Fit
from axk1.plan.process import process_memory
from axk1.plan.speed import Speed, curve, decode, expert_bytes, prefill
from axk1.plan.weights import active_parameters, parameter_counts


def to_dict(name: str, found: Fit, hits: float | None = None, fraction: float | None = None) -> dict[str, Any]:
    """Everything that is known of the plan.

    Args:
        name: what the model is called.
        hits: a hit rate to count with where experts are on the disk.
    """
    return {
        "model": _model(name, found),
        "machine": asdict(found.machine) | {"text": str(found.machine)},
        "engine": found.engine,
        "load": asdict(found.load),
        "parallel": asdict(found.parallel),
        "reasons": list(found.reasons),
        "fits": found.problem is None,
        "problem": found.problem,
        "places": [_place(place) for place in found.places],
        "process": _process(found),
        "experts_in_memory": found.resident,
        "experts_on_disk": found.on_disk,
        "decode": _speed(decode(found, hits)),
        "prefill": _speed(prefill(found)),
        "hit_rate": hits,
        "curve": [asdict(point) for point in curve(found)] if found.on_disk else [],
        "limit": limit(found, hits),
        "changes": [asdict(change) for change in changes(found, fraction)],
    }


def _model(name: str, found: Fit) -> dict[str, Any]:
    config, weights = found.weights.config, found.weights
    sizes, parameters = weights.sizes, sum(parameter_counts(config).values())
    return {
        "name": name,
        "stored": weights.stored,
        "group_size": weights.group_size,
        "parameters": parameters,
        "active_parameters": active_parameters(config),
        "bytes": sizes.total,
        "bits_per_weight": 8 * sizes.total / parameters,
        "bytes_per_token": sizes.per_token,
        "flops_per_token": decode(found).flops / found.load.requests,
        "parts": weights.parts,
        "latent_bytes_per_token": latent_bytes(config),
        "latent_bytes": latent_bytes(config) * found.load.context * found.load.requests,
        "expert_bytes": expert_bytes(found),
    }


def _process(found: Fit) -> dict[str, int] | None:
    """Of ``axk1 generate`` on a processor, where all experts are in memory."""
    if found.engine != "axk1" or found.on_disk:
        return None
    (place,) = found.places
    memory = process_memory(found.weights.config, found.weights.tensors, found.load.context, place.activations)
    return asdict(memory) | {"total": memory.total}


def _place(place: Any) -> dict[str, Any]:
    return asdict(place) | {"name": place.name, "used": place.used, "free": place.free}


def _speed(speed: Speed) -> dict[str, Any]:
    return asdict(speed) | {"bound": speed.bound, "in_turns": speed.in_turns, "limit": speed.limit}
