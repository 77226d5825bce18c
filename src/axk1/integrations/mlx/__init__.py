"""A.X K1 for mlx-lm: the model file, the commands of mlx-lm with it, and the export (``docs/mlx.md``).

mlx-lm imports ``mlx_lm.models.NAME`` for a checkpoint whose ``model_type`` is NAME. :func:`register` adds the folder
``models`` of this package to the places where that package is looked for; no file of mlx-lm is touched, and a model of
that name that mlx-lm brings itself goes first. Nothing of mlx-lm is imported before.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

__all__ = ["register", "version_problem"]

TESTED = "0.32.2"
"""The version of mlx-lm whose modules the model is made of."""
UNTESTED_ALLOWED = "AXK1_MLX_UNTESTED"
"""Set to 1, this variable lets any other version try."""
MODELS = str(Path(__file__).with_name("models"))


def version_problem() -> str | None:
    """Why A.X K1 does not run on what is installed, in one sentence; None if it does."""
    try:
        installed = importlib.metadata.version("mlx-lm")
    except importlib.metadata.PackageNotFoundError:
        return "mlx-lm is not installed: in a clone, pip install '.[mlx]' (on macOS with Apple silicon, or on Linux)."
    if installed == TESTED or os.environ.get(UNTESTED_ALLOWED) == "1":
        return None
    return (
        f"axk1 is tested with mlx-lm {TESTED}, whose DeepSeek modules its model is made of; {installed} is installed: "
        f"pip install mlx-lm=={TESTED}, or set {UNTESTED_ALLOWED}=1 to try this one."
    )


def register() -> None:
    """Lets mlx-lm load A.X K1 in this process; again is harmless.

    Raises:
        ValueError: mlx-lm is missing, or of a version that was not tested.
    """
    if (problem := version_problem()) is not None:
        raise ValueError(problem)
    import mlx_lm.models
    import mlx_lm.utils

    if MODELS not in mlx_lm.models.__path__:
        mlx_lm.models.__path__.append(MODELS)
    mlx_lm.utils.MODEL_REMAPPING["AXK1"] = "axk1"  # as older configurations spell it
