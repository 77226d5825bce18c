"""The models that are measured: random ones of known shape, made once, or any checkpoint; never empty weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from axk1.checkpoint.compressed import make_plan
from axk1.checkpoint.convert import STATE, convert_checkpoint
from axk1.checkpoint.files import INDEX, Stored, load_config, open_checkpoint
from axk1.checkpoint.hub import HubId, hub_folder
from axk1.checkpoint.names import TensorSpec, detect_layout, expected_tensors, expert_slices
from axk1.checkpoint.write import staged_folder
from axk1.config import AXK1Config
from axk1.files import write_text
from axk1.folders import user_cache
from axk1.quantized.plan import Kind

SEED = 0
SHARD_BYTES = 2 * 10**9
BENCH_MODELS: dict[str, dict[str, Any]] = {
    "bench-440m": dict(
        vocab_size=4_096,
        hidden_size=1_024,
        intermediate_size=3_072,
        moe_intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=16,
        n_routed_experts=64,
        q_lora_rank=768,
    ),
    "bench-7b": dict(
        vocab_size=65_536,
        hidden_size=2_048,
        intermediate_size=8_192,
        moe_intermediate_size=768,
        num_hidden_layers=24,
        num_attention_heads=16,
        n_routed_experts=64,
        q_lora_rank=1_024,
    ),
    "bench-tiny": dict(  # to see that every engine runs; vLLM on CPU knows latents of 512 + 64 only
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        n_routed_experts=16,
        q_lora_rank=64,
    ),
}
BENCH_MODELS["bench-440m-mtp"] = BENCH_MODELS["bench-440m"] | {"num_nextn_predict_layers": 1}
BENCH_MODELS["bench-tiny-mtp"] = BENCH_MODELS["bench-tiny"] | {"num_nextn_predict_layers": 1}
MAY_BE_ZERO = "e_score_correction_bias"
"""The one tensor whose zeros mean something: no correction."""


@dataclass(frozen=True)
class Model:
    """A checkpoint to measure. ``folder`` holds it in the released layout, ``cache`` what was derived from it."""

    name: str
    folder: Path
    cache: Path
    config: AXK1Config
    random: bool


def cache_root(folder: Path | None = None) -> Path:
    """Where weights are kept between runs: ``folder``, else AXK1_BENCH_CACHE, else the user's cache folder."""
    named = folder or os.environ.get("AXK1_BENCH_CACHE")
    return Path(named).expanduser().resolve() if named else user_cache("bench")


def find_model(name: str, cache: Path, progress: Callable[[float], None] = lambda share: None) -> Model:
    """The bench model ``name``, its weights made if they are not there yet, or the checkpoint in the folder ``name`` or
    of that name on the hub.

    Raises:
        ValueError: neither a bench model nor a checkpoint, or weights that are all zero or not finite.
    """
    if name in BENCH_MODELS:
        config = AXK1Config(**BENCH_MODELS[name])
        home = cache / f"{name}-{_digest(BENCH_MODELS[name], SEED)}"
        if not (home / "released").is_dir():
            write_random(config, home / "released", SEED, progress)
        model = Model(name, home / "released", home, config, random=True)
    elif Path(name, "config.json").is_file():
        model = _checkpoint(Path(name).resolve(), cache)
    elif (wanted := HubId.parse(name)) is not None:
        model = _checkpoint(hub_folder(wanted), cache)
    else:
        known = ", ".join(BENCH_MODELS)
        raise ValueError(f"{name!r} is neither a checkpoint folder nor a bench model ({known}).")
    check_weights(model.folder)
    return model


def write_random(
    config: AXK1Config, folder: Path, seed: int, progress: Callable[[float], None] = lambda share: None
) -> None:
    """Writes a checkpoint of random weights, tensor by tensor: the same seed gives the same values.

    Matrices are normal with variance 1 / inputs, so that states and logits stay near 1 and the router's choices vary;
    norms are 1, the router's bias is small and not zero.
    """
    specs = list(expected_tensors(config))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        done, total = 0, sum(spec.size for spec in specs)
        for spec in specs:
            yield spec.name, random_tensor(spec, seed)
            done += spec.size
            progress(done / total)

    write_tensors(config, folder, tensors())


def random_tensor(spec: TensorSpec, seed: int) -> torch.Tensor:
    """The values of one tensor; they depend on its name and the seed alone."""
    generator = torch.Generator().manual_seed(int(_digest(spec.name, seed), 16))
    if spec.name.endswith(MAY_BE_ZERO):
        return torch.empty(spec.shape).normal_(0, 0.01, generator=generator)
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=torch.bfloat16)
    std = spec.shape[-1] ** -0.5
    return torch.empty(spec.shape, dtype=torch.bfloat16).normal_(0, std, generator=generator)


def write_tensors(config: AXK1Config, folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Writes a sharded checkpoint from a stream of tensors; nobody ever sees half of it."""
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with staged_folder(folder) as staged:

        def flush() -> None:
            name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, staged / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, name))
            shard.clear()

        for name, tensor in tensors:
            shard[name] = tensor.contiguous()
            if sum(held.nbytes for held in shard.values()) > SHARD_BYTES:
                flush()
        if shard:
            flush()
        write_text(staged / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}))
        config.architectures = ["AXK1ForCausalLM"]
        config.dtype = torch.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
        config.save_pretrained(staged)


def check_weights(folder: Path) -> None:
    """Reads every tensor: a benchmark of zeros measures nothing, since zeros compress, skip and never overflow.

    Raises:
        ValueError: a tensor that is all zero (the router's bias may be), or holds NaN or infinity.
    """
    for name, tensor in read_tensors(open_checkpoint(folder)):
        if tensor.is_floating_point() and tensor.element_size() == 1:  # fp8 has no test of its own
            tensor = tensor.float()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{folder}: {name} holds NaN or infinity; a benchmark of it would mean nothing.")
        if not name.endswith(MAY_BE_ZERO) and not bool(tensor.any()):
            raise ValueError(f"{folder}: {name} is all zero; a benchmark of it would mean nothing.")


def read_tensors(stored: Stored) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint, file by file."""
    for file in stored.files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                yield name, opened.get_tensor(name)


def per_expert(model: Model) -> Path:
    """The model as vLLM 0.32 needs it: a tensor an expert, router bias and all norms present, no MTP module."""
    target = model.cache / "per-expert"
    if not target.is_dir():
        config = AXK1Config.from_dict(model.config.to_dict() | {"num_nextn_predict_layers": 0})
        write_tensors(config, target, _per_expert_tensors(model.folder, config))
    return target


def _per_expert_tensors(folder: Path, config: AXK1Config) -> Iterator[tuple[str, torch.Tensor]]:
    specs = {spec.name: spec for spec in expected_tensors(config, "per_expert")}
    for name, tensor in read_tensors(open_checkpoint(folder)):
        if slices := expert_slices(config, name):
            parts = [(part.name, tensor[part.expert, part.start : part.stop]) for part in slices]
        else:
            parts = [(name, tensor)]
        yield from (part for part in parts if specs.pop(part[0], None) is not None)
    for name, spec in specs.items():  # optional ones: no bias means zero, the norm of a dense layer is never applied
        zero = name.endswith(MAY_BE_ZERO)
        yield name, torch.zeros(spec.shape) if zero else torch.ones(spec.shape, dtype=torch.bfloat16)


def quantized(model: Model, scheme: Kind) -> Path:
    """The model as `axk1 quantize --scheme` writes it; once for each way that it has done that."""
    from axk1.checkpoint.quantize import quantize_checkpoint

    plan = make_plan(model.config, scheme)
    target = model.cache / f"{scheme}-{_digest(str(plan))}"
    if not _finished(target):
        quantize_checkpoint(model.folder, target, scheme)
    return target


def _finished(folder: Path) -> bool:
    """Whether a conversion into ``folder`` has come to its end."""
    return (folder / "config.json").is_file() and not (folder / STATE).is_file()


def _checkpoint(folder: Path, cache: Path) -> Model:
    stored, config = open_checkpoint(folder), load_config(folder)
    home = cache / f"{folder.name}-{_digest(str(folder), [file.stat().st_mtime_ns for file in stored.files])}"
    if detect_layout(stored.tensors) == "per_expert":
        if not _finished(home / "released"):
            convert_checkpoint(folder, home / "released", "released")
        folder = home / "released"
    return Model(folder.name if folder.name != "released" else home.name, folder, home, config, random=False)


def stored_bytes(folder: Path, itemsize: int | None = None) -> dict[str, int]:
    """Bytes of every tensor of a checkpoint: as stored, or as if each value took ``itemsize``."""
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
    tensors = open_checkpoint(folder).tensors
    return {name: tensor.size * (itemsize or widths.get(tensor.dtype, 1)) for name, tensor in tensors.items()}


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
