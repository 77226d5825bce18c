"""Text of files, models and errors on its way to a terminal, which it must not be able to steer."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` without control characters, which could steer the terminal; new lines and tabs stay."""
    return _CONTROL.sub("\ufffd", text)


def error_line(error: BaseException) -> str:
    """An error as the one line that is shown for it: no control characters, nothing that cannot be encoded."""
    text = str(error).encode(errors="replace").decode()
    return "Error: " + printable(" ".join(text.split()))
