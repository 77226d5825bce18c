"""What a run has done so far, and at its end the manifest: each shard with its sum, each tensor with its error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axk1 import __version__
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.reading import read_bytes, read_json
from axk1.checkpoint.source import Pending, Source, forget
from axk1.files import write_text

STATE = ".axk1-convert.json"
MANIFEST = "axk1-manifest.json"
TOOL = "axk1"
_BLOCK = 1 << 22


@dataclass
class Finished:
    """A finished file."""

    bytes: int
    sha256: str
    errors: dict[str, float] = field(default_factory=dict)
    """By tensor: the root of the squared error of rounding over the squared weights."""
    given: bool = False
    """Whether it was handed on, and may be gone."""

    @classmethod
    def of(cls, file: Path, errors: dict[str, float] | None = None) -> Finished:
        """That of a file."""
        return cls(file.stat().st_size, file_sum(file), errors or {})


@dataclass
class Journal:
    """The shards of ``folder`` that are finished; on disk, a line for each, as soon as they are.

    Lines are not synced: what a power cut takes of them is made again, and what it takes of a shard changes its sum.
    """

    folder: Path
    begun: dict[str, Any]
    """What was asked for, of which source: another wish has another journal."""
    shards: dict[str, Finished] = field(default_factory=dict)
    _waiting: list[tuple[str, Finished, list[Pending]]] = field(default_factory=list, init=False)

    @classmethod
    def begin(cls, folder: Path, begun: dict[str, Any]) -> Journal:
        """A new one."""
        write_text(folder / STATE, json.dumps({"version": __version__, "begun": begun}) + "\n")
        return cls(folder, begun)

    @classmethod
    def found(cls, folder: Path, begun: dict[str, Any]) -> Journal | None:
        """That of an unfinished run of this version in ``folder`` that began the same; None where there is none."""
        file = folder / STATE
        if not file.is_file():
            return None
        lines = read_bytes(file).decode(errors="replace").splitlines()
        if not lines or _values(lines[0]) != {"version": __version__, "begun": begun}:
            return None
        journal = cls(folder, begun)
        for line in lines[1:]:
            values = _values(line)  # none of a line that was cut off
            with suppress(TypeError):
                journal.shards.update({values.pop("name"): Finished(**values)} if "name" in values else {})
        return journal

    def written(self, name: str, shard: Finished, pending: list[Pending]) -> list[str]:
        """Notes the file ``name``, which is as ``shard`` says, and others before it, as soon as all that they were
        made of had the right sum; returns which.

        Args:
            pending: what the file was made of and was not proven when it was finished (:func:`settled`).
        """
        self._waiting.append((name, shard, pending))
        proven = [(name, shard) for name, shard, pending in self._waiting if all(each.proven for each in pending)]
        for each, shard in proven:
            self.note(each, shard)
        self._waiting = [entry for entry in self._waiting if entry[0] not in self.shards]
        return [each for each, _ in proven]

    def note(self, name: str, shard: Finished) -> None:
        """Says that a shard is as ``shard`` says."""
        self.shards[name] = shard
        with (self.folder / STATE).open("a", encoding="utf-8") as stream:
            stream.write("\n" + json.dumps({"name": name, **vars(shard)}))

    def check(self) -> None:
        """Believes a shard by its sum alone: what is gone or not as it was noted has to be made again."""
        for name, shard in list(self.shards.items()):
            file = self.folder / name
            if not file.is_file() and shard.given:
                continue
            if not file.is_file() or file.stat().st_size != shard.bytes or file_sum(file) != shard.sha256:
                del self.shards[name]

    def write_manifest(self, source: Source, wish: Mapping[str, Any]) -> None:
        """Writes ``axk1-manifest.json``."""
        values = {
            "tool": f"{TOOL} {__version__}",
            "source": {
                "name": source.name,
                "revision": source.revision,
                "files": {name: identity for name, *identity in source.identity()},
            },
            "wish": dict(wish),
            "files": {name: {"bytes": s.bytes, "sha256": s.sha256} for name, s in sorted(self.shards.items())},
            "errors": {key: error for _, s in sorted(self.shards.items()) for key, error in s.errors.items()},
        }
        write_text(self.folder / MANIFEST, json.dumps(values, indent=1) + "\n")


def settled(sources: Sequence[Source], needed: set[Path]) -> list[Pending]:
    """After a file was written: what of ``sources`` was read and is not proven yet.

    Args:
        needed: files of ``sources`` that the next file is made of; others that were begun are read to their end.
    """
    for source in sources:
        source.finish(needed)
    return [pending for source in sources for pending in source.pending()]


def _values(line: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        values = json.loads(line)
        return values if isinstance(values, dict) else {}
    return {}


def relative_errors(squares: Mapping[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Four digits of each tensor's error, from its pieces' sums of squared errors and squared weights."""
    errors = {}
    for name, pieces in squares.items():
        error, size = (math.fsum(each) for each in zip(*pieces, strict=True))
        errors[name] = float(f"{math.sqrt(error / size) if size else 0.0:.4g}")
    return errors


def check_manifest(folder: Path) -> int:
    """Compares the files of ``folder`` with its manifest, if it has one; how many there were.

    Raises:
        CheckpointError: a file that is missing or another one, or a manifest that is none.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return 0
    files = read_json(file).get("files")
    if not isinstance(files, dict):
        raise CheckpointError("lists no files.", file)
    for name, noted in _noted(files, file):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"names {name!r}, which is missing.", file)
        if path.stat().st_size != noted["bytes"] or file_sum(path) != noted["sha256"]:
            raise CheckpointError(f"is not the file that {MANIFEST} names: its SHA-256 is another.", path)
    return len(files)


def rounded_by_this_version(folder: Path) -> bool:
    """Whether the manifest in ``folder``, if there is one, says so, and of no texts that matrices were fitted to."""
    file = folder / MANIFEST
    values = read_json(file) if file.is_file() else {}
    return values.get("tool") == f"{TOOL} {__version__}" and "calibration" not in values.get("wish", {})


def file_sum(file: Path) -> str:
    """The SHA-256 of a file, which does not stay in the page cache."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with file.open("rb", buffering=0) as stream:
        at = 0
        while got := stream.readinto(block):
            digest.update(block[:got])
            forget(stream.fileno(), at, got)
            at += got
    return digest.hexdigest()


def _noted(files: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, noted in files.items():
        if Path(name).name != name or not isinstance(noted, Mapping) or not {"bytes", "sha256"} <= noted.keys():
            raise CheckpointError(f"has an entry {name!r} that is none of a file.", file)
        yield name, noted
