"""`axk1 eval` with lm-eval, in this environment or beside it in ``.venv-lm-eval`` (`make engine-environments`)."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BESIDE = sorted(ROOT.glob(".venv-lm-eval/lib/python3*/site-packages"))
SUITE = Path(__file__).with_name("lm_eval_suite.py")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None and not BESIDE,
    reason="lm-eval is not installed; make engine-environments puts it into .venv-lm-eval",
)
def test_the_suite_passes(tmp_path: Path) -> None:
    """This process's packages come first; of the other environment only what is not here."""
    code = "import sys, pytest; sys.path.extend(sys.argv[1].split(':')); sys.exit(pytest.main(sys.argv[2:]))"
    command = [sys.executable, "-c", code, ":".join(map(str, BESIDE)), "-p", "no:cacheprovider", str(SUITE)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert int((re.search(r"(\d+) passed", done.stdout) or [0, 0])[1]) >= 18, done.stdout
