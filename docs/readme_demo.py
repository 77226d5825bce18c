"""Puts the beginning of `axk1 demo`, without speeds, between the markers of both READMEs: ``make readme-demo``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from axk1.files import write_text

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=<!-- demo output -->\n)```text\n.*?```(?=\n<!-- end of demo output -->)", re.DOTALL)
SHOWN = ("English", "한국어")
"""Languages of which the first problem is shown."""


def demo_output() -> str:
    """What the demo prints, without colours and without trailing spaces."""
    command = [sys.executable, "-c", "from axk1.cli.main import main; main()", "demo"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def shortened(output: str) -> str:
    """One problem of each language in ``SHOWN`` and the table; speeds are those of one machine and left out."""
    *problems, table = output.split("\n\n")
    chosen = [next(problem for problem in problems if problem.startswith(f"{name}:")) for name in SHOWN]
    lines = [re.sub(r"; \d+ tokens, [\d.,]+ tokens/s\]", "]", line) for line in "\n\n".join(chosen).split("\n")]
    wrapped = [textwrap.fill(line, 100, subsequent_indent="  ") if len(line) > 100 else line for line in lines]
    return "\n".join([*wrapped, "", *_without_speeds(table.split("\n"))])


def _without_speeds(table: list[str]) -> list[str]:
    """The box without its last two columns."""
    cut = [match.start() for match in re.finditer("┃", table[1])][-3]
    return [line[:cut] + line[-1] if line[0] in "┏┃┡│└" else line for line in table]


if __name__ == "__main__":
    output = f"```text\n{shortened(demo_output())}\n```"
    for page in (ROOT / "README.md", ROOT / "README.ko.md"):
        write_text(page, BLOCK.sub(lambda _: output, page.read_text(encoding="utf-8")))
