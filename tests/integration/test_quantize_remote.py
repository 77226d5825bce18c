"""Quantising a checkpoint that is nowhere on this machine: the same files, whatever the network and the power do."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
import virtual_k1
from checkpoints import edit_tensors
from virtual_k1 import COMMIT, RangeServer, VirtualCheckpoint, serving, small

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError, remote, streaming, verify_checkpoint
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.journal import MANIFEST, STATE
from axk1.checkpoint.merge import merge_checkpoints
from axk1.checkpoint.quantize import quantize_checkpoint

SHARD = "250KB"
HUB = "/{repo_id}/resolve/{revision}/{filename}"


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


def test_from_the_hub_it_is_the_same(server, checkpoint, expected, tmp_path, monkeypatch):
    """A server on this machine stands for the hub: its listing says the commit and the sums."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.address.rpartition("/")[0])
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + HUB)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.sums = False  # the sums of the listing are enough
    quantize_checkpoint("owner/virtual@main", tmp_path / "new", "int4", 32, max_shard_size=SHARD)
    assert sums(tmp_path / "new") == expected
    manifest = json.loads((tmp_path / "new" / MANIFEST).read_text())
    assert (manifest["source"]["name"], manifest["source"]["revision"]) == ("owner/virtual", COMMIT)
    assert all(
        held == [checkpoint.size(name), checkpoint.sum(name)] for name, held in manifest["source"]["files"].items()
    )
    assert 'base_model: "owner/virtual"' in (tmp_path / "new/README.md").read_text()
    server.faults = deque([""] * 20 + ["flip"])
    with pytest.raises(CheckpointError, match="came with the SHA-256"):
        quantize_checkpoint("owner/virtual", tmp_path / "other", "int4", 32, max_shard_size=SHARD)
    with pytest.raises(ValueError, match=r"owner/none is no folder here and cannot be had from the hub"):
        quantize_checkpoint("owner/none", tmp_path / "third", "int4")
    assert not (tmp_path / "cache").exists(), "nothing of the source is kept"


def test_large_matrices_are_taken_by_their_rows(server, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1 << 15)
    assert quantised(server, tmp_path / "new") == expected


def test_everything_that_reads_checkpoints_reads_from_an_address(server, tmp_path, monkeypatch):
    """What a folder gives is what an address gives, whatever the order and the pieces in which it is read."""
    folder = server.checkpoint.save(tmp_path / "folder")
    half = Path(shutil.copytree(folder, tmp_path / "half"))
    edit_tensors(next(half.glob("model-00001*")), lambda tensors: next(iter(tensors.values())).mul_(0.5))
    for layout in ("released", "per_expert"):
        for source, name in ((folder, "here"), (server.address, "afar")):
            monkeypatch.setattr(streaming, "PIECE_BYTES", 1 << (26 if name == "here" else 15))
            convert_checkpoint(source, tmp_path / name / layout, layout, SHARD)
            merge_checkpoints([source, half], [0.75, 0.25], tmp_path / name / f"merged-{layout}", layout, SHARD)
        for form in (layout, f"merged-{layout}"):
            assert sums(tmp_path / "afar" / form) == sums(tmp_path / "here" / form) != {}


@pytest.mark.parametrize("file_type", ["q8_0", "bf16"])
def test_gguf_files_from_an_address(server, tmp_path, file_type):
    pytest.importorskip("gguf")
    from axk1.integrations.llamacpp.export import export_gguf

    folder = server.checkpoint.save(tmp_path / "virtual")
    here = export_gguf(folder, tmp_path / "here", file_type, "1MB")
    afar = export_gguf(server.address, tmp_path / "afar", file_type, "1MB")
    assert len(here) > 2 and [file.read_bytes() for file in here] == [file.read_bytes() for file in afar]
    server.faults = deque([""] * 30 + ["flip"])
    with pytest.raises(CheckpointError, match=r"came with (the SHA-256|other bytes)"):
        export_gguf(server.address, tmp_path / "cut", file_type, "1MB")
    again = export_gguf(server.address, tmp_path / "cut", file_type, "1MB")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in here]


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
            code = 1
            try:
                quantize_checkpoint(server.address, target, "int4", 32, max_shard_size=SHARD)
                code = 0
            finally:
                os._exit(code)
        limit, done, status = begun + dice.uniform(0, span), 0, 0
        while time.monotonic() < limit and not done:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.002)
        if done:
            assert status == 0, "a run that was not killed failed"
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
    """1.5 GB of weights, in a process that takes less, libraries and page cache included."""
    command = [sys.executable, virtual_k1.__file__, str(tmp_path / "new"), "--eighth", "--limit", "1.4"]
    done = subprocess.run([*command, "--seconds", "500"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and '"complete": true' in done.stdout, done.stdout + done.stderr
    taken = [line for line in done.stdout.splitlines() if ".safetensors" in line]
    files = json.loads((tmp_path / "new" / MANIFEST).read_text())["files"]
    assert len(files) > 4 and len(taken) == len(files), "each shard verified, handed on and dropped"
    found = re.search(r"exit 0, peak (\d\.\d+) GB of 1.4 allowed, ([\d,]+) bytes in all", done.stdout)
    if found is None:
        pytest.skip("no cgroup can be made here, so nothing bounds the memory")
    assert float(found[1]) < 1.2 < int(found[2].replace(",", "")) / 1e9
