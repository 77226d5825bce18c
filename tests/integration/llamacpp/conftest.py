"""Needs llama.cpp as `make engines-llamacpp` builds it; without that, these files are not collected."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from axk1.integrations.llamacpp import NAMED

HERE = Path(__file__).parent
BUILD = Path(os.environ.get(NAMED) or HERE.parents[2] / ".llamacpp" / "current" / "bin").parent
READY = any((BUILD / "bin").glob("libllama.*")) and importlib.util.find_spec("gguf") is not None
collect_ignore_glob = [] if READY else ["test_*.py"]
sys.path.insert(0, str(HERE.parent / "vllm"))  # its samples: random checkpoints in every form
sys.path.insert(0, str(HERE.parents[2] / "src" / "axk1" / "bench" / "workers"))  # its binding


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder that the build lies in."""
    return BUILD


@pytest.fixture(scope="session")
def nano_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano as GGUF in fp32."""
    from support import NANO

    from axk1.integrations.llamacpp.export import export_gguf

    return export_gguf(NANO, tmp_path_factory.mktemp("nano") / "gguf", "f32")[0]
