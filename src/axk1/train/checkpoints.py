"""Which checkpoint a run goes on from, and a stage's last one: whole, or as if it had never been begun."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

STATE = "trainer_state.json"  # what transformers' Trainer writes last
_WRITING = ("PytorchStreamWriter", "unexpected pos", "I/O error", "IoError", "os error")
"""In the texts of errors that torch and safetensors make of a write that failed."""
_ROOM = 2**20


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of most steps in ``folder`` that was written to its end, not one that was cut off."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    steps = sorted((int(name[1]) for name in found if name), reverse=True)
    return next((path for path in (folder / f"checkpoint-{step}" for step in steps) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def written_or_said(folder: Path) -> Iterator[None]:
    """Within the block a checkpoint that cannot be written is an ``OSError``, whichever library was writing it."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        text = str(error)
        if not any(sign in text for sign in _WRITING):
            raise
        full = "the disk is full" if shutil.disk_usage(folder).free < _ROOM else text.splitlines()[0]
        raise OSError(
            f"A checkpoint cannot be written to {folder}: {full}. Make room and run the same command, which goes on."
        ) from error


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a new folder, which becomes ``folder`` when all of it is on the disk.

    Raises:
        OSError: the disk is full or not writable; there is no ``folder`` then.
    """
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    write(beside)
    for path in [*beside.rglob("*"), beside]:
        _sync(path)
    beside.replace(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    if os.name == "nt":  # it syncs no file that is open for reading, and opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
