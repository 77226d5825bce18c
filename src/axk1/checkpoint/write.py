"""Writing a folder so that nobody ever sees half of it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axk1.checkpoint.files import INDEX, SINGLE


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A hidden folder to write into; its files appear in ``target`` when the block ends without error.

    It lies beside a new ``target``, which appears at once, or inside an existing one (perhaps a mount point). In it
    the old entry (index or single weight file) goes first and the new one comes last, so that at no moment a
    configuration, an index and weights of two saves stand together.
    """
    home = target if target.is_dir() else target.parent
    home.mkdir(parents=True, exist_ok=True)
    staged = home / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    staged.mkdir()
    try:
        yield staged
        _publish(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _publish(staged: Path, target: Path) -> None:
    files = sorted((path.relative_to(staged) for path in staged.rglob("*") if path.is_file()), key=_is_entry)
    if not files:  # a process of a distributed job that had nothing to write
        return
    if not target.exists():
        staged.replace(target)
        return
    if any(_is_weights(file.name) for file in files):
        for old in sorted(target.iterdir(), key=lambda path: not _is_entry(path)):
            if _is_weights(old.name):
                old.unlink()
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (staged / file).replace(target / file)


def _is_entry(file: Path) -> bool:
    """Whether a reader starts at ``file``: without it there is no checkpoint to see."""
    return file.name in (SINGLE, INDEX)


def _is_weights(name: str) -> bool:
    return name in (SINGLE, INDEX) or (name.startswith("model-") and name.endswith(".safetensors"))
