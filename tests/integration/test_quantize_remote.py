"""Quantising a checkpoint that is nowhere on this machine: the same files, whatever the network and the power do."""

import hashlib
import json
import os
import random
import signal
import time
from collections import deque
from pathlib import Path

import pytest
from virtual_k1 import RangeServer, VirtualCheckpoint, bounded, eighth, peak, serving

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError, remote, verify_checkpoint
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.journal import MANIFEST, STATE
from axk1.checkpoint.quantize import quantize_checkpoint

SHARD = "250KB"


def small() -> AXK1Config:
    """64 tensors, 4 MB."""
    sizes = dict(hidden_size=128, intermediate_size=256, moe_intermediate_size=64, vocab_size=512, q_lora_rank=64)
    return AXK1Config.preset(
        "k1", num_hidden_layers=4, num_attention_heads=4, n_routed_experts=16, kv_lora_rank=32, **sizes
    )


@pytest.fixture(scope="module")
def checkpoint() -> VirtualCheckpoint:
    return VirtualCheckpoint(small(), shards=12, table=1 << 20)


@pytest.fixture
def server(checkpoint, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with serving(checkpoint) as running:
        yield running


@pytest.fixture(scope="module")
def expected(checkpoint, tmp_path_factory) -> dict[str, str]:
    """The sums of the files, from a folder on this disk."""
    root = tmp_path_factory.mktemp("local")
    quantize_checkpoint(checkpoint.save(root / "source"), root / "int4", "int4", 32, max_shard_size=SHARD)
    return sums(root / "int4")


def sums(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


def quantised(server: RangeServer, target: Path, **kwargs) -> dict[str, str]:
    quantize_checkpoint(server.address, target, "int4", 32, max_shard_size=SHARD, **kwargs)
    return sums(target)


def test_the_released_layout_has_976_tensors_in_260_files():
    released = VirtualCheckpoint(AXK1Config.preset("k1"), table=1 << 18)
    assert (len(released.names), len(released.held), released.total) == (976, 260, 1_037_966_118_912)
    name = next(name for name, held in released.held.items() if held[0].name.endswith("30.mlp.experts.gate_up_proj"))
    assert released.size(name) > 11e9
    one = b"".join(released.read(name, 9_000_000_000, 9_000_100_000))
    two = b"".join(released.read(name, 9_000_040_000, 9_000_050_000))
    assert len(one) == 100_000 and one[40_000:50_000] == two


def test_from_an_address_it_is_the_same_and_read_once(server, checkpoint, expected, tmp_path):
    assert quantised(server, tmp_path / "new") == expected
    heads = sum(len(header) for header, _ in checkpoint.headers.values())
    assert server.requests == 2 * len(checkpoint.held)  # headers, then each file in one go
    report = verify_checkpoint(tmp_path / "new")
    assert report.sums == len(expected) and report.finite
    manifest = json.loads((tmp_path / "new" / MANIFEST).read_text())
    assert {name: each["sha256"] for name, each in manifest["files"].items()} == expected
    assert manifest["source"]["files"] == {
        name: [checkpoint.size(name), checkpoint.sum(name)] for name in checkpoint.held
    }
    assert all(0.05 < error < 0.12 for key, error in manifest["errors"].items() if ".experts." in key)
    assert heads and not (tmp_path / "new" / STATE).exists()
    assert 'base_model: "virtual"' in (tmp_path / "new/README.md").read_text()


@pytest.mark.parametrize("fault", ["429", "503", "short", "cut"])
def test_a_network_that_breaks_is_waited_for(server, expected, tmp_path, fault):
    server.faults = deque([fault, ""] * 60)
    assert quantised(server, tmp_path / "new") == expected
    assert len(server.faults) < 120 - 2 * 12


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("416", "shorter than its header says"),
        ("404", "check the name"),
        ("whole", "not served in ranges"),
        ("tag", "changed on the server while it was read"),
        ("flip", "came with the SHA-256"),
    ],
)
def test_what_cannot_be_waited_for_is_one_clear_error(server, expected, tmp_path, fault, words):
    server.faults = deque([""] * 20 + [fault])
    with pytest.raises(CheckpointError, match=words) as error:
        quantised(server, tmp_path / "new")
    text = str(error.value)
    assert "model-" in text and "\n" not in text
    assert quantised(server, tmp_path / "new") == expected  # the same command goes on


def test_a_server_that_never_answers_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 3)
    server.faults = deque(["503"] * 99)
    with pytest.raises(CheckpointError, match=r"cannot be read \(HTTP 503\), 3 times: try again later"):
        quantised(server, tmp_path / "new")


def test_without_sums_a_change_is_still_seen(checkpoint, expected, tmp_path):
    with serving(checkpoint, sums=False) as server:
        assert quantised(server, tmp_path / "new") == expected
        server.faults = deque([""] * 20 + ["tag"])
        with pytest.raises(CheckpointError, match="changed on the server"):
            quantised(server, tmp_path / "other")


def test_an_address_where_nobody_answers(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 2)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(.*\), 2 times: try again later"):
        convert_checkpoint("http://127.0.0.1:9/x", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_shards_are_handed_on_and_may_go(server, expected, tmp_path):
    taken: dict[str, str] = {}
    stopped: list[str] = []

    def take(file: Path) -> None:
        taken[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        file.unlink()
        if len(taken) == 2 and not stopped:
            stopped.append(file.name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantised(server, tmp_path / "new", finished=take)
    assert len(taken) == 2
    quantised(server, tmp_path / "new", finished=take)  # the second is gone, but nobody heard that it was taken
    assert taken == expected
    manifest = json.loads((tmp_path / "new" / MANIFEST).read_text())
    assert {name: each["sha256"] for name, each in manifest["files"].items()} == expected


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_finished_shard_is_believed_by_its_sum_alone(server, expected, tmp_path, damage):
    class Cut(Exception):
        pass

    def cut(done: int, total: int) -> None:
        if done > 0.8 * total:
            raise Cut

    with pytest.raises(Cut):
        quantised(server, tmp_path / "new", progress=cut)
    file = min((tmp_path / "new").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content if damage == "bit" else content[:-9])
    if damage == "gone":
        file.unlink()
    assert quantised(server, tmp_path / "new") == expected


def kills(server: RangeServer, target: Path, count: int, seed: int = 0) -> list[dict[str, str]]:
    """The sums of every build that was finished while runs were killed, ``count`` in all, at random moments."""
    dice, killed, results = random.Random(seed), 0, []
    span = 1.0
    while killed < count:
        begun, child = time.monotonic(), os.fork()
        if not child:
            try:
                quantize_checkpoint(server.address, target, "int4", 32, max_shard_size=SHARD)
            finally:
                os._exit(0)
        limit, done = begun + dice.uniform(0, span), 0
        while time.monotonic() < limit and not done:
            done, _ = os.waitpid(child, os.WNOHANG)
            time.sleep(0.002)
        if done:
            span = 0.2 * span + 0.8 * (time.monotonic() - begun)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
        if (target / MANIFEST).is_file() and not (target / STATE).exists():
            results.append(sums(target))
            target.rename(target.with_name(f"{target.name}-{len(results)}"))
    return results


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_the_same(server, expected, tmp_path):
    """``AXK1_KILLS=200`` for the number that LOG.md tells of."""
    results = kills(server, tmp_path / "new", int(os.environ.get("AXK1_KILLS", "12")))
    results.append(quantised(server, tmp_path / "last"))
    if (tmp_path / "new").exists():
        results.append(quantised(server, tmp_path / "new"))
    assert all(result == expected for result in results)


@pytest.mark.slow
def test_an_eighth_of_k1_in_bounded_memory(tmp_path):
    """What a run takes beyond the libraries it loads, page cache included, is a small part of the 1.1 GB of weights."""
    with serving(VirtualCheckpoint(eighth(), shards=40), sums=True) as server, bounded(2_000_000_000) as group:
        child = os.fork()
        if not child:
            code = 1
            try:
                if group is not None:
                    (group / "cgroup.procs").write_text(str(os.getpid()))
                quantize_checkpoint(server.address, tmp_path / "new", "int4", 32, max_shard_size="200MB")
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert status == 0
        if group is None:
            pytest.skip("no cgroup can be made here")
        assert peak(group) < 1_000_000_000
        assert verify_checkpoint(tmp_path / "new").sums > 1
