"""The process that renders chat templates (`render.py` starts it): it bounds itself, then answers line by line.

The environment has what transformers gives to templates: trimmed blocks, ``break`` and ``continue``, ``generation``
blocks, ``tojson`` without HTML's escapes, ``raise_exception`` and ``strftime_now``.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2.debug  # noqa: F401  (loaded by the first error otherwise, when no file can be opened any more)
from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5
"""Of the processor's time, per rendering. A prompt of 128,000 tokens takes some milliseconds."""
MEMORY = 2**30
"""Bytes of address space, Python's own included."""
CHARACTERS = 2**24
"""Of a rendered text: several times what the longest context holds."""
_SHOWN = 2000
"""Characters of an error."""


class Generation(Extension):
    """``{% generation %}`` marks replies for training; the text is that of its block."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements of the block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja's sandbox with what chat templates may use."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return environment().from_string(template)


def text_of(template: str, values: dict[str, Any]) -> str:
    """The rendered text.

    Raises:
        ValueError: it is too long.
        Exception: whatever the template raises.
    """
    parts, size = [], 0
    for part in _compiled(template).generate(**values):
        parts.append(part)
        size += len(part)
        if size > CHARACTERS:
            raise ValueError(f"it writes more than {CHARACTERS:,} characters.")
    return "".join(parts)


def answer(question: bytes) -> dict[str, str]:
    """``text``, or the ``error`` in place of it."""
    try:
        return {"text": text_of(**json.loads(question))}
    except MemoryError:
        return {"error": f"it uses more than {MEMORY >> 20} MB of memory."}
    except Exception as error:
        return {"error": " ".join(str(error)[:_SHOWN].split()) or type(error).__name__}


def limit() -> None:
    """Bounds memory, and opens no more files or connections, as far as the system can."""
    with suppress(ImportError):  # Windows
        import resource

        for name, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_NOFILE", 0), ("RLIMIT_CORE", 0)):
            with suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (most, most))


def set_alarm(seconds: float) -> None:
    """Ends this process, wherever it is, after that much of the processor's time; 0: does not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main(seconds: float) -> None:
    """Answers questions until standard input ends; dies of one that takes longer."""
    environment().from_string("{{ strftime_now('%Z\\n') }}").render()  # reads the files that the library loads late
    limit()
    for question in sys.stdin.buffer:
        set_alarm(seconds)
        text = json.dumps(answer(question), ensure_ascii=False)
        set_alarm(0)
        sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(float(sys.argv[2]))
