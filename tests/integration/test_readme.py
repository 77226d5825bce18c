"""Every command and example of both READMEs, as written, and the set-up behind `make`."""

import re
import shutil
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from pages import REPOSITORY, ROOT, blocks, links, make_workplace

PAGES = (ROOT / "README.md", ROOT / "README.ko.md")
FILES = f"{REPOSITORY}/blob/main/"


@pytest.fixture
def workplace(tmp_path, closing_checkpoint):
    return make_workplace(tmp_path, closing_checkpoint)


def commands(page: Path) -> list[str]:
    """The lines of all bash blocks without their comments."""
    return [re.sub(r"\s+# .*", "", line) for block in blocks(page, "bash") for line in block.splitlines()]


def test_both_languages_have_the_same_commands():
    assert commands(PAGES[0]) == commands(PAGES[1])


def test_both_languages_link_to_the_same_pages():
    found = [set(links(page)) for page in PAGES]
    assert len(found[0]) > 20 and found[0] - {f"{FILES}README.ko.md"} == found[1] - {f"{FILES}README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_absolute_and_lead_to_files(page):
    """PyPI shows README without the files beside it."""
    for link in links(page):
        assert link.startswith(FILES), link
        file, _, anchor = link.removeprefix(FILES).partition("#")
        assert (ROOT / file).exists(), link
        titles = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [title.lower().replace(" ", "-") for title in titles], link


def test_one_repository_is_named_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == REPOSITORY
    assert all(url.startswith(REPOSITORY) for url in project["urls"].values())
    assert f"repo_url: {REPOSITORY}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.py")]  # no index has axk1 yet
    assert not [page for page in pages if re.search(r"pip install '?\"?axk1\b[^@]*$", page.read_text("utf-8"), re.M)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_demo_is_short_and_without_speeds(page):
    text = page.read_text(encoding="utf-8")
    shown = text.split("<!-- demo output -->")[1].split("<!-- end of demo output -->")[0]
    assert shown.count("\n") < 30 and "tokens/s" not in shown and "[right]" in shown and "9/10" in shown


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


def test_make_says_so_when_python_is_too_old(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "demo", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode != 0 and "make demo PYTHON=/path/to/python3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_tested_set_is_within_the_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # the engines' extras and lm-eval's are for environments of their own
    apart = ("vllm", "sglang", "mlx", "eval")
    extras = [names for extra, names in project["optional-dependencies"].items() if extra not in apart]
    wanted = [*project["dependencies"], *chain.from_iterable(extras)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, wanted):
        if requirement.name != "axk1":
            assert Version(tested[requirement.name]) in requirement.specifier, requirement
    assert (tested["torch"], tested["transformers"]) == ("2.13.0", "5.24.0")
