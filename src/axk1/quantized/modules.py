"""The modules that stand for ``nn.Linear`` and ``AXK1Experts`` in a quantised model.

Their forward in plain PyTorch is the reference: weights become the inputs' dtype a matrix at a time, as they are used.
Compiled operators read the same buffers. Shapes: T tokens, K experts a token, E experts, O outputs, I inputs, D hidden,
F expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import nn

from axk1.modeling.moe import AXK1Experts, one_by_one
from axk1.quantized.formats import Quantized, dequantize
from axk1.quantized.plan import FUSED, Plan, Scheme

TYPES = {
    "I8": torch.int8,
    "I32": torch.int32,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.float32,
}
"""Types in memory by their word in a file; scales, bfloat16 in files, are float32 here."""
INT8_TOKENS = 17
"""Schemes with eight-bit activations round them from this many tokens on (fewer are not accepted by CUDA's product)."""
GATHERED_SLOTS = 16
"""Up to this many chosen (token, expert) pairs are computed all at once, without asking which experts they are."""


class _Quantized(nn.Module):
    """A module whose buffers keep their types: ``model.to(torch.bfloat16)`` moves them, and changes the rest."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _values(self, name: str) -> torch.Tensor:
        """The stored values of ``name``, as ``Quantized`` has them."""
        return self.get_buffer(name if name in self._buffers else f"{name}_packed")


class QuantizedLinear(_Quantized):
    """``x W^T + b`` with a quantised W ``[O, I]``.

    Buffers: ``weight`` int8 or float8_e4m3fn ``[O, I]``, or ``weight_packed`` int32 ``[O, I / 8]`` (int4) or uint8
    ``[O, 3 I / 8]`` (int3); ``weight_scale`` float32 ``[O, groups]``, or a row for each 128 of O (fp8 in blocks).
    """

    weight_scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, scheme: Scheme, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        for name, (word, shape) in scheme.tensors(out_features, in_features).items():
            if word in TYPES:
                self.register_buffer(name, torch.empty(shape, dtype=TYPES[word]))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None)

    @property
    def values(self) -> torch.Tensor:
        """The values alone, as they are stored."""
        return self._values("weight")

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        return Quantized(self.values, self.weight_scale)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The matrix ``[O, I]`` that this module multiplies by."""
        return dequantize(*self.quantized(), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., I]`` to ``[..., O]``."""
        product = product_with(x.reshape(-1, x.shape[-1]), self.quantized(), self.scheme)
        product = product if self.bias is None else product + self.bias
        return product.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.scheme}"


class QuantizedExperts(_Quantized):
    """All routed experts in two stacks, as in ``AXK1Experts``.

    Buffers: ``gate_up_proj`` ``[E, 2F, D]`` (gate rows first) and ``down_proj`` ``[E, D, F]``, int8 or float8_e4m3fn,
    or ``gate_up_proj_packed`` and ``down_proj_packed``, int32 with an eighth of the columns (int4) or uint8 with three
    eighths (int3); ``gate_up_proj_scale`` and ``down_proj_scale`` float32 ``[E, rows, groups]``, or rows of scales for
    each 128 rows (fp8 in blocks), those of gate first: no block has rows of both gate and up, whatever F is.
    """

    gate_up_proj_scale: torch.Tensor
    down_proj_scale: torch.Tensor

    def __init__(self, experts: int, hidden: int, width: int, gate_up: Scheme, down: Scheme, act_fn: nn.Module) -> None:
        super().__init__()
        self.num_experts, self.hidden_size, self.width = experts, hidden, width
        self.schemes = {"gate_up_proj": gate_up, "down_proj": down}
        for matrix, shape in (("gate_up_proj", (width, hidden)), ("down_proj", (hidden, width))):
            for name, (word, (rows, *rest)) in self.schemes[matrix].tensors(*shape).items():
                if word in TYPES:
                    buffer = torch.empty((experts, len(FUSED[matrix]) * rows, *rest), dtype=TYPES[word])
                    self.register_buffer(matrix + name.removeprefix("weight"), buffer)
        self.act_fn = act_fn

    @property
    def gate_up_values(self) -> torch.Tensor:
        """Of gate and up, as they are stored."""
        return self._values("gate_up_proj")

    @property
    def down_values(self) -> torch.Tensor:
        """Of down, as they are stored."""
        return self._values("down_proj")

    def quantized(self, matrix: str) -> Quantized:
        """The stack ``gate_up_proj`` or ``down_proj`` as it is stored; where scales are those of blocks, its parts
        apart: ``[E, 2, F, D]`` and ``[E, 1, D, F]``."""
        stack = Quantized(self._values(matrix), self.get_buffer(f"{matrix}_scale"))
        if not self.schemes[matrix].in_blocks:
            return stack
        return Quantized(*(each.unflatten(1, (len(FUSED[matrix]), -1)) for each in stack))

    def dequantized(self, matrix: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The stack ``gate_up_proj`` ``[E, 2F, D]`` or ``down_proj`` ``[E, D, F]`` that this module multiplies by."""
        return dequantize(*self.quantized(matrix), dtype).flatten(1, -2)

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` with the routing ``[T, K]`` to ``[T, D]``: the weighted sum over each token's experts."""
        compute = self._all_at_once if indices.numel() <= GATHERED_SLOTS else self._one_by_one
        return compute(hidden_states, indices, weights).to(hidden_states.dtype)

    def _all_at_once(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Gathers the matrices of the chosen experts; no synchronisation on a GPU."""

        def chosen(matrix: str) -> torch.Tensor:
            values, scale = self.quantized(matrix)
            byte_wise = values if values.dtype == torch.int32 else values.view(torch.uint8)  # fp8 has no indexing
            picked = byte_wise[indices.flatten()].view(values.dtype)
            return dequantize(picked, scale[indices.flatten()], hidden_states.dtype).flatten(1, -2)

        slots = hidden_states.repeat_interleave(indices.shape[-1], dim=0).unsqueeze(-1)
        gate, up = (chosen("gate_up_proj") @ slots).chunk(2, dim=1)
        by_token = (chosen("down_proj") @ (self.act_fn(gate) * up)).view(*indices.shape, -1)
        return (by_token * weights.unsqueeze(-1)).sum(dim=1)

    def _one_by_one(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One expert after the other, over all tokens that chose it."""
        gate_up, down = self.quantized("gate_up_proj"), self.quantized("down_proj")

        def run(tokens: torch.Tensor, expert: int) -> torch.Tensor:
            if not len(tokens):  # its weights are not unpacked for nothing
                return tokens
            gate, up = self._product(tokens, gate_up, expert, "gate_up_proj").chunk(2, dim=-1)
            return self._product(self.act_fn(gate) * up, down, expert, "down_proj")

        return one_by_one(hidden_states, indices, weights, self.num_experts, run)

    def _product(self, x: torch.Tensor, stack: Quantized, expert: int, matrix: str) -> torch.Tensor:
        return product_with(x, Quantized(stack.values[expert], stack.scale[expert]), self.schemes[matrix])

    def extra_repr(self) -> str:
        shape = f"{self.num_experts} experts, {self.hidden_size} x {self.width}"
        return f"{shape}, gate_up {self.schemes['gate_up_proj']}, down {self.schemes['down_proj']}"


def product_with(x: torch.Tensor, matrix: Quantized, scheme: Scheme) -> torch.Tensor:
    """``[T, I]`` times the ``[O, I]`` matrix (or several such, as one) transposed; in int8 where the scheme says so and
    there are many tokens."""
    if scheme.kind == "int8" and scheme.activations and len(x) >= INT8_TOKENS:
        return int8_product(x, matrix)
    return F.linear(x, dequantize(*matrix, x.dtype).flatten(0, -2))


def int8_product(x: torch.Tensor, matrix: Quantized) -> torch.Tensor:
    """``[T, I]`` times int8 ``[O, I]`` transposed: each token is rounded to int8 with a scale of its own."""
    largest = x.abs().amax(-1, keepdim=True).float()
    x_scale = torch.where(largest > 0, largest / 127, 1.0)
    rounded = (x / x_scale).round().to(torch.int8)
    product = torch._int_mm(rounded, matrix.values.t())  # pyright: ignore[reportPrivateImportUsage] - the one int8 product that torch has
    return (product * x_scale * matrix.scale.float().squeeze(-1)).to(x.dtype)


def replace_modules(model: nn.Module, plan: Plan) -> None:
    """Puts empty quantised modules where ``plan`` has a scheme; for models on the meta device, before their weights."""
    for name, module in list(model.named_modules()):
        if ".layers." not in f".{name}":  # heads are never quantised
            continue
        replacement = _replacement(name, module, plan)
        if replacement is not None:
            model.set_submodule(name, replacement.train(module.training))


def restore_modules(
    model: nn.Module, dtype: torch.dtype, linear_type: type = QuantizedLinear, experts_type: type = QuantizedExperts
) -> None:
    """Puts ``nn.Linear`` and ``AXK1Experts`` with the dequantised weights back in place of modules of these types."""
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if isinstance(module, linear_type):
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight = nn.Parameter(module.dequantized(dtype))
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.detach().to(dtype))
            model.set_submodule(name, linear.train(module.training))
        elif isinstance(module, experts_type):
            with torch.device("meta"):
                experts = AXK1Experts(model.config)  # pyright: ignore[reportArgumentType]
            for matrix in FUSED:
                setattr(experts, matrix, nn.Parameter(module.dequantized(matrix, dtype)))
            model.set_submodule(name, experts.train(module.training))


def _replacement(name: str, module: nn.Module, plan: Plan) -> nn.Module | None:
    if type(module) is nn.Linear:
        scheme = plan.scheme(name)
        if scheme is None:
            return None
        if name.endswith("kv_b_proj"):  # absorbed, its inputs are never seen, so they are not rounded either
            scheme = replace(scheme, activations=False)
        return QuantizedLinear(module.in_features, module.out_features, scheme, module.bias is not None)
    schemes = plan.expert_schemes(name) if isinstance(module, AXK1Experts) else None
    if schemes is None:
        return None
    experts, hidden, width = cast(nn.Parameter, module.down_proj).shape
    return QuantizedExperts(experts, hidden, width, *schemes, cast(nn.Module, module.act_fn))
