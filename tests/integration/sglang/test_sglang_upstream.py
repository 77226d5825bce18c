"""The reproductions of docs/upstream run, without the plugin, and print what the issue says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

UPSTREAM = Path(__file__).parents[3] / "docs/upstream"
ISSUES = sorted(UPSTREAM.glob("sglang-*.md"))


@pytest.mark.parametrize("issue", ISSUES, ids=lambda path: path.stem)
def test_the_reproduction_prints_what_the_issue_says(issue: Path):
    (code, said), *_ = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", issue.read_text(), re.DOTALL)
    environment = {**os.environ, "SGLANG_PLUGINS": "none"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert said.splitlines() == [line for line in ran.stdout.splitlines() if line in said], ran.stdout


def test_there_are_reproductions():
    assert len(ISSUES) == 2
