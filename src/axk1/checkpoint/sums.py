"""Sums of downloaded files, as the hub's own tools note them on disk: no network is asked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.reading import read_bytes

_SHA256 = re.compile(r"[0-9a-f]{64}")


def known_sum(file: Path) -> str | None:
    """The SHA-256 that ``file`` must have, where it came from the hub: in the hub's cache it is the name of the blob,
    beside a download to a folder of one's own it is noted; None where nothing is known."""
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    try:  # commit, etag, time: a line each; the etag of a large file is its sum
        etag = read_bytes(note, largest=4096).decode().splitlines()[1]
    except (OSError, ValueError, IndexError):
        return None
    return etag if _SHA256.fullmatch(etag) else None


def check_sums(files: Iterable[Path]) -> int:
    """Compares files with their known sums; how many had one.

    Raises:
        CheckpointError: a file that is not what the hub has.
    """
    checked = 0
    for file in files:
        wanted = known_sum(file)
        if wanted is None:
            continue
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != wanted:
            raise CheckpointError(f"has the SHA-256 {found}, on the hub {wanted}. Download it again.", file)
        checked += 1
    return checked
