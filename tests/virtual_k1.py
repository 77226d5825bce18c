"""A checkpoint of any size that is nowhere: a server on this machine computes every byte of it from a seed.

Names, shapes and the number of files are those of the released A.X K1: 976 tensors in 260 files, 1.04 TB. Each block
of a tensor is a stretch of one table of bfloat16 numbers, chosen by the seed, the tensor and the block, so that it is
served as fast as memory is copied. Rows of the table differ in size, as weights do, and some hold outliers.

``python tests/virtual_k1.py FOLDER --seconds 150`` quantises what it can of it in that time, in a process whose
memory is bounded where this machine lets it be, each shard verified and dropped; the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axk1 import AXK1Config
from axk1.allocator import keep_freed_memory
from axk1.checkpoint.names import TensorSpec, expected_tensors, expert_part
from axk1.checkpoint.shards import Output, read_places, write_header
from axk1.quantized.formats import quantize
from axk1.quantized.plan import Scheme

SHARDS = 260
BLOCK = 1 << 18  # bytes that lie together in the table
INDEX = "model.safetensors.index.json"
COMMIT = "c" * 40  # as which the server has the checkpoint where it stands for the hub
MASK = (1 << 64) - 1


def small(**changes: Any) -> AXK1Config:
    """64 tensors, 4 MB."""
    sizes = dict(hidden_size=128, intermediate_size=256, moe_intermediate_size=64, vocab_size=512, q_lora_rank=64)
    sizes |= dict(num_hidden_layers=4, num_attention_heads=4, n_routed_experts=16, kv_lora_rank=32)
    return AXK1Config.preset("k1", **{**sizes, **changes})


def eighth() -> AXK1Config:
    """A.X K1 at an eighth of its width, all experts in six of its layers: 1.5 GB."""
    return AXK1Config.preset(
        "k1",
        hidden_size=896,
        intermediate_size=2304,
        moe_intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        q_lora_rank=192,
        kv_lora_rank=64,
        vocab_size=20480,
    )


class VirtualCheckpoint:
    """Files by name and bytes by place, computed when they are asked for.

    Args:
        table: values in the table from which blocks are taken; 2 bytes each.
    """

    def __init__(self, config: AXK1Config, shards: int = SHARDS, seed: int = 0, table: int = 1 << 25) -> None:
        self.config, self.seed = config, seed
        specs = [spec for spec in expected_tensors(config) if not spec.name.endswith("e_score_correction_bias")]
        self.names = [spec.name for spec in specs]
        self.held = self._files(specs, shards)
        self.headers = {name: self._header(held) for name, held in self.held.items()}
        self.table = self._table(table)
        self._sums: dict[str, str] = {}

    def _files(self, specs: list[TensorSpec], shards: int) -> dict[str, list[TensorSpec]]:
        """The fused tensors have files of their own; all others share what is left."""
        fused = [spec for spec in specs if len(spec.shape) == 3]
        others = [spec for spec in specs if len(spec.shape) != 3]
        rest, count = shards - len(fused), len(others)
        groups = [[spec] for spec in fused] + [others[count * i // rest : count * (i + 1) // rest] for i in range(rest)]
        order = {spec.name: i for i, spec in enumerate(specs)}
        groups = sorted((group for group in groups if group), key=lambda group: order[group[0].name])
        return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}

    def _header(self, held: list[TensorSpec]) -> tuple[bytes, list[tuple[int, int, int]]]:
        """The header, and (begin, end, number) of each tensor in the file."""
        stream = io.BytesIO()
        places = write_header(stream, [Output(spec.name, "BF16", spec.shape) for spec in held])
        numbers = {name: i for i, name in enumerate(self.names)}
        spans = [(places[spec.name], places[spec.name] + 2 * spec.size, numbers[spec.name]) for spec in held]
        return stream.getvalue(), sorted(spans)

    def _table(self, values: int) -> memoryview:
        random = np.random.Generator(np.random.Philox(self.seed))
        sizes = np.exp(random.normal(0, 0.3, values // 1024)).astype(np.float32).repeat(1024) * 0.02
        table = random.standard_normal(values, dtype=np.float32) * sizes
        table[random.integers(0, values, values // 20_000)] *= 8
        rounded = (table.view(np.uint32) + 0x8000) >> 16
        return rounded.astype(np.uint16).view(np.uint8).data

    @cached_property
    def small(self) -> dict[str, bytes]:
        """Configuration and index."""
        weight_map = {spec.name: name for name, held in self.held.items() for spec in held}
        total = sum(2 * spec.size for held in self.held.values() for spec in held)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        values = {**self.config.to_dict(), "dtype": "bfloat16"}
        return {"config.json": json.dumps(values).encode(), INDEX: json.dumps(index).encode()}

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if name in self.small:
            return len(self.small[name])
        return max(end for _, end, _ in self.headers[name][1])

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum(2 * spec.size for held in self.held.values() for spec in held)

    def read(self, name: str, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of a file from ``start`` up to ``stop``, in stretches that are not copied."""
        if name in self.small:
            yield memoryview(self.small[name])[start:stop]
            return
        header, spans = self.headers[name]
        if start < len(header):
            yield memoryview(header)[start : min(stop, len(header))]
        begins = [span[0] for span in spans]
        at = max(start, len(header))
        while at < stop:
            begin, end, number = spans[bisect_right(begins, at) - 1]
            block, within = divmod(at - begin, BLOCK)
            length = min(BLOCK - within, end - at, stop - at)
            place = self._place(number, block) + within
            yield self.table[place : place + length]
            at += length

    def _place(self, number: int, block: int) -> int:
        """Where in the table a block of a tensor begins: splitmix64 of seed, tensor and block."""
        z = (self.seed * 0x9E3779B97F4A7C15 + (number << 40) + block + 0x632BE59BD9B4E019) & MASK
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return (z ^ z >> 31) % ((len(self.table) - BLOCK) // 2) * 2

    def expert(self, base: str, expert: int, projection: str, shape: tuple[int, int]) -> torch.Tensor:
        """One expert's matrix ``shape``, of the layer whose experts' names begin with ``base``."""
        key = base + ("down_proj" if projection == "down_proj" else "gate_up_proj")
        name = next(name for name, held in self.held.items() if held[0].name == key)
        size = 2 * shape[0] * shape[1]
        start = self.headers[name][1][0][0] + size * (expert * (1 + ("gate" in key)) + (projection == "up_proj"))
        content = bytearray(b"".join(self.read(name, start, start + size)))
        return torch.frombuffer(content, dtype=torch.bfloat16).view(shape)

    def sum(self, name: str) -> str:
        """The SHA-256 of a file."""
        if name not in self._sums:
            digest = hashlib.sha256()
            for part in self.read(name, 0, self.size(name)):
                digest.update(part)
            self._sums[name] = digest.hexdigest()
        return self._sums[name]

    def save(self, folder: Path) -> Path:
        """Writes it all to a folder."""
        folder.mkdir(parents=True)
        for name in (*self.small, *self.held):
            with (folder / name).open("wb") as stream:
                stream.writelines(self.read(name, 0, self.size(name)))
        return folder


class RangeServer(ThreadingHTTPServer):
    """Serves a virtual checkpoint on this machine, as a folder and as a repository of the hub, with faults on request.

    Args:
        sums: whether files have their SHA-256 as entity tag, as the hub's have.

    Attributes:
        faults: what befalls the next requests for weights, one after the other: ``429``, ``503``, ``416``, ``short``
            (half a body, then the end), ``cut`` (half a body, then a reset), ``flip`` (one bit), ``tag`` (another
            entity tag), ``whole`` (no ranges); ``""`` is none.
        sent: bytes of weights that were sent.
    """

    daemon_threads = True

    def __init__(self, checkpoint: VirtualCheckpoint, sums: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.checkpoint, self.sums = checkpoint, sums
        self.faults: deque[str] = deque()
        self.sent, self.requests = 0, 0

    @property
    def address(self) -> str:
        """Of the checkpoint's folder."""
        return f"http://127.0.0.1:{self.server_port}/virtual"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up is no error."""


@contextmanager
def serving(checkpoint: VirtualCheckpoint, sums: bool = True) -> Iterator[RangeServer]:
    """The server, while the block lasts."""
    server = RangeServer(checkpoint, sums)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name, checkpoint = self.path.rpartition("/")[2], self.server.checkpoint
        if self.path.startswith("/api/models/owner/virtual"):
            return self._send_listing()
        if "/resolve/" in self.path and f"/resolve/{COMMIT}/" not in self.path:
            return self.send_error(404)
        if name not in checkpoint.held and name not in checkpoint.small:
            return self.send_error(404)
        fault = ""
        if name in checkpoint.held:
            self.server.requests += 1
            fault = self.server.faults.popleft() if self.server.faults else ""
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Retry-After", "0")
            return self.end_headers()
        self._send(name, fault)

    def _send_listing(self) -> None:
        """What the hub says of a repository: its commit, and of each file the size and the sum."""
        held, checkpoint = [*self.server.checkpoint.small, *self.server.checkpoint.held], self.server.checkpoint
        files: list[dict[str, Any]] = [{"rfilename": name, "size": checkpoint.size(name)} for name in held]
        for each in files:
            if each["rfilename"] in checkpoint.held:
                pointer = {"size": each["size"], "sha256": checkpoint.sum(each["rfilename"]), "pointerSize": 130}
                each["lfs"] = pointer
        content = json.dumps({"id": "owner/virtual", "sha": COMMIT, "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send(self, name: str, fault: str) -> None:
        size, checkpoint = self.server.checkpoint.size(name), self.server.checkpoint
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        start, stop = (0, size) if fault == "whole" else (int(asked[0]), int(asked[1]) + 1 if asked[1] else size)
        if start >= size:
            return self.send_error(416)
        self.send_response(200 if fault == "whole" else 206)
        if fault != "whole":
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        tag = checkpoint.sum(name) if self.server.sums else f"seed-{checkpoint.seed}"
        self.send_header("ETag", f'"{"0" * 64 if fault == "tag" else tag}"')
        self.end_headers()
        self._body(name, start, start + (stop - start) // 2 if fault in ("short", "cut") else stop, fault)

    def _body(self, name: str, start: int, stop: int, fault: str) -> None:
        for part in self.server.checkpoint.read(name, start, stop):
            if fault == "flip" and name in self.server.checkpoint.held:
                part, fault = bytearray(part), ""
                part[len(part) // 2] ^= 4
            self.connection.sendall(part)
            self.server.sent += len(part)
        if fault == "cut":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def bounded(limit: int) -> Iterator[Path | None]:
    """A memory cgroup (version 1 or 2) of ``limit`` bytes, page cache included; None where none can be made."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"axk1-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield None


def peak(group: Path) -> int:
    """The most bytes that a group held at once, page cache included."""
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next(int((group / name).read_text()) for name in names if (group / name).is_file())


def main() -> None:
    """Serves, and quantises in a process of its own until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--limit", type=float, default=4, help="of memory, 10^9 bytes")
    parser.add_argument("--eighth", action="store_true")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments)
    else:
        _watch(arguments)


def _work(arguments: argparse.Namespace) -> None:
    from axk1.checkpoint.quantize import quantize_checkpoint
    from axk1.kernels.rounding import rounded

    begun, seen = time.monotonic(), [-1, 0]
    checkpoint = _checkpoint(arguments)
    keep_freed_memory()  # as the command does, once the table is made

    def progress(done: int, total: int) -> None:
        seen[:] = (done if seen[0] < 0 else seen[0]), done
        if time.monotonic() - begun > arguments.seconds:
            rate = (seen[1] - seen[0]) / (time.monotonic() - begun)
            print(json.dumps({"done": done, "total": total, "source MB/s": round(rate / 1e6, 1)}), flush=True)  # noqa: T201
            os._exit(0)

    def drop(file: Path) -> None:
        check_sample(file, checkpoint)
        print(f"{time.monotonic() - begun:.0f} s: {file.name}, {file.stat().st_size:,} bytes", flush=True)  # noqa: T201
        file.unlink()

    size = arguments.group_size
    target, address = arguments.folder, arguments.worker
    shard = "100MB" if arguments.eighth else "5GB"
    quantize_checkpoint(
        address, target, "int4", size, max_shard_size=shard, progress=progress, finished=drop, rounder=rounded
    )
    print(json.dumps({"complete": True, "seconds": time.monotonic() - begun}))  # noqa: T201


def check_sample(file: Path, checkpoint: VirtualCheckpoint, matrices: int = 12, rows: int = 64) -> None:
    """Some rows of some matrices of a finished shard against the reference, from bytes that went over no network.

    Raises:
        AssertionError: another number of a shard.
    """
    places, chosen = read_places(file), random.Random(file.name)
    names = [name for name in places if expert_part(name) and name.endswith("_packed")]
    for name in chosen.sample(names, min(matrices, len(names))):
        part, place = expert_part(name), places[name]
        assert part is not None
        shape = (place.shape[0], 8 * place.shape[1])
        first = chosen.randrange(max(1, shape[0] - rows))
        source = checkpoint.expert(part.base, part.expert, part.projection, shape)[first : first + rows]
        scale = places[name.replace("_packed", "_scale")]
        found = quantize(source, Scheme("int4", shape[1] // scale.shape[1]))
        with file.open("rb") as stream:
            for held, tensor in ((place, found.values), (scale, found.scale.bfloat16())):
                content = tensor.flatten().view(torch.uint8).numpy().tobytes()
                stream.seek(held.start + first * (held.stop - held.start) // shape[0])
                assert stream.read(len(content)) == content, name


def _checkpoint(arguments: argparse.Namespace) -> VirtualCheckpoint:
    return VirtualCheckpoint(eighth(), 40) if arguments.eighth else VirtualCheckpoint(AXK1Config.preset("k1"))


def _watch(arguments: argparse.Namespace) -> None:
    checkpoint = _checkpoint(arguments)
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    with serving(checkpoint, sums=arguments.eighth) as server, bounded(int(arguments.limit * 1e9)) as group:

        def join() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        options = ["--seconds", str(arguments.seconds), "--group-size", str(arguments.group_size)]
        options += ["--eighth"] if arguments.eighth else []
        command = [sys.executable, __file__, str(arguments.folder), *options, "--worker", server.address]
        code = subprocess.run(command, preexec_fn=join, check=False).returncode
        note = "no cgroup" if group is None else f"peak {peak(group) / 1e9:.2f} GB of {arguments.limit} allowed"
        print(f"exit {code}, {note}, {checkpoint.total:,} bytes in all", flush=True)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
