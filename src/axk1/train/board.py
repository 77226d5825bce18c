"""TensorBoard: what is logged while a stage is trained, by transformers' own callback."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.integrations.integration_utils import TensorBoardCallback


def check_board() -> None:
    """Raises ValueError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is not installed: in a clone, pip install '.[train]', or leave tensorboard out.")


def board(folder: Path, steps_done: int) -> TensorBoardCallback:
    """Writes to ``folder``, which ``tensorboard --logdir`` shows; points after ``steps_done`` of an earlier run, which
    was cut off, are dropped."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=steps_done + 1))
