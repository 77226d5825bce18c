"""The examples of docs/modes.md run as written, a scripted checkpoint standing in for the nano."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "modes.md").read_text(encoding="utf-8")
AXK1 = f'axk1() {{ {sys.executable} -c "from axk1.cli.main import main; main()" "$@"; }}\n'


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path, closing_checkpoint, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "nano").symlink_to(closing_checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples(folder, capsys):
    namespace: dict = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert "1+2=3\nYes\n5 3 stop\n" in capsys.readouterr().out


@pytest.mark.slow
def test_shell_examples(folder):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", AXK1 + "\n".join(blocks("bash"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The answer is 42.\n") and "\nYes\n" in done.stdout
    assert len((folder / "replies.jsonl").read_text().splitlines()) == 2
    assert (folder / "talk.json").exists()
