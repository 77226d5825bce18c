"""Trainings killed at random moments end with the bits of one that was not (tests/kills.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="attempts are forks")
def test_killed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    """Five kills, two of them while saving; AXK1_KILL_RUNS=10 for fifty."""
    runs = int(os.environ.get("AXK1_KILL_RUNS", "1"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(runs), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["differ"] == 0 and found["killed"] >= 3 * runs, found
