"""The project's Markdown pages, and a folder in which their commands run as written."""

import re
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


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
