"""Checkpoints: the table of tensors, reading, verifying, converting, describing. Safetensors only."""

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import expected_tensors
from axk1.checkpoint.verify import verify_checkpoint

__all__ = ["CheckpointError", "expected_tensors", "verify_checkpoint"]
