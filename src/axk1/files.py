"""Writing a file so that nobody ever sees half of it, and nobody but its user decides where it goes."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream of bytes for ``path``, which gets them at once when the block ends without error.

    They are written to a new file beside it, synced and renamed. A link in the place of ``path`` is replaced, never
    followed. What is no ordinary file (``/dev/stdout``, a pipe) cannot be replaced: it is written to.

    Args:
        mode: permissions of a new file, less the umask; an old file's are kept.

    Raises:
        OSError: the folder is missing, full or not writable; ``path`` is as it was.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as stream:
            yield stream
        return
    beside = path.with_name(f".axk1-{uuid.uuid4().hex}.tmp")
    try:
        with _created(beside, mode, path) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        if error.filename != str(beside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # nobody knows the name beside
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def read_text(path: Path) -> str:
    """The text of a file that a user named, without a byte order mark.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Writes ``text`` in UTF-8 to ``path``, whole or not at all; arguments and errors as of `replacing`."""
    with replacing(path, mode) as stream:
        stream.write(text.encode())


def remove_unfinished(folder: Path) -> None:
    """Removes what `replacing` leaves in ``folder`` when its process is killed. No other process may write there."""
    for left in folder.glob(".axk1-*.tmp"):
        if left.is_file() or left.is_symlink():
            left.unlink()


@contextmanager
def only_writer(place: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same folder or file, on systems that have such locks.

    Raises:
        ValueError: another process is.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{place} is being written by another run: wait for it, or choose another.") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _created(beside: Path, mode: int, path: Path) -> BinaryIO:
    """A new file ``beside``, with the permissions of ``path`` where that is a file already."""
    stream = os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
    with suppress(FileNotFoundError):
        old = path.lstat()
        if stat.S_ISREG(old.st_mode):
            os.fchmod(stream.fileno(), stat.S_IMODE(old.st_mode) & 0o777)
    return stream


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
