"""What the files of a checkpoint hold, from their headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from axk1.checkpoint.compressed import check_method, held_specs, read_plan, stored_specs
from axk1.checkpoint.files import Stored, load_config, open_checkpoint
from axk1.checkpoint.names import HEAD_KEYS, Layout, TensorSpec, detect_prefix, expected_tensors
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import AXK1Config
from axk1.quantized.plan import Plan


@dataclass(frozen=True)
class Held:
    """What the files of a checkpoint hold, from their headers."""

    config: AXK1Config
    """MTP layers counted as stored."""
    plan: Plan | None
    layout: Layout
    stored: Stored
    specs: tuple[TensorSpec, ...]
    """The tensors, repeated ones left out, each with the type and shape it is stored in."""


def read_held(folder: Path) -> Held:
    """Reads the headers of the checkpoint in ``folder``.

    Raises:
        CheckpointError: a faulty checkpoint.
    """
    config, stored = load_config(folder), open_checkpoint(folder)
    check_method(config, folder)
    found = check_tensors(stored, config)
    config, plan = with_mtp_layers(config, found.mtp_layers), read_plan(config, folder)
    specs = stored_specs(held_specs(model_specs(stored, config, found.layout), plan, stored.tensors), plan)
    typed = tuple(replace(spec, dtype=stored.tensors[spec.name].dtype) for spec in specs)
    return Held(config, plan, found.layout, stored, typed)


def model_specs(stored: Stored, config: AXK1Config, layout: Layout) -> list[TensorSpec]:
    """Expected tensors with the part of the model they belong to; heads in the shape they are stored in."""
    specs = expected_tensors(config, layout, detect_prefix(stored.tensors), head=False)
    heads = [key for key in HEAD_KEYS if key in stored.tensors]
    return [*specs, *(TensorSpec(key, stored.tensors[key].shape, "", "head", "") for key in heads)]
