"""transformers' generic model tests on our classes, against a list of what differs and why.

The tests are taken from transformers' source distribution of the installed version, into pytest's cache; none of them
is kept here. Its tests of ``generate`` are in no distribution: AXK1_TRANSFORMERS_SOURCE names a checkout that has them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

INSTALLED = version("transformers")
SUITE = Path(__file__).with_name("upstream_suite.py")
OLDEST = (5, 23)
"""Before it the suite asks for other settings than ``upstream_suite`` makes."""
ABSENT = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}
"""Parts that the source distribution lacks, and what stands in for them: nothing to run."""
EXPECTED = {
    "test_model_weights_reload_no_missing_tied_weights": "a file without the model's tensors is refused by name; "
    "transformers initialises all of them at random",
}
"""Tests that fail, each with the reason why that is right."""


def taken_tests(cache: Path) -> Path:
    """A folder whose ``tests`` are those of the installed transformers."""
    ready = cache / f"transformers-{INSTALLED}"
    if not ready.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as space:
            shutil.copytree(source_tests(Path(space)), Path(space) / "ready" / "tests")
            add_absent(Path(space) / "ready" / "tests")
            (Path(space) / "ready").rename(ready)
    return ready


def source_tests(space: Path) -> Path:
    """``tests`` of a checkout or of the source distribution; skips where neither can be reached."""
    checkout = os.environ.get("AXK1_TRANSFORMERS_SOURCE")
    if checkout:
        return Path(checkout) / "tests"
    command = ["download", "--quiet", "--no-deps", "--no-binary", "transformers", "--dest", str(space)]
    asked = [sys.executable, "-m", "pip", *command, f"transformers=={INSTALLED}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    archives = list(space.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        pytest.skip(f"the source distribution of transformers {INSTALLED} cannot be downloaded: {done.stderr[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(space, filter="data")
    return space / f"transformers-{INSTALLED}" / "tests"


def add_absent(tests: Path) -> None:
    for name, text in ABSENT.items():
        path = tests / name
        path.parent.mkdir(exist_ok=True)
        if not path.is_file():
            path.write_text(text, encoding="utf-8")
    for folder in (tests, *(path.parent for path in map(tests.joinpath, ABSENT))):
        (folder / "__init__.py").touch()


def run_suite(folder: Path) -> dict[str, str]:
    """Runs the suite in its own process; the outcome of every test, for one that failed the message."""
    report = folder / "report.xml"
    shutil.copy(SUITE, folder / "tests" / "test_axk1_suite.py")
    settings = ["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", os.devnull, f"--junitxml={report}"]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "warning"}  # a command that ran here may have set it
    environment = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", *settings, "tests/test_axk1_suite.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-4000:]
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        found[str(case.get("name"))] = "passed" if outcome is None else f"{outcome.tag}: {outcome.get('message')}"
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generic_suite(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("parameterized", reason="transformers' tests need the package parameterized")
    if tuple(map(int, INSTALLED.split(".")[:2])) < OLDEST:
        pytest.skip(f"the suite is run from transformers {'.'.join(map(str, OLDEST))} on")
    found = run_suite(taken_tests(Path(request.config.cache.mkdir("transformers"))))  # pyright: ignore
    failed = {name: text for name, text in found.items() if text.startswith(("failure", "error"))}
    assert sum(text == "passed" for text in found.values()) > 80
    surprises = failed.keys() ^ EXPECTED.keys()
    assert not surprises, "\n".join(f"{name}: {failed.get(name, 'no longer fails')}" for name in surprises)
