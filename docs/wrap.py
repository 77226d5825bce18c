"""Wraps the paragraphs and list items of Markdown pages that have a line over 120 columns: python docs/wrap.py PAGE...

Tables, code, headings and comments stay as they are; what the pages say and how they render does not change.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from axk1.files import write_text

WIDTH = 120
ITEM = re.compile(r"(\s*)([*+-]|\d+\.)\s+")
LINK = re.compile(r"\[[\w-]+\]: ")
APART = ("|", "#", "<", "![")
"""How lines begin that belong to no paragraph."""
_SPACE = "\x01"


def wrap(page: str) -> str:
    """The page with every line within the width, where it can be."""
    return "\n".join(line for prose, block in blocks(page.split("\n")) for line in (fill(block) if prose else block))


def blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Paragraphs and list items whole, as (True, lines); everything else line by line, as (False, [line])."""
    fenced, block = False, []
    for line in lines:
        fence = line.lstrip().startswith("```")
        alone = fenced or fence or not line.strip() or line.lstrip().startswith(APART) or LINK.match(line) is not None
        if block and (alone or ITEM.match(line)):
            yield True, block
            block = []
        if alone:
            yield False, [line]
        else:
            block.append(line)
        fenced ^= fence
    yield bool(block), block


def fill(block: list[str]) -> list[str]:
    """The lines of a paragraph or item, filled anew where one is too long; an item's hang below its text."""
    if all(len(line) <= WIDTH for line in block):
        return block
    item = ITEM.match(block[0])
    first = item[0] if item else block[0][: len(block[0]) - len(block[0].lstrip())]
    text = " ".join([block[0][len(first) :], *(line.strip() for line in block[1:])])
    text = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", _SPACE), text)  # code is not broken
    rest = " " * len(first)
    filled = textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_SPACE, " ") for line in filled]


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        write_text(path, wrap(path.read_text(encoding="utf-8")))
