"""Puts the output of `axk1 demo` between the markers of both READMEs: ``make readme-demo``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from axk1.files import write_text

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=<!-- demo output -->\n)```text\n.*?```(?=\n<!-- end of demo output -->)", re.DOTALL)


def demo_output() -> str:
    """What the demo prints, without colours and without trailing spaces."""
    command = [sys.executable, "-c", "from axk1.cli.main import main; main()", "demo"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    output = f"```text\n{demo_output()}\n```"
    for page in (ROOT / "README.md", ROOT / "README.ko.md"):
        write_text(page, BLOCK.sub(lambda _: output, page.read_text(encoding="utf-8")))
