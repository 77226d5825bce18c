"""Kills a training at random moments (`kill -9`), lets it go on, and compares its last weights with a whole run's.

A program of its own, which a test starts: ``python kills.py FOLDER RUNS SEED``. Libraries are imported once; every
attempt is a fork. Of five kills in a run two come while a checkpoint, or the stage's last one, is being saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from scripted import SIZES, make_tokenizer
from transformers import Trainer

from axk1.train import stages
from axk1.train.recipe import Recipe, Stage

KILLS, SAVING = 5, (1, 3)
"""In each run; those of these numbers while something is saved."""


def recipe(folder: Path) -> Recipe:
    stage = [Stage(name, steps=6, learning_rate=1e-2, schedule="linear", muon_learning_rate=1e-2) for name in "ab"]
    shared: dict[str, Any] = {"row_tokens": 512, "batch_rows": 1, "save_steps": 2, "dtype": "float32", "model": SIZES}
    return Recipe(preset="nano", tokenizer=str(folder / "tokenizer"), stage=stage, **shared)


def attempt(folder: Path, out: Path, pipe: int) -> None:
    """A child: runs the recipe; says through ``pipe`` when it begins to train, and begins and ends to save."""

    def telling(name: str, before: bytes, after: bytes = b"") -> None:
        method = getattr(Trainer, name)

        def tell(*args: Any, **kwargs: Any) -> Any:
            os.write(pipe, before)
            found = method(*args, **kwargs)
            os.write(pipe, after)
            return found

        setattr(Trainer, name, tell)

    telling("train", b"t")
    telling("_save_checkpoint", b"s", b"e")
    telling("save_model", b"s", b"e")  # within that, and of the stage's last weights
    stages.run(recipe(folder), out)


def run(folder: Path, out: Path, kills: list[tuple[bytes, int, float]]) -> tuple[int, int]:
    """Runs until it has finished, killed on the way; how many of ``kills`` found it running, and saving.

    Args:
        kills: for each, the word to wait for, how many times, and seconds after that.
    """
    done = saving = 0
    for word, times, seconds in [*kills, (b"", 0, 0.0)]:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            code = 1
            try:
                attempt(folder, out, writing)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        heard = b""
        if word:
            while heard.count(word) < times and (read := os.read(reading, 1)):
                heard += read
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        while read := os.read(reading, 64):
            heard += read
        os.close(reading)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status)
        done += killed
        saving += killed and heard.count(b"s") > heard.count(b"e")
        if not killed and os.WEXITSTATUS(status):
            raise SystemExit(f"{out}: an attempt failed")
    return done, saving


def digest(out: Path) -> str:
    """Of the bits of both stages' last weights, and of their curves."""
    found = hashlib.sha256()
    for stage in "ab":
        found.update((out / stage / "final" / "model.safetensors").read_bytes())
        lines = [json.loads(line) for line in (out / stage / "log.jsonl").read_text().splitlines()]
        found.update(json.dumps([(line["step"], line["loss"]) for line in lines if "loss" in line]).encode())
    return found.hexdigest()


def main(folder: Path, runs: int, seed: int) -> None:
    """Prints as JSON: kills that found it running, those of them while saving, and runs that differ."""
    rng = random.Random(seed)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    start = time.monotonic()
    run(folder, folder / "whole", [])
    long, whole = time.monotonic() - start, digest(folder / "whole")
    killed = saving = differ = 0
    for number in range(runs):
        kills = [(b"t", 1, rng.uniform(0, long / 4)) for _ in range(KILLS)]
        for at in SAVING:
            kills[at] = (b"s", rng.choice((1, 1, 3)), rng.uniform(0, 0.06))
        out = folder / f"run-{number}"
        found = run(folder, out, kills)
        killed, saving = killed + found[0], saving + found[1]
        differ += digest(out) != whole
    print(json.dumps({"killed": killed, "saving": saving, "runs": runs, "differ": differ}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
