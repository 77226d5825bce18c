"""Follows a JSON object as its text streams in: whether it may still become one, and where it ends.

It accepts what Python's ``json`` does (``NaN`` and ``Infinity`` too), each character looked at once. Values are not
kept: the whole text is decoded when it is complete.
"""

import re
from collections.abc import Callable

DEEPEST = 200
"""Objects and lists inside each other; what is deeper is taken for no object."""
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SPACE = re.compile(r"[ \t\n\r]*")
_WORDS = {"t": "true", "f": "false", "n": "null", "N": "NaN", "I": "Infinity"}
_NUMBER: dict[str, dict[str, str]] = {
    # state: what comes next, by kind of character (d: 1-9, 0, ., e, s: sign)
    "minus": {"0": "zero", "d": "whole"},
    "zero": {".": "point", "e": "exponent"},
    "whole": {"0": "whole", "d": "whole", ".": "point", "e": "exponent"},
    "point": {"0": "fraction", "d": "fraction"},
    "fraction": {"0": "fraction", "d": "fraction", "e": "exponent"},
    "exponent": {"0": "power", "d": "power", "s": "sign"},
    "sign": {"0": "power", "d": "power"},
    "power": {"0": "power", "d": "power"},
}
_ENDS = ("zero", "whole", "fraction", "power")


class ObjectScanner:
    """Takes the text of an object in chunks; then ``complete`` or ``failed`` is set."""

    def __init__(self) -> None:
        self.begun = self.complete = self.failed = False
        self._stack: list[str] = []  # "{" and "["
        self._step: Callable[[str, int], int] = self._begin
        self._word = ""  # what is left of true, false, ...
        self._state = ""  # of a number, or how many hexadecimal digits are left
        self._is_key = False

    def feed(self, text: str, start: int) -> int:
        """Goes on with ``text[start:]``; the index after the object's end, or the end of ``text``."""
        while start < len(text) and not (self.complete or self.failed):
            start = self._step(text, start)
        return start

    def _fail(self, start: int) -> int:
        self.failed = True
        return start

    def _begin(self, text: str, start: int) -> int:
        self.begun = True
        return self._open(text[start], start) if text[start] == "{" else self._fail(start)

    def _open(self, bracket: str, start: int) -> int:
        if len(self._stack) == DEEPEST:
            return self._fail(start)
        self._stack.append(bracket)
        self._step = self._first_key if bracket == "{" else self._first_item
        return start + 1

    def _shut(self, start: int) -> int:
        self._stack.pop()
        self.complete = not self._stack
        self._step = self._after_value
        return start + 1

    def _first_key(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        return self._shut(start) if text[start] == "}" else self._key(text, start)

    def _key(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        if text[start] != '"':
            return self._fail(start)
        self._is_key, self._step = True, self._string
        return start + 1

    def _colon(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        self._step = self._value
        return start + 1 if text[start] == ":" else self._fail(start)

    def _first_item(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        return self._shut(start) if text[start] == "]" else self._value(text, start)

    def _value(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        first = text[start]
        if first in "{[":
            return self._open(first, start)
        if first == '"':
            self._is_key, self._step = False, self._string
        elif first in _WORDS:
            self._word, self._step = _WORDS[first][1:], self._literal
        elif first == "-" or "0" <= first <= "9":
            self._state = {"-": "minus", "0": "zero"}.get(first, "whole")
            self._step = self._number
        else:
            return self._fail(start)
        return start + 1

    def _after_value(self, text: str, start: int) -> int:
        start = _skip(text, start)
        if start == len(text):
            return start
        inside = self._stack[-1]
        if text[start] == ",":
            self._step = self._key if inside == "{" else self._value
            return start + 1
        return self._shut(start) if text[start] == {"{": "}", "[": "]"}[inside] else self._fail(start)

    def _string(self, text: str, start: int) -> int:
        match = _PLAIN.match(text, start)
        start = match.end() if match else start
        if start == len(text):
            return start
        if text[start] == '"':
            self._step = self._colon if self._is_key else self._after_value
        elif text[start] == "\\":
            self._step = self._escape
        else:
            return self._fail(start)
        return start + 1

    def _escape(self, text: str, start: int) -> int:
        if text[start] == "u":
            self._state, self._step = "4", self._hexadecimal
        elif text[start] in '"\\/bfnrt':
            self._step = self._string
        else:
            return self._fail(start)
        return start + 1

    def _hexadecimal(self, text: str, start: int) -> int:
        if text[start] not in "0123456789abcdefABCDEF":
            return self._fail(start)
        self._state = str(int(self._state) - 1)
        if self._state == "0":
            self._step = self._string
        return start + 1

    def _literal(self, text: str, start: int) -> int:
        if text[start] != self._word[0]:
            return self._fail(start)
        self._word = self._word[1:]
        if not self._word:
            self._step = self._after_value
        return start + 1

    def _number(self, text: str, start: int) -> int:
        first = text[start]
        if self._state == "minus" and first == "I":
            self._word, self._step = _WORDS["I"][1:], self._literal
            return start + 1
        kind = "d" if "1" <= first <= "9" else {"e": "e", "E": "e", "+": "s", "-": "s"}.get(first, first)
        following = _NUMBER[self._state].get(kind)
        if following is None:
            self._step = self._after_value
            return start if self._state in _ENDS else self._fail(start)
        self._state = following
        return start + 1


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start
