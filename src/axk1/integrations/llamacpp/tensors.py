"""Which tensors a GGUF file of a checkpoint holds, and what each is made of: rows of the source's matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from axk1.checkpoint.names import TensorSpec, expected_tensors, layer_index
from axk1.checkpoint.source import Source
from axk1.checkpoint.streaming import ROWS, Reader, rows_of, source_pieces
from axk1.config import AXK1Config
from axk1.quantized.formats import dequantize

BLOCK = 1 << 24
"""Values that are read, turned to fp32 and quantised at once; a matrix of one of K1's experts has 14.7 million."""
MODEL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "post_mlp_layernorm.weight": "post_ffw_norm.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
}
EXPERTS = {"gate_proj": "ffn_gate_exps.weight", "up_proj": "ffn_up_exps.weight", "down_proj": "ffn_down_exps.weight"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file. Shapes are torch's; GGUF counts dimensions from the other end."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    """Matrices of the source, each the next part of it."""
    change: Callable[[torch.Tensor], torch.Tensor] | None = None
    """What is done to a whole source; None where its rows are taken as they are."""

    @property
    def full(self) -> bool:
        """Whether it is kept in fp32, as llama.cpp's conversion and quantiser do: vectors and the router."""
        return len(self.shape) == 1 or "ffn_gate_inp" in self.name

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Matrices:
    """Rows of a checkpoint's matrices in fp32, in any layout and format."""

    def __init__(self, source: Source, config: AXK1Config) -> None:
        self.source, self.pieces, self._read = source, source_pieces(source.stored, config), Reader(source)

    def rows(self, name: str, start: int, stop: int | None) -> torch.Tensor:
        """Rows ``start``, a multiple of ``ROWS``, to ``stop`` of the matrix (or all of the vector) ``name``."""
        packed, scale = self._stored(name)
        values = self._read(rows_of(self.pieces[packed], start, stop))
        if scale is None:
            return values.float()
        held = self.source.stored.tensors
        if held[scale].shape[0] != held[packed].shape[0]:  # of blocks
            start, stop = start // ROWS, None if stop is None else -(-stop // ROWS)
        return dequantize(values, self._read(rows_of(self.pieces[scale], start, stop)))

    def files(self, name: str) -> set[Path]:
        """The files that hold the matrix ``name``."""
        return {self.source.stored.tensors[self.pieces[held][0].key].file for held in self._stored(name) if held}

    def _stored(self, name: str) -> tuple[str, str | None]:
        """The tensors of the matrix: of its values and, where it is quantised, of its scales."""
        packed, scale = (name.removesuffix("weight") + suffix for suffix in ("weight_packed", "weight_scale"))
        if scale not in self.pieces:
            return name, None
        return (packed if packed in self.pieces else name), scale


def blocks(tensor: Tensor, source: Matrices, shapes: dict[str, tuple[int, ...]]) -> Iterator[torch.Tensor]:
    """The values of ``tensor`` in fp32, some rows ``[R, I]`` at a time, in the file's order."""
    width = tensor.shape[-1]
    for name in tensor.sources:
        if tensor.change is not None or len(shapes[name]) == 1:
            whole = source.rows(name, 0, None)
            yield (whole if tensor.change is None else tensor.change(whole)).reshape(-1, width)
            continue
        step = max(1, BLOCK // width // ROWS) * ROWS
        for start in range(0, shapes[name][0], step):
            yield source.rows(name, start, min(start + step, shapes[name][0]))


def tensors_of(config: AXK1Config, held: dict[str, TensorSpec]) -> Iterator[Tensor]:
    """The file's tensors in their order, for a source with the tensors ``held`` (per-expert names)."""
    done: set[str] = set()
    for name, spec in held.items():
        layer = layer_index(name)
        if layer is None:
            yield Tensor(MODEL_NAMES[name], spec.shape, (name,))
            continue
        key, block = name.split(f"layers.{layer}.", 1)[1], f"blk.{layer}."
        if ".experts." in name:
            yield from _experts(name, spec, block, config, done)
        elif key == "self_attn.kv_b_proj.weight":
            yield from _absorbed(name, block, config)
        elif config.is_moe_layer(layer) or key != "post_mlp_layernorm.weight":  # stored in dense layers, never applied
            yield Tensor(block + LAYER_NAMES[key], spec.shape, (name,))


def _experts(name: str, spec: TensorSpec, block: str, config: AXK1Config, done: set[str]) -> Iterator[Tensor]:
    base, _, projection = name.removesuffix(".weight").rpartition(".")
    target = block + EXPERTS[projection]
    if target not in done:
        done.add(target)
        home = base.rpartition(".")[0]
        sources = tuple(f"{home}.{expert}.{projection}.weight" for expert in range(config.n_routed_experts))
        yield Tensor(target, (config.n_routed_experts, *spec.shape), sources)


def _absorbed(name: str, block: str, config: AXK1Config) -> Iterator[Tensor]:
    """``kv_b_proj`` as absorbed attention reads it: queries to latents ``[H, C, N]``, these to values ``[H, V, C]``."""
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim

    def keys(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(heads, nope + value, latent)[:, :nope].transpose(1, 2).contiguous()

    def values(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(heads, nope + value, latent)[:, nope:].contiguous()

    yield Tensor(block + "attn_k_b.weight", (heads, latent, nope), (name,), keys)
    yield Tensor(block + "attn_v_b.weight", (heads, value, latent), (name,), values)


def held_tensors(config: AXK1Config, source: Matrices) -> dict[str, TensorSpec]:
    """The tensors of ``config`` by per-expert names, those that the source holds."""
    specs = expected_tensors(config, "per_expert")
    return {spec.name: spec for spec in specs if {spec.name, f"{spec.name}_packed"} & source.pieces.keys()}
