"""The one error that reading a checkpoint raises."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(ValueError, RuntimeError):
    """A checkpoint that cannot be used: which file, which tensor, what to do.

    Also a ``RuntimeError``: callers of ``from_pretrained`` know transformers' own for tensors of another shape.

    Attributes:
        file: the file at fault, where there is one.
        key: the tensor at fault, where there is one.
    """

    def __init__(self, message: str, file: Path | str | None = None, key: str | None = None) -> None:
        self.file = None if file is None else str(file)
        self.key = key
        super().__init__(f"{self.file}: {message}" if self.file else message)
