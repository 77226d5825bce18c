"""Runs in an environment of its own (`make engines-mlx`); in any other, these files are not collected."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

INSTALLED = importlib.util.find_spec("mlx_lm") is not None
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

if INSTALLED:
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))  # its samples: random checkpoints in every form
    from axk1.integrations.mlx import register

    register()


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano in fp32: without a GPU, MLX computes experts that are not quantised in that type alone."""
    from support import NANO

    from axk1.checkpoint.convert import convert_checkpoint

    folder = tmp_path_factory.mktemp("nano") / "fp32"
    convert_checkpoint(NANO, folder, dtype="float32")
    return folder
