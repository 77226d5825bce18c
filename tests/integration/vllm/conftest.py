"""Tests in the real engine: skipped where vLLM is not installed (``make engines`` installs it)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from axk1.integrations.vllm.versions import installed_version

if installed_version() is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def run_jobs(tmp_path: Path) -> Callable:
    """``support.run_jobs`` with a folder of this test's own."""
    from support import run_jobs

    return functools.partial(run_jobs, folder=tmp_path)
