"""Reads the small files of a checkpoint, which anybody may have written: ordinary files of bounded size only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from axk1.checkpoint.errors import CheckpointError

LARGEST = 512 * 2**20
"""Bytes of a JSON file at most. The largest known: a tokenizer.json of 30 MB, an index of 20 MB."""
LARGEST_TEMPLATE = 2**20
"""Bytes of a chat template at most; the released one has 4,270."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        values = json.loads(read_bytes(file).decode())
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"is not readable JSON ({error}). Download it again.", file) from error
    if not isinstance(values, dict):
        raise CheckpointError("holds no JSON object. Download it again.", file)
    return values


def read_bytes(file: Path, largest: int = LARGEST) -> bytes:
    """The content of an ordinary file.

    Raises:
        CheckpointError: the file is missing, larger than ``largest`` bytes, or no ordinary file.
    """
    check_ordinary(file)
    try:
        with file.open("rb") as stream:
            content = stream.read(largest + 1)
    except FileNotFoundError:
        raise CheckpointError("is missing. Give the folder of a complete checkpoint.", file) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror}).", file) from error
    if len(content) > largest:
        raise CheckpointError(f"has more than {largest:,} bytes, which no checkpoint needs. Download it again.", file)
    return content


def check_ordinary(file: Path) -> None:
    """Refuses what opening would wait for or read from without an end: a pipe, a socket, a device.

    Raises:
        CheckpointError: ``file`` is there and no ordinary file.
    """
    if file.exists() and not file.is_file():
        raise CheckpointError("is no ordinary file. Put the file itself there.", file)


def check_texts(folder: Path) -> None:
    """Looks at the files that libraries open by themselves, before they do.

    Raises:
        CheckpointError: no folder, or a file in it that is no ordinary one, or too large.
    """
    if not folder.is_dir():
        raise CheckpointError("is no folder. Give the folder of a checkpoint.", folder)
    for file in sorted(folder.iterdir()):
        limit = {".json": LARGEST, ".jinja": LARGEST_TEMPLATE}.get(file.suffix)
        if limit is None:
            continue
        check_ordinary(file)
        if file.exists() and file.stat().st_size > limit:
            raise CheckpointError(f"has more than {limit:,} bytes, which no checkpoint needs.", file)
