"""A folder in which the commands of README and docs run as written."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from pages import ROOT


@pytest.fixture
def workplace(tmp_path, closing_checkpoint) -> Path:
    """What the commands need of a clone, in a temporary folder: READMEs, the nano (a scripted checkpoint until it has
    weights) and a ``.venv/bin/activate`` that finds `axk1`. There, `make` only prints what it would do: its targets
    run the tests, among them these."""
    nano = ROOT / "models" / "nano"
    (tmp_path / "models").mkdir()
    trained = any(nano.glob("*.safetensors"))
    (tmp_path / "models" / "nano").symlink_to(nano if trained else closing_checkpoint)
    for page in ROOT.glob("README*.md"):
        shutil.copy(page, tmp_path)
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    _script(tools / "axk1", f'exec {python} -c "from axk1.cli.main import main; main()" "$@"')
    make = f"{shutil.which('make')} -C {shlex.quote(str(ROOT))} --dry-run"
    _script(tools / "make", f'unset MAKEFLAGS MAKELEVEL; exec {make} "$@"')
    model = "" if trained else "export AXK1_MODEL=models/nano\n"
    (tools / "activate").write_text(f"PATH={shlex.quote(str(tools))}:$PATH\n{model}")
    return tmp_path


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
