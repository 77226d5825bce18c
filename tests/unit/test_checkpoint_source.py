"""Files whose sums are compared while they are read, in whatever order; memory; what a long command says."""

import hashlib
import random
from pathlib import Path

import pytest
from virtual_k1 import VirtualCheckpoint, small

from axk1.checkpoint import CheckpointError, streaming
from axk1.checkpoint import source as module
from axk1.checkpoint.journal import Finished, Journal, settled
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.source import Verified
from axk1.cli.progress import EVERY, Lines

BLOCK = 64


class Bytes:
    """A file in memory that counts what is read of it; from the read of number ``flip`` on, one bit is another."""

    def __init__(self, content: bytes, known: bool = True, flip: int | None = None) -> None:
        self.content, self.size, self.identity = content, len(content), [len(content)]
        self.sha256 = hashlib.sha256(content).hexdigest() if known else None
        self.taken, self.reads, self.flip = 0, 0, flip

    def read_into(self, start: int, view: memoryview) -> None:
        view[:] = self.content[start : start + len(view)]
        self.reads += 1
        if self.flip is not None and self.reads > self.flip:
            view[0] ^= 16
        self.taken += len(view)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def content(monkeypatch) -> bytes:
    monkeypatch.setattr(module, "_BLOCK", BLOCK)
    return random.Random(0).randbytes(1000)


def read(file: Verified, start: int, stop: int) -> bytes:
    view = bytearray(stop - start)
    file.read_into(start, memoryview(view))
    return bytes(view)


@pytest.mark.parametrize("head", [0, 37])
def test_in_order_a_file_is_read_once(content, head):
    held = Bytes(content)
    file = Verified(Path("x"), held, content[:head])
    assert file.pending is None
    assert read(file, 100, 300) == content[100:300] and file.pending == 1
    assert read(file, 300, 999) == content[300:999] and file.pending == 1
    file.finish()
    assert file.pending is None and file.passes == 1 and held.taken == 1000 - head


@pytest.mark.parametrize("head", [0, 37])
def test_in_any_order_it_is_read_twice_and_then_in_blocks(content, head):
    held = Bytes(content)
    file = Verified(Path("x"), held, content[:head])
    places = [(700, 800), (40, 90), (500, 640), (100, 101), (990, 1000), (37, 1000), (300, 300)]
    for start, stop in places:
        assert read(file, start, stop) == content[start:stop]
    file.finish()
    assert file.pending is None and file.passes == 2
    assert held.taken <= 2 * (1000 - head) + sum(stop - start + 2 * BLOCK for start, stop in places[3:])


@pytest.mark.parametrize("flip", [0, 1, 5, 15, 17, 25])
def test_a_flipped_bit_is_found_whenever_it_comes(content, flip):
    """In the first pass, in the second, and in blocks after both."""
    file = Verified(Path("x"), Bytes(content, flip=flip))
    with pytest.raises(CheckpointError, match=r"came with (the SHA-256|other bytes)"):
        for start, stop in [(0, 900), (0, 500), (100, 200), (100, 200), (0, 100), (500, 600), (0, 1000)]:
            read(file, start, stop)
        file.finish()


def test_without_a_known_sum_nothing_is_read_beside(content):
    held = Bytes(content, known=False)
    file = Verified(Path("x"), held)
    assert read(file, 700, 800) + read(file, 20, 30) == content[700:800] + content[20:30]
    assert file.pending is None and held.taken == 110


def test_a_shard_is_noted_when_its_own_sources_are_proven(content, tmp_path):
    """A file of the source that goes on into the next shard holds up the shard before it, and no other."""
    files = {Path(f"{i}"): Verified(Path(f"{i}"), Bytes(content)) for i in range(4)}

    class Several:
        def finish(self, needed):
            for name, file in files.items():
                if name not in needed:
                    file.finish()

        def pending(self):
            return [module.Pending(file, file.pending) for file in files.values() if file.pending is not None]

    journal, noted = Journal.begin(tmp_path, {}), []
    for i in range(4):
        if i:
            read(files[Path(f"{i - 1}")], 500, 1000)
        if i < 3:
            read(files[Path(f"{i}")], 0, 500)
        (tmp_path / f"shard-{i}").write_bytes(content)
        pending = settled([Several()], {Path(f"{i}")})  # pyright: ignore[reportArgumentType]
        noted.append(journal.written(f"shard-{i}", Finished.of(tmp_path / f"shard-{i}"), pending))
    assert noted == [[], ["shard-0"], ["shard-1"], ["shard-2", "shard-3"]]
    again = Journal.found(tmp_path, {})
    assert again is not None and again.shards == journal.shards and len(again.shards) == 4


def test_too_little_memory_is_noticed_before_the_work(tmp_path, monkeypatch):
    VirtualCheckpoint(small(), shards=12, table=1 << 20).save(tmp_path / "model")
    monkeypatch.setattr(streaming, "free_memory", lambda: 100_000_000)
    with pytest.raises(ValueError, match=r"needs [\d.]+ MB of memory .* and 100\.0 MB are free: end other programs"):
        quantize_checkpoint(tmp_path / "model", tmp_path / "new", "int8")
    assert not (tmp_path / "new").exists()


def test_lines_say_share_rate_and_time_left():
    said, clock = [], [0.0]
    report = Lines("quantising", said.append, lambda: clock[0])
    for minute in range(4):
        clock[0] = minute * EVERY
        report(40_000_000_000 + minute * 18_000_000_000, 1_000_000_000_000)  # 40 GB were done by an earlier run
        report(40_000_000_001 + minute * 18_000_000_000, 1_000_000_000_000)
    assert said == [
        "quantising: 58.0 GB of 1.0 TB, 300.0 MB/s, 52 min left",
        "quantising: 76.0 GB of 1.0 TB, 300.0 MB/s, 51 min left",
        "quantising: 94.0 GB of 1.0 TB, 300.0 MB/s, 50 min left",
    ]
