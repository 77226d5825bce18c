"""Parts of a checkpoint as tensors and modules, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from axk1.checkpoint.compressed import check_method
from axk1.checkpoint.files import load_config
from axk1.checkpoint.names import PREFIX, ROUTER_BIAS, expert_slices
from axk1.checkpoint.source import Source
from axk1.checkpoint.streaming import DTYPES, Reader, source_pieces
from axk1.checkpoint.verify import check_tensors, with_mtp_layers
from axk1.config import AXK1Config
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.moe import AXK1MLP
from axk1.modeling.mtp import AXK1MTPLayer
from axk1.quantized.formats import dequantize

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm"
EXPERTS = "mlp.experts"


class Weights:
    """The weights of a checkpoint in either layout; matrices that are quantised come dequantised.

    Attributes:
        config: the checkpoint's, MTP modules counted as the file has them.
        dtype: of what is not quantised.

    Raises:
        CheckpointError: a faulty checkpoint.
    """

    def __init__(self, source: Source) -> None:
        config, stored = load_config(source.folder), source.stored
        check_method(config, source.folder)
        found = check_tensors(stored, config)
        self.prefix, self.layout, self.mtp_layers = found.prefix, found.layout, found.mtp_layers
        self.dtype = DTYPES[stored.tensors[self._own(EMBEDDING)].dtype]
        self.config: AXK1Config = with_mtp_layers(config, found.mtp_layers)
        # Off CUDA the plain loop wins: it follows autocast to bf16, transformers' grouped_mm stays in fp32.
        self.config._experts_implementation = "grouped_mm" if torch.cuda.is_available() else "eager"
        self.config._attn_implementation = "sdpa"
        self._sources, self._read = source_pieces(stored, self.config), Reader(source)

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The tensor of this name, in the released layout or an expert's own; stacks are read expert by expert."""
        own = self._own(name)
        slices = expert_slices(self.config, own)
        if not slices:
            return self._matrix(own, dtype)
        first = self._matrix(slices[0].name, dtype)
        stack = torch.empty(len(slices), *first.shape, dtype=dtype)
        stack[0] = first
        for place, part in zip(stack[1:], slices[1:], strict=True):
            place.copy_(self._matrix(part.name, dtype))
        return stack.view(self.config.n_routed_experts, -1, stack.shape[-1])

    def parts(self, name: str, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
        """Some rows after the other of a matrix that is not quantised, each with the number of the first."""
        first = 0
        for piece in self._sources[self._own(name)]:
            rows = self._read(piece).to(dtype)
            yield first, rows
            first += len(rows)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name, quantised or not."""
        own = self._own(name)
        return own in self._sources or f"{own}_packed" in self._sources or bool(expert_slices(self.config, own))

    def embedded(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``[..., D]`` embeddings of the token ids ``[...]``; the table is read in parts."""
        found = torch.empty(*ids.shape, self.config.hidden_size, dtype=dtype)
        for first, rows in self.parts(EMBEDDING, dtype):
            here = (ids >= first) & (ids < first + len(rows))
            found[here] = rows[ids[here] - first]
        return found

    def fill(self, module: nn.Module, base: str, dtype: torch.dtype, without: tuple[str, ...] = ()) -> None:
        """Gives ``module`` the tensors below ``base``; optional ones that the file does not hold stay as they are.

        Args:
            without: how names begin that are passed over.
        """
        for name in module.state_dict():
            bias = name.endswith(ROUTER_BIAS)
            if name.startswith(without) or ((bias or "post_mlp_layernorm" in name) and not self.has(f"{base}.{name}")):
                continue
            owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            value = self.tensor(f"{base}.{name}", torch.float32 if bias else dtype)
            setattr(owner, leaf, value if bias else nn.Parameter(value, requires_grad=False))

    def layer(self, index: int, dtype: torch.dtype, without: tuple[str, ...] = ()) -> AXK1DecoderLayer:
        """A decoder layer or MTP module, for inference; ``without`` as of ``fill``."""
        config = self.config
        with torch.device("meta"):
            kind = AXK1DecoderLayer if index < config.num_hidden_layers else AXK1MTPLayer
            layer = kind(config, index).eval()
        if layer.is_moe:  # zeros, where the file has none
            router = cast(nn.Module, cast(nn.Module, layer.mlp).gate)
            router.register_buffer(ROUTER_BIAS, torch.zeros(config.n_routed_experts))
        self.fill(layer, layer_name(index), dtype, without)
        return layer

    def expert(self, layer: int, expert: int, dtype: torch.dtype) -> AXK1MLP:
        """A routed expert."""
        with torch.device("meta"):
            mlp = AXK1MLP(self.config, self.config.moe_intermediate_size)
        self.fill(mlp, f"{layer_name(layer)}.{EXPERTS}.{expert}", dtype)
        return mlp

    def _matrix(self, own: str, dtype: torch.dtype) -> torch.Tensor:
        scale = own.removesuffix(".weight") + ".weight_scale"
        if scale not in self._sources:
            return self._whole(own).to(dtype)
        values = self._whole(own if own in self._sources else f"{own}_packed")
        return dequantize(values, self._whole(scale), dtype)

    def _whole(self, own: str) -> torch.Tensor:
        pieces = [self._read(piece) for piece in self._sources[own]]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _own(self, name: str) -> str:
        return name if self.prefix else name.removeprefix(PREFIX)


def layer_name(index: int) -> str:
    """How names of the tensors of a layer begin."""
    return f"model.layers.{index}"
