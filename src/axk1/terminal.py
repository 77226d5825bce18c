"""Text of files, models and errors on its way to a terminal, which it must not be able to steer."""

import errno
import os
import re

_HINTS = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.ENOENT: "check the path; folders are not made",
    errno.EACCES: "choose a place that you may use, or change its rights",
    errno.EROFS: "choose a place that can be written",
    errno.EISDIR: "name a file",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` without control characters, which could steer the terminal; new lines and tabs stay."""
    return _CONTROL.sub("\ufffd", text)


def sentence(error: BaseException) -> str:
    """An error as one line: what, where, and what to do."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return printable(" ".join(str(error).split()) or type(error).__name__)
    if error.errno == errno.EBADF and error.filename is None:
        return "A standard stream is closed that this command needs."
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    hint = _HINTS.get(error.errno)
    return printable(f"{' -> '.join(names) + ': ' if names else ''}{error.strerror}{f'; {hint}' if hint else ''}.")


def error_line(error: BaseException) -> str:
    """An error as the one line that is shown for it: no control characters, nothing that cannot be encoded."""
    return "Error: " + sentence(error).encode(errors="replace").decode()
