"""Where a checkpoint's bytes come from: a folder, the hub or an HTTP address. Weights are read in ranges, not kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from axk1.checkpoint.beside import name_of
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import INDEX, SINGLE, Stored, StoredTensor, match_index, open_checkpoint, read_headers
from axk1.checkpoint.hub import PATTERNS, HubId, how_to_download, hub_folder
from axk1.checkpoint.reading import LARGEST, read_json
from axk1.checkpoint.remote import RemoteFile
from axk1.checkpoint.shards import HEADER_BYTES, Place, parse_header, read_places
from axk1.checkpoint.sums import known_sum

BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "LICENSE",
    "NOTICE",
    "README.md",
)
"""What an HTTP address, which lists nothing, is asked for beside the weights."""
_BLOCK = 1 << 22  # bytes read at once where nobody wants them but the sum


class SourceFile(Protocol):
    """One file of weights."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def identity(self) -> list[Any]: ...
    def read_into(self, start: int, view: memoryview) -> None: ...
    def close(self) -> None: ...


class LocalFile:
    """A file on this machine; what was read does not stay in the page cache."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, known_sum(path)
        stat = path.stat()
        self.size, self.identity = stat.st_size, [stat.st_size, stat.st_mtime_ns]
        self._stream: Any = None

    def read_into(self, start: int, view: memoryview) -> None:
        """Fills ``view`` with the bytes from ``start`` on.

        Raises:
            CheckpointError: the file is shorter, or cannot be read.
        """
        try:
            if self._stream is None:
                self._stream = self.path.open("rb", buffering=0)
            self._stream.seek(start)
            done = 0
            while done < len(view):
                got = self._stream.readinto(view[done:])
                if not got:
                    raise CheckpointError("became shorter while it was read.", self.path)
                done += got
            forget(self._stream.fileno(), start, len(view))
        except OSError as error:
            raise CheckpointError(f"cannot be read ({error.strerror}).", self.path) from error

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


class Verified:
    """A file whose sum, where it is known, is compared while it is read.

    Read in order, it is read once: the sum is taken on the way, and what was handed out is proven when the end is
    reached (:attr:`pending`). Whoever goes back begins a second pass, which notes a sum for each block; later reads, in
    any order, are of whole blocks that have these sums.
    """

    def __init__(self, name: Path, file: SourceFile, head: bytes = b"") -> None:
        self.name, self.file, self.head = name, file, head
        """``head``: the beginning of the file as it was read before."""
        self.passes = 0
        """Times that the whole file had the right sum."""
        self._blocks: list[bytes] | None = None
        self._begin()

    def _begin(self) -> None:
        self.position, self._sum = len(self.head), hashlib.sha256(self.head)
        self._sums: list[Any] = []  # of the blocks of this pass

    @property
    def pending(self) -> int | None:
        """The number of passes after which everything handed out is proven; None where it is so now."""
        begun = self.file.sha256 is not None and len(self.head) < self.position < self.file.size
        return self.passes + 1 if begun else None

    def read_into(self, start: int, view: memoryview) -> None:
        """Fills ``view`` from ``start`` on.

        Raises:
            CheckpointError: not readable, or another sum.
        """
        if self.file.sha256 is None:
            return self.file.read_into(start, view)
        if start < self.position and self._blocks is None:
            self.finish()
            self._begin()
        if self._blocks is not None:
            return self._read_blocks(start, view, self._blocks)
        self._skip(start)
        self._take(start, view)

    def finish(self) -> None:
        """Reads to the end, if anything was read whose sum is not known yet, and compares."""
        if self.pending is not None:
            self._skip(self.file.size)

    def _skip(self, to: int) -> None:
        block = memoryview(bytearray(min(_BLOCK, max(0, to - self.position))))
        while self.position < to:
            self._take(self.position, block[: to - self.position])

    def _take(self, start: int, view: memoryview) -> None:
        self.file.read_into(start, view)
        self._sum.update(view)
        if self.passes:
            self._note_blocks(view)
        self.position = start + len(view)
        if self.position == self.file.size:
            self._compare()

    def _note_blocks(self, view: memoryview) -> None:
        at = self.position - len(self.head)
        while view:
            if at % _BLOCK == 0:
                self._sums.append(hashlib.sha256())
            part, view = view[: _BLOCK - at % _BLOCK], view[_BLOCK - at % _BLOCK :]
            self._sums[-1].update(part)
            at += len(part)

    def _compare(self) -> None:
        found, wanted = self._sum.hexdigest(), self.file.sha256
        if found != wanted:
            self._begin()
            raise CheckpointError(
                f"came with the SHA-256 {found}, and should have {wanted}: what was made of it is thrown away. Give "
                "the same command again; if it stays so, the file is damaged there.",
                self.name,
            )
        if self.passes:
            self._blocks = [each.digest() for each in self._sums]
        self.passes += 1

    def _read_blocks(self, start: int, view: memoryview, blocks: list[bytes]) -> None:
        block = memoryview(bytearray(_BLOCK))
        while view:
            number, within = divmod(start - len(self.head), _BLOCK)
            begin = len(self.head) + number * _BLOCK
            whole = block[: min(_BLOCK, self.file.size - begin)]
            self.file.read_into(begin, whole)
            if hashlib.sha256(whole).digest() != blocks[number]:
                raise CheckpointError("came with other bytes than before: give the same command again.", self.name)
            part = whole[within : within + len(view)]
            view[: len(part)] = part
            start, view = start + len(part), view[len(part) :]


class Pending(NamedTuple):
    """Something that was read of a file, and is proven after so many passes."""

    file: Verified
    passes: int

    @property
    def proven(self) -> bool:
        """Whether the file had the right sum since."""
        return self.file.passes >= self.passes


@dataclass
class Source:
    """A checkpoint to read from."""

    name: str
    """As the model card names it."""
    given: str
    """As the user named it."""
    folder: Path
    """With its configuration, tokenizer and texts: the checkpoint's own folder, or one that lasts as long as this."""
    stored: Stored
    places: dict[str, Place]
    """Where each tensor lies in its file."""
    files: dict[Path, Verified]
    """By the paths in ``stored``."""
    revision: str | None = None
    """The commit on the hub."""

    def identity(self) -> list[list[Any]]:
        """What must be unchanged for a run that was cut off to go on: of each file its name, its size, and its sum,
        entity tag or time."""
        return [[file.name, *each.file.identity] for file, each in self.files.items()]

    def read_into(self, key: str, offset: int, view: memoryview) -> None:
        """Fills ``view`` with bytes of the tensor ``key`` from ``offset`` on."""
        self.files[self.stored.tensors[key].file].read_into(self.places[key].start + offset, view)

    def finish(self, needed: set[Path]) -> None:
        """Reads files to the end that are not ``needed`` any more, where their sums are to be compared."""
        for name, file in self.files.items():
            if name not in needed:
                file.finish()
                file.file.close()

    def pending(self) -> list[Pending]:
        """What was read and is not proven yet."""
        return [Pending(file, file.pending) for file in self.files.values() if file.pending is not None]

    def with_file(self, file: Path, kept: Callable[[str], bool]) -> Source:
        """This source with the tensors in a safetensors ``file`` of this machine in place of those not ``kept``."""
        stored = read_headers([file])
        tensors = {name: held for name, held in self.stored.tensors.items() if kept(name)}
        joined = Stored([*self.stored.files, file], {**tensors, **stored.tensors})
        files = {**self.files, file: Verified(file, LocalFile(file))}
        return replace(self, stored=joined, places={**self.places, **read_places(file)}, files=files)

    def close(self) -> None:
        """Closes all files."""
        for file in self.files.values():
            file.file.close()


def forget(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Takes bytes of a file (0: to its end) out of the page cache, where the system lets itself be asked."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def local_source(folder: Path) -> Source:
    """The checkpoint in ``folder``.

    Raises:
        CheckpointError: there is none, or its headers are faulty.
    """
    stored = open_checkpoint(folder)
    places = {key: place for file in stored.files for key, place in read_places(file).items()}
    files = {file: Verified(file, LocalFile(file)) for file in dict.fromkeys(stored.files)}
    return Source(name_of(folder), str(folder), folder, stored, places, files)


@contextmanager
def open_source(text: str | Path) -> Iterator[Source]:
    """The checkpoint that ``text`` names: a folder, ``owner/name[@revision]`` on the hub, or the HTTP address of a
    folder. Of one that is not here only headers and small files are read at first; the hub's cache is used if whole.

    Raises:
        CheckpointError: it cannot be read, or its headers are faulty.
        ValueError: nothing of that name.
    """
    name = str(text)
    if name.startswith(("http://", "https://")):
        with _remote(_of_address(name), name.rstrip("/").rpartition("/")[2], Path(name.partition("://")[2])) as source:
            yield source
        return
    wanted = None if Path(text).exists() else HubId.parse(name)
    folder = Path(text) if wanted is None else _in_cache(wanted)
    if wanted is not None and folder is None:
        found, revision = _of_hub(wanted)
        with _remote(found, wanted.name, Path(wanted.name), revision) as source:
            yield source
        return
    with closing(local_source(folder or Path(text))) as source:
        yield source


def _in_cache(wanted: HubId) -> Path | None:
    """The folder of the hub's cache, where all of the checkpoint lies in it."""
    try:
        folder = hub_folder(wanted, download=False)
        open_checkpoint(folder)
        return folder
    except ValueError:
        return None


def _of_hub(wanted: HubId) -> tuple[dict[str, RemoteFile], str]:
    """The files of a repository at the commit that its revision is now, with the sums that the hub has."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    try:
        info = HfApi().model_info(wanted.name, revision=wanted.revision, files_metadata=True)
    except Exception as error:  # those of the hub, of its HTTP library, and of a name that is none
        reason = str(error).strip().splitlines()[0]
        raise ValueError(how_to_download(wanted, f"cannot be had from the hub ({reason.rstrip('.')})")) from error
    headers, files = build_hf_headers(), {}
    for each in info.siblings or []:
        if "/" not in each.rfilename and any(fnmatch(each.rfilename, pattern) for pattern in PATTERNS):
            url = hf_hub_url(wanted.name, each.rfilename, revision=info.sha)
            known = each.lfs.sha256 if each.lfs else None
            files[each.rfilename] = RemoteFile(url, headers, each.size, known, pinned=True)
    return files, info.sha or ""


def _of_address(address: str) -> dict[str, RemoteFile]:
    files = {name: RemoteFile(f"{address.rstrip('/')}/{name}") for name in (*BESIDE, SINGLE, INDEX)}
    return {name: file for name, file in files.items() if file.exists()}


@contextmanager
def _remote(files: dict[str, RemoteFile], name: str, label: Path, revision: str | None = None) -> Iterator[Source]:
    """``label``: what stands before the names of files in messages."""
    with tempfile.TemporaryDirectory(prefix="axk1-") as scratch:
        folder = Path(scratch) / label.name
        folder.mkdir()
        for beside, file in files.items():
            if not beside.endswith(".safetensors"):
                _fetch(file, folder / beside)
        weights, weight_map = _weights(files, folder, str(label))
        found = {label / each: file for each, file in weights.items()}
        heads = {each: _head(file) for each, file in found.items()}
        places = {each: parse_header(head[8:], len(head), each) for each, head in heads.items()}
        stored = Stored(list(found), {})
        for each, held in places.items():
            if max((place.stop for place in held.values()), default=len(heads[each])) != found[each].size:
                raise CheckpointError("is truncated, or longer than its header says.", found[each].url)
            stored.tensors.update({key: StoredTensor(each, place.dtype, place.shape) for key, place in held.items()})
        if weight_map:
            match_index(stored, {key: label / each for key, each in weight_map.items()}, label / INDEX)
        together = {key: place for held in places.values() for key, place in held.items()}
        verified = {each: Verified(each, file, heads[each]) for each, file in found.items()}
        source = Source(name, str(label), folder, stored, together, verified, revision)
        with closing(source):
            yield source


def _weights(
    files: dict[str, RemoteFile], folder: Path, name: str
) -> tuple[dict[str, RemoteFile], dict[str, str] | None]:
    """The files of weights, and which tensor the index says to be in which."""
    if SINGLE in files:
        return {SINGLE: files[SINGLE]}, None
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"holds neither {SINGLE} nor {INDEX}: give the address of a checkpoint's folder.", name)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no 'weight_map'.", f"{name}/{INDEX}")
    some = files[INDEX]
    for each in sorted(set(map(str, weight_map.values()))):
        if Path(each).name != each or not each.endswith(".safetensors") or set(each) & set("\\\0?#%"):
            raise CheckpointError(f"names the file {each!r}, which is no plain name of a safetensors file.", name)
        if each not in files:
            files[each] = RemoteFile(f"{some.url.rpartition('/')[0]}/{each}", some.headers)
    return {each: files[each] for each in sorted(set(weight_map.values()))}, weight_map


def _fetch(file: RemoteFile, place: Path) -> None:
    if file.size > LARGEST:
        raise CheckpointError(f"has more than {LARGEST:,} bytes, which no such file needs.", file.url)
    content = bytearray(file.size)
    file.read_into(0, memoryview(content))
    file.close()
    if file.sha256 and hashlib.sha256(content).hexdigest() != file.sha256:
        raise CheckpointError("came with another SHA-256 than it should have: try again.", file.url)
    place.write_bytes(content)


def _head(file: RemoteFile) -> bytes:
    """The header's length and the header."""
    length = bytearray(8)
    file.read_into(0, memoryview(length))
    size = int.from_bytes(length, "little")
    if size > min(HEADER_BYTES, file.size - 8):
        raise CheckpointError("is truncated, or no safetensors file.", file.url)
    text = bytearray(size)
    file.read_into(8, memoryview(text))
    file.close()
    return bytes(length + text)
