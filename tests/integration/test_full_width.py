"""benchmarks/full_width.py at an eighth of the width: the bits, and bytes as the system counts them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_width.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.skipif(sys.platform != "linux", reason="direct reads and /proc/self/io")
def test_layers_of_an_eighth_of_the_width(tmp_path: Path) -> None:
    folder = tmp_path / "layers"

    def run(command: str, *options: str) -> str:
        call = [sys.executable, str(SCRIPT), command, str(folder), *options]
        done = subprocess.run(call, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "model-00002.safetensors" in run("make", "--layers", "2", "--divide", "8")
    assert run("check", "--cache", "32MiB").count("in memory: the same bits") == 2
    run("measure", "--cache", "32MiB", "--json", str(tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["counters"]["reads"] * result["expert_bytes"] == result["counters"]["bytes"]
    assert result["counted_bytes"] > 0 and all(step["bound"] > 0 for step in result["steps"])
    if result["process_bytes"]:  # not of a file system in memory
        assert abs(result["counted_bytes"] / result["process_bytes"] - 1) < 0.01
