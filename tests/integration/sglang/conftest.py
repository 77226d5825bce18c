"""Runs in an environment of its own (`make engines-sglang`); in any other, these files are not collected."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

STUBS = Path(__file__).parent / "stubs"
INSTALLED = importlib.util.find_spec("sglang") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

if INSTALLED:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STUBS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    sys.path.insert(0, str(STUBS))
    from sglang_checkpoints import checkpoints, deepseek_folder, nano_per_expert  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory):
    """This process as the single worker of an engine; the module with what tests need of it."""
    import sglang_engine
    from sglang_checkpoints import NANO

    sglang_engine.start(NANO, tmp_path_factory.mktemp("store") / "store")
    return sglang_engine
