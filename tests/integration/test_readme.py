"""Every command and example of both READMEs, as written."""

import re
import subprocess
from pathlib import Path

import pytest
from pages import ROOT, blocks

PAGES = (ROOT / "README.md", ROOT / "README.ko.md")


def commands(page: Path) -> list[str]:
    """The lines of all bash blocks without their comments."""
    return [re.sub(r"\s+# .*", "", line) for block in blocks(page, "bash") for line in block.splitlines()]


def test_both_languages_have_the_same_commands():
    assert commands(PAGES[0]) == commands(PAGES[1])


def test_both_languages_link_to_the_same_pages():
    links = [set(re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))) for page in PAGES]
    assert links[0] - {"README.ko.md"} == links[1] - {"README.md"}


@pytest.mark.slow
def test_commands_run(workplace):
    """Both READMEs have the same commands, so one run is enough. `axk1 chat` reads its messages from standard input."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "source .venv/bin/activate\n" + "\n".join(blocks(PAGES[0], "bash"))],
        cwd=workplace,
        input="What is 17 + 25?\n/think\nAnd 3 more?\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("axk1 demo", "ruff check", "pyright", "mkdocs build --strict", "-m pytest"):  # what make would run
        assert expected in done.stdout
    assert "518,983,059,456" in done.stdout
    assert (workplace / "replies.jsonl").read_text().count("\n") == 1
    assert (workplace / "nano-per-expert" / "config.json").is_file()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_example_runs(page, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for block in blocks(page, "python"):
        exec(block, {})
    assert len(capsys.readouterr().out.splitlines()) >= 3
