"""The project's Markdown pages, and a folder in which their commands run as written."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


REPOSITORY = "https://github.com/axk1/axk1"
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.M
)


class Example(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    why_not_run: str
    """The reason in the comment before it, ``<!-- not run: ... -->``; empty: it is run."""


def examples(page: Path) -> list[Example]:
    """All fenced blocks, in order."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Example(match["language"], match["code"], match["why"] or "") for match in found]


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of one language that are run."""
    return [block.code for block in examples(page) if block.language == language and not block.why_not_run]


def links(page: Path) -> list[str]:
    """Where links lead, those with a definition at the end of the page included."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"^\[[\w-]+\]: (\S+)$", text, re.MULTILINE)


def make_workplace(folder: Path, checkpoint: Path) -> Path:
    """What the commands need of a clone, in a temporary folder: READMEs, the nano (``checkpoint`` until it has
    weights) and a ``.venv/bin/activate`` that finds `axk1`. There, `make` only prints what it would do: its targets
    run the tests, among them these."""
    nano = ROOT / "models" / "nano"
    (folder / "models").mkdir()
    trained = any(nano.glob("*.safetensors"))
    (folder / "models" / "nano").symlink_to(nano if trained else checkpoint)
    for page in ROOT.glob("README*.md"):
        shutil.copy(page, folder)
    tools = folder / ".venv" / "bin"
    tools.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    _script(tools / "axk1", f'exec {python} -c "from axk1.cli.main import main; main()" "$@"')
    make = f"{shutil.which('make')} -C {shlex.quote(str(ROOT))} --dry-run"
    _script(tools / "make", f'unset MAKEFLAGS MAKELEVEL; exec {make} "$@"')
    model = "" if trained else "export AXK1_MODEL=models/nano\n"
    (tools / "activate").write_text(f"PATH={shlex.quote(str(tools))}:$PATH\n{model}")
    return folder


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
