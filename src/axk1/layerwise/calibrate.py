"""Quantising with texts: matrices are fitted to the inputs that they have in the model as far as it is quantised."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from axk1.checkpoint.budget import Budget
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.names import PREFIX, layer_index
from axk1.checkpoint.quantize import FITTED, Fitted, Squares, quantize_checkpoint
from axk1.checkpoint.reading import read_json
from axk1.checkpoint.recipe import Recipe
from axk1.checkpoint.source import Source
from axk1.files import write_text
from axk1.layerwise.states import TOKENS, Compute, Pass, Progress, Rows
from axk1.layerwise.weights import Weights
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.moe import AXK1MLP
from axk1.quantized.compensated import Inputs, fitted
from axk1.quantized.formats import dequantize, squares
from axk1.quantized.plan import Kind, Plan

STATE, DONE = "calibration.json", "finished"
PART_BYTES = 512 << 20
"""Of rounded matrices in memory."""


def identity(rows: Rows) -> dict[str, Any]:
    """What of the texts has to be unchanged for a run that was cut off to go on; the manifest has it."""
    parts = (rows.ids, rows.labels, rows.positions)
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    return {"tokens": int((rows.labels >= 0).sum()), "rows": len(rows.ids), "sha256": digest}


def quantize_calibrated(
    source: Path | str,
    target: Path,
    scheme: Kind | Recipe | Budget,
    rows: Rows,
    calibrating: Progress | None = None,
    **options: Any,
) -> list[Path]:
    """:func:`axk1.checkpoint.quantize.quantize_checkpoint` with matrices that are fitted to texts.

    They lie in the folder ``target`` with ``.calibration`` after its name until they are written, beside the states of
    the texts. The same call goes on with both.

    Args:
        rows: the texts. Memory holds their states twice in float32.
        calibrating: is told how many parts of layers are fitted.
        options: of ``quantize_checkpoint``.
    """
    folder = target.with_name(f"{target.name}.calibration")

    def fit(opened: Source, plan: Plan) -> list[Path]:
        return calibrate(opened, plan, rows, folder, calibrating)

    files = quantize_checkpoint(source, target, scheme, fitted=Fitted(fit, identity(rows)), **options)
    shutil.rmtree(folder)
    return files


def calibrate(opened: Source, plan: Plan, rows: Rows, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Rounds the matrices of a checkpoint by ``plan`` and returns the files of ``folder`` that hold them.

    A layer is computed exactly, with the inputs that the layers before it give when quantised; its matrices are fitted
    to these (:mod:`axk1.quantized.compensated`), gate and up before down; then it is computed again for the next one.
    The same call goes on after the last finished layer.

    Raises:
        CheckpointError: the source is faulty or not finite, or the folder is another calibration's.
    """
    weights = Weights(opened)
    wish = json.loads(json.dumps({"source": opened.identity(), "plan": plan.to_dict(), "texts": identity(rows)}))
    state, done = folder / STATE, folder / DONE
    if state.is_file() and read_json(state) != wish:
        raise CheckpointError("is the calibration of another source, scheme or text: remove it.", folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not done.is_file():
        write_text(state, json.dumps(wish))
        fitting = _Fitting(opened, plan, folder, weights)
        through = Pass(weights, rows, fitting, folder, progress)
        through.run_mtp(through.run(fitting.save), fitting.save)
        opened.finish(set())  # compares sums
        write_text(done, "")
    return sorted(folder.glob("*.safetensors"))


class _Fitting(Compute):
    """Computes with matrices that it rounds as they come, and writes them to ``folder``."""

    def __init__(self, opened: Source, plan: Plan, folder: Path, weights: Weights) -> None:
        self.opened, self.plan, self.folder, self.prefix = opened, plan, folder, weights.prefix
        # scales are of the source's type, as those of plain rounding are
        self.scale_dtype = torch.float32 if weights.dtype is torch.float16 else weights.dtype
        self._tensors: dict[str, torch.Tensor] = {}
        self._squares: dict[str, Squares] = {}
        self._parts = 0

    def attend(self, name: str, layer: AXK1DecoderLayer, some: Callable[[], torch.Tensor]) -> torch.Tensor:
        attention = cast(nn.Module, layer.self_attn)
        linears = {f"{name}.self_attn.{each}": m for each, m in attention.named_children() if type(m) is nn.Linear}
        with _inputs_of(linears) as inputs:
            some()
        for each, linear in linears.items():
            self._round(each, linear, inputs[each])
        return some()

    def linear(self, name: str, linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        self._round(name, linear, Inputs.of(x))
        return super().linear(name, linear, x)

    def mlp(self, name: str, mlp: AXK1MLP, x: torch.Tensor) -> torch.Tensor:
        inputs = Inputs.of(x)
        self._round(f"{name}.gate_proj", mlp.gate_proj, inputs)
        self._round(f"{name}.up_proj", mlp.up_proj, inputs)
        inputs = Inputs(mlp.down_proj.in_features)
        for some in x.split(TOKENS):
            inputs.add(mlp.act_fn(mlp.gate_proj(some)) * mlp.up_proj(some))
        self._round(f"{name}.down_proj", mlp.down_proj, inputs)
        return super().mlp(name, mlp, x)

    def save(self, index: int) -> None:
        """Writes what is left of a layer."""
        self._write(index)
        self._parts = 0

    def _round(self, name: str, linear: nn.Linear, inputs: Inputs) -> None:
        """Puts the rounded weight in the place of the exact one, and keeps what a file holds of it."""
        scheme = self.plan.scheme(name)
        if scheme is None:
            return
        weight = linear.weight.detach()
        try:
            quantized = fitted(weight, scheme, inputs)
        except ValueError as error:
            raise CheckpointError(f"tensor '{name}.weight' {error}.", self.opened.given, f"{name}.weight") from error
        linear.weight = nn.Parameter(dequantize(*quantized), requires_grad=False)
        own = name if self.prefix else name.removeprefix(PREFIX)
        scales = quantized.scale.to(self.scale_dtype)
        for suffix, value in zip(scheme.tensors(*weight.shape), (quantized.values, scales), strict=False):
            self._tensors[f"{FITTED}{own}.{suffix}"] = value.contiguous()
        self._squares[f"{own}.weight"] = squares(weight, quantized)
        if sum(tensor.nbytes for tensor in self._tensors.values()) > PART_BYTES:
            self._write(layer_index(own) or 0)

    def _write(self, index: int) -> None:
        place = self.folder / f"layer-{index:05d}-{self._parts:03d}.safetensors"
        beside = place.with_suffix(".part")
        save_file(self._tensors, beside, metadata={"squares": json.dumps(self._squares)})
        beside.replace(place)
        self._tensors, self._squares, self._parts = {}, {}, self._parts + 1


@contextmanager
def _inputs_of(linears: Mapping[str, nn.Linear]) -> Iterator[dict[str, Inputs]]:
    """What each gets as its input while the block lasts."""
    inputs = {name: Inputs(linear.in_features) for name, linear in linears.items()}

    def taker(name: str) -> Callable[[Any, Any], None]:
        return lambda _, given: inputs[name].add(given[0].flatten(0, -2))

    hooks = [linear.register_forward_pre_hook(taker(name)) for name, linear in linears.items()]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
