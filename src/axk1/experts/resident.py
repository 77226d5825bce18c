"""Some experts of a layer in memory, for PyTorch's operators: where no compiled step runs, and as a reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from axk1.config import AXK1Config
from axk1.experts.places import ExpertTable, Matrix, Piece
from axk1.modeling.moe import AXK1Experts
from axk1.quantized.modules import QuantizedExperts
from axk1.quantized.plan import Scheme


class ResidentExperts:
    """Makes modules of a layer's experts, as ``from_pretrained`` would: called with their numbers."""

    def __init__(self, table: ExpertTable, config: AXK1Config, layer: int) -> None:
        self._table, self._config, self._layer = table, config, layer

    def __call__(self, experts: list[int]) -> nn.Module:
        """``AXK1Experts`` or ``QuantizedExperts`` with these experts, in this order."""
        schemes, matrices = self._table.schemes(self._layer), self._table.matrices
        found = [matrices(self._layer, expert) for expert in experts]
        tensors = {}
        for name, parts in (("gate_up_proj", (0, 1)), ("down_proj", (2,))):
            scheme = schemes[parts[0] // 2] if schemes else None
            for suffix, read in self._readers(scheme).items():
                tensors[name + suffix] = _stack(
                    (torch.cat([read(each[part]) for part in parts]) for each in found), len(found)
                )
        module = self._empty(len(experts), schemes)
        module.load_state_dict(tensors, assign=True)
        return module.requires_grad_(False).eval()

    def _empty(self, count: int, schemes: tuple[Scheme, Scheme] | None) -> nn.Module:
        config = self._config
        with torch.device("meta"):
            if schemes:
                act = ACT2FN[config.hidden_act]
                return QuantizedExperts(count, config.hidden_size, config.moe_intermediate_size, *schemes, act)
            fewer = copy.copy(config)
            fewer.n_routed_experts = count
            return AXK1Experts(fewer)

    def _readers(self, scheme: Scheme | None) -> dict[str, Any]:
        """How each tensor of a matrix is read, by what is added to the matrix's name."""
        if scheme is None:
            return {"": lambda m: self._read(m.values, self._table.dtype, m.rows)}
        dtype = {"int4": torch.int32, "int3": torch.uint8}.get(scheme.kind, torch.int8)
        suffix = "_packed" if scheme.packed else ""
        return {suffix: lambda m: self._read(m.values, dtype, m.rows), "_scale": self._scale}

    def _scale(self, matrix: Matrix) -> Tensor:
        assert matrix.scales is not None
        number = torch.bfloat16 if matrix.scale_bytes == 2 else torch.float32
        return self._read(matrix.scales, number, matrix.rows).float()

    def _read(self, piece: Piece, dtype: torch.dtype, rows: int) -> Tensor:
        file: Path = self._table.files[piece.file]
        with file.open("rb") as stream:
            stream.seek(piece.begin)
            values = bytearray(stream.read(piece.end - piece.begin))
        return torch.frombuffer(values, dtype=dtype).view(rows, -1)


def _stack(matrices: Iterator[Tensor], count: int) -> Tensor:
    """The next ``count`` matrices in one tensor, each copied as it comes: a layer of K1 is in memory once."""
    first = next(matrices)
    out = first.new_empty(count, *first.shape)
    out[0] = first
    for place in range(1, count):
        out[place] = next(matrices)
    return out
