"""MoE layers of K1's full width, in random int4 weights, from disk: the bits, the reads and the time of a step.

    python benchmarks/full_width.py make FOLDER [--layers 4] [--divide 1]
    python benchmarks/full_width.py check FOLDER [--cache 3GiB]
    python benchmarks/full_width.py measure FOLDER [--cache 3GiB] [--tokens 8] [--json FILE]

``make`` writes them straight to the file format of ``axk1 quantize`` (4.5 GB a layer). ``check`` compares logits with
those of the same steps with one layer after the other in memory, bit for bit, and with plain PyTorch. ``measure`` sets
the time of a step beside what its bytes and its arithmetic take by themselves. Random weights route evenly: they show
what reading costs and say nothing about how often an expert comes back. ``--divide 8`` makes all widths an eighth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from axk1.bench.workers.protocol import peak_rss
from axk1.checkpoint.compressed import ITEM_BYTES, make_plan, stored_specs
from axk1.checkpoint.files import INDEX
from axk1.checkpoint.names import TensorSpec, expected_tensors
from axk1.checkpoint.shards import Output, write_header
from axk1.config import AXK1Config
from axk1.experts.store import ExpertStore, store_of
from axk1.files import write_text
from axk1.generation.batch import Assembler
from axk1.generation.pages import Pool
from axk1.kernels.dispatch import executor
from axk1.kernels.streamed import StreamedExperts
from axk1.load import load_model

VOCABULARY = 4096
"""Of the test model: K1's embedding and head would take 4.7 GB that no expert is read for."""
K1_LAYERS = 60
STD = 0.02
GIB = 2**30


def k1_config(layers: int, divide: int) -> AXK1Config:
    """MoE layers of K1's width, or a fraction of it, and nothing else."""
    base = AXK1Config()
    widths = ("hidden_size", "moe_intermediate_size", "intermediate_size", "num_attention_heads", "q_lora_rank")
    fields: dict[str, Any] = {name: getattr(base, name) // divide for name in widths}
    fields |= {"num_key_value_heads": fields["num_attention_heads"], "vocab_size": VOCABULARY}
    fields |= {"num_hidden_layers": layers, "mlp_layer_types": ["sparse"] * layers, "first_k_dense_replace": 0}
    return AXK1Config(**fields, num_nextn_predict_layers=0, max_position_embeddings=4096, dtype="bfloat16")


def make(folder: Path, layers: int, divide: int, group: int) -> None:
    """Writes the checkpoint, one file a layer."""
    config = k1_config(layers, divide)
    plan = make_plan(config, "int4", group)
    folder.mkdir(parents=True)
    config.quantization_config = plan.to_dict()  # pyright: ignore[reportAttributeAccessIssue]
    config.architectures = ["AXK1ForCausalLM"]
    write_text(folder / "config.json", config.to_json_string())
    shards: dict[str, list[TensorSpec]] = {}
    for spec in stored_specs(expected_tensors(config, "per_expert"), plan):
        number = int(spec.name.split("layers.")[1].split(".")[0]) + 1 if "layers." in spec.name else 0
        if not spec.optional or "post_mlp" in spec.name:
            shards.setdefault(f"model-{number:05d}.safetensors", []).append(spec)
    weight_map = {spec.name: name for name, specs in shards.items() for spec in specs}
    total = sum(spec.size * ITEM_BYTES[spec.dtype] for specs in shards.values() for spec in specs)
    random, done, start = np.random.Generator(np.random.SFC64(0)), 0, time.perf_counter()
    for name, specs in sorted(shards.items()):
        done += _write(folder / name, specs, random)
        rate = done / (time.perf_counter() - start)
        print(f"{name}: {done / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e6:.0f} MB/s", flush=True)  # noqa: T201
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(folder / INDEX, json.dumps(index))


def _write(file: Path, specs: list[TensorSpec], random: np.random.Generator) -> int:
    by_name = {spec.name: spec for spec in specs}
    with file.open("xb") as stream:
        begins = write_header(stream, [Output(spec.name, spec.dtype, spec.shape) for spec in specs])
        for name in begins:  # in the order of the file
            stream.write(_values(by_name[name], specs, random))
        size = stream.tell()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def _values(spec: TensorSpec, specs: list[TensorSpec], random: np.random.Generator) -> bytes:
    """Random values of a tensor as its bytes."""
    size = spec.size * ITEM_BYTES[spec.dtype]
    if spec.name.endswith("weight_shape"):
        packed = next(each for each in specs if each.name == spec.name.removesuffix("shape") + "packed")
        return np.array([packed.shape[0], packed.shape[1] * 8], dtype=np.int64).tobytes()
    if spec.name.endswith("weight_scale"):  # int8 is used for kv_b_proj alone
        top = 4.6 if "kv_b" not in spec.name else 74.0
        scales = torch.from_numpy(random.uniform(0.5, 1.5, spec.size).astype(np.float32)) * (STD / top)
        return scales.bfloat16().view(torch.int16).numpy().tobytes()
    if spec.dtype in ("I32", "I8"):
        return random.integers(0, 2**64, -(-size // 8), dtype=np.uint64).tobytes()[:size]
    if "norm" in spec.name:
        return torch.ones(spec.size, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    values = torch.from_numpy(random.standard_normal(spec.size, dtype=np.float32)) * STD
    return values.bfloat16().view(torch.int16).numpy().tobytes()


class Steps:
    """A sequence on compiled kernels, step by step."""

    def __init__(self, model: Any) -> None:
        self._pool = Pool(model.config, model.dtype, torch.device("cpu"))
        self._assembler, self._table, self._cached = Assembler(torch.device("cpu")), self._pool.open(), 0
        found = executor(model, model.dtype)
        assert found is not None, "the kernels do not run this model"
        self._executor = found

    def __call__(self, ids: list[int]) -> torch.Tensor:
        """Logits of the last of these tokens; several are read as a prompt."""
        self._pool.grow(self._table, self._cached + len(ids) + 8)
        prompts = int(len(ids) > 1)
        batch = self._assembler.batch([self._table], [ids], [self._cached], [1], prompts=prompts)
        self._cached += len(ids)
        return self._executor.step(batch).logits[-1]


def tokens(count: int, seed: int) -> list[int]:
    """Random ids."""
    return torch.randint(2, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT = tokens(6, 0)


@torch.no_grad()
def run(model: Any) -> torch.Tensor:
    """Logits of a prompt of six tokens and two replies after it."""
    steps = Steps(model)
    return torch.stack([steps(PROMPT), *(steps([token]) for token in tokens(2, 1))])


@torch.no_grad()
def check(folder: Path, cache: str) -> None:
    """The bits with every layer in turn in memory; and the distance to plain PyTorch in float32 of the same weights."""
    model: Any = load_model(folder, device="cpu", expert_cache=cache).eval()
    expected = run(model)
    print(f"{store_of(model).counters()}", flush=True)  # noqa: T201  # pyright: ignore[reportOptionalMemberAccess]
    names = [name for name, module in model.named_modules() if isinstance(module, StreamedExperts)]
    for name in names:
        streamed = model.get_submodule(name)
        model.set_submodule(name, streamed.resident(list(range(streamed.num_experts))))
        same = torch.equal(run(model), expected)
        model.set_submodule(name, streamed)
        print(f"{name} in memory: {'the same bits' if same else 'OTHER BITS'}", flush=True)  # noqa: T201
        assert same
    ids = torch.tensor([PROMPT])
    plain = model(ids, use_cache=False).logits[0, -1].float()
    error = float((plain - expected[0]).norm() / plain.norm())
    print(f"plain PyTorch in bfloat16: relative distance of the logits {error:.4f}", flush=True)  # noqa: T201
    assert error < 0.05


def read_rates(store: ExpertStore) -> dict[int, float]:
    """By the number of threads."""
    return {readers: read_rate(store, readers) for readers in (1, 2, 4)}


def read_rate(store: ExpertStore, readers: int, count: int = 24) -> float:
    """Bytes a second of direct reads of whole experts at random, by so many threads: what the disk gives."""
    places = [store.layout.experts[key] for key in _some(list(store.layout.experts), count)]
    opened = [os.open(file, os.O_RDONLY | os.O_DIRECT) for file in store.layout.files]

    buffers: SimpleQueue[mmap] = SimpleQueue()
    for _ in range(readers):
        buffers.put(_touched(mmap(-1, store.layout.read_bytes)))

    def read(place: Any) -> int:
        buffer = buffers.get()
        extents = [place.extent[i] for i in range(place.extents)]
        views = [memoryview(buffer)[each.place : each.place + each.bytes] for each in extents]
        total = sum(os.preadv(opened[e.file], [view], e.offset) for e, view in zip(extents, views, strict=True))
        buffers.put(buffer)
        return total

    start = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        total = sum(pool.map(read, places))
    seconds = time.perf_counter() - start
    for each in opened:
        os.close(each)
    return total / seconds


def _touched(buffer: mmap) -> mmap:
    """Memory that is there, as the store's is."""
    buffer.write(bytes(len(buffer)))
    return buffer


def _some(keys: list[Any], count: int) -> list[Any]:
    order = np.random.default_rng(time.time_ns()).permutation(len(keys))
    return [keys[i] for i in order[:count]]


@torch.no_grad()
def measure(folder: Path, cache: str, count: int) -> dict[str, Any]:
    """Seconds of steps that read their experts beside what bytes and arithmetic take by themselves."""
    model: Any = load_model(folder, device="cpu", expert_cache=cache).eval()
    store = store_of(model)
    assert store is not None
    rates = read_rates(store)
    steps, found = Steps(model), []
    steps(PROMPT)
    before_io, before = _io_bytes(), store.counters()
    for token in tokens(count, 2):
        found.append(_timed(steps, store, token))
    counted, seen = store.counters().bytes - before.bytes, _io_bytes() - before_io
    compute = min(_timed(Steps(model), store, 7)["seconds"] for _ in range(5))  # the same experts again
    rates = {readers: statistics.mean([rates[readers], again]) for readers, again in read_rates(store).items()}
    rate = max(rates.values())
    for step in found:
        step["bound"] = max(step["bytes"] / rate, compute)
    ratio = sum(step["seconds"] for step in found) / sum(step["bound"] for step in found)
    layers = model.config.num_hidden_layers
    return {
        "layers": layers,
        "expert_bytes": store.layout.read_bytes,
        "cache_bytes": store.bytes,
        "peak_bytes": peak_rss(),
        "read_rate": {str(readers): value for readers, value in rates.items()},
        "steps": found,
        "compute_seconds": compute,
        "seconds_over_bound": ratio,
        "counted_bytes": counted,
        "process_bytes": seen,
        "counters": store.counters().to_dict(),
        "forecast_k1_seconds": forecast(layers, store.layout.read_bytes, rate, compute),
    }


def _timed(steps: Steps, store: ExpertStore, token: int) -> dict[str, float]:
    before, start = store.counters(), time.perf_counter()
    steps([token])
    seconds, after = time.perf_counter() - start, store.counters()
    found = {"bytes": after.bytes - before.bytes, "hits": after.hits - before.hits}
    return {"seconds": seconds, "waited": after.stall_seconds - before.stall_seconds, **found}


def forecast(layers: int, expert_bytes: int, rate: float, compute: float) -> dict[str, float]:
    """Seconds of a token of K1 at several hit rates: the layers measured, times 60, without embedding and head.

    A forecast: K1 has not been run, and how often its experts come back is not known."""
    read = K1_LAYERS * 8 * expert_bytes / rate
    return {f"{hits:.0%} hits": max(read * (1 - hits), K1_LAYERS / layers * compute) for hits in (0, 0.5, 0.9)}


def _io_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def _lines(result: dict[str, Any]) -> Iterator[str]:
    rates = ", ".join(f"{int(n)} threads {rate / 1e6:.0f}" for n, rate in result["read_rate"].items())
    yield f"direct reads of {result['expert_bytes']:,} bytes, MB/s: {rates}"
    for step in result["steps"]:
        yield f"step {step['seconds']:.3f} s, {step['bytes'] / 1e6:.0f} MB, bound {step['bound']:.3f} s"
    yield f"arithmetic alone {result['compute_seconds']:.3f} s"
    yield f"steps took {result['seconds_over_bound']:.3f} times the bound"
    yield f"cache {result['cache_bytes']:,} bytes; the process at most {result['peak_bytes']:,}"
    off = result["counted_bytes"] / max(result["process_bytes"], 1) - 1
    yield f"counted {result['counted_bytes']:,} bytes, /proc/self/io {result['process_bytes']:,} ({off:+.2%})"
    hopes = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["forecast_k1_seconds"].items())
    yield f"forecast of a token of K1 on this machine (not measured): {hopes}"


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("make", "check", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--cache", default="3GiB")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.command == "make":
        make(options.folder, options.layers, options.divide, options.group)
    elif options.command == "check":
        check(options.folder, options.cache)
    else:
        result = measure(options.folder, options.cache, options.tokens)
        print("\n".join(_lines(result)))  # noqa: T201
        if options.json:
            write_text(options.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
