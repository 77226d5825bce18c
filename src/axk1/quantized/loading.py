"""Puts quantised modules into transformers' ``from_pretrained`` and ``save_pretrained``, by transformers' own hooks.

``config.json`` names compressed-tensors, for which transformers would ask for the package of that name. Our models
load such files under a method name of their own, which is never written.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from axk1.quantized.formats import stored_scale
from axk1.quantized.modules import QuantizedExperts, QuantizedLinear, replace_modules, restore_modules
from axk1.quantized.plan import FUSED, METHOD, Plan, plan_of

OUR_METHOD = "axk1-compressed-tensors"


def with_our_method(config: PreTrainedConfig) -> PreTrainedConfig:
    """``config``, or where it is of compressed-tensors a copy that transformers loads with the quantiser below."""
    if plan_of(config) is None:
        return config
    found: Any = config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    config = copy.deepcopy(config)
    values = found.to_dict() if isinstance(found, CompressedWeights) else found
    config.quantization_config = {**values, "quant_method": OUR_METHOD}  # pyright: ignore[reportAttributeAccessIssue]
    return config


@register_quantization_config(OUR_METHOD)
class CompressedWeights(QuantizationConfigMixin):
    """``quantization_config`` of a loaded model; written as it was read."""

    def __init__(self, **values: Any) -> None:
        self.quant_method: Any = OUR_METHOD
        self.values = {**values, "quant_method": METHOD}
        self.plan = Plan.from_dict(self.values)

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return copy.deepcopy(self.values)


@register_quantizer(OUR_METHOD)
class CompressedWeightsQuantizer(HfQuantizer):
    """Replaces modules before weights are read into them. Weights stay as they are stored."""

    requires_calibration = True  # transformers' word for: only files that are quantised already

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        plan = plan_of(model.config)
        assert plan is not None
        replace_modules(model, plan)
        self._types = {name: tensor.dtype for name, tensor in model.state_dict().items()}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Older transformers leave tensors that were renamed in the file's type."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            wanted = self._types.get(name, tensor.dtype)
            if tensor.dtype != wanted and tensor.device.type != "meta":
                tensor.data = tensor.data.to(wanted)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What ``save_pretrained`` writes: our models know (``pretrained.py``)."""
        return model.tensors_to_save(), {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False  # model.dequantize() first

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """``model.dequantize()``: an ordinary model of the same function, for training.

        transformers passes the dtype of the configuration, which is a name once the model was saved.
        """
        number = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        restore_modules(model, number or model.dtype)
        return model


def with_shapes(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state_dict`` with the shapes that files hold beside packed weights."""
    tensors = dict(state_dict)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear) and f"{name}.weight_packed" in tensors:
            tensors[f"{name}.weight_shape"] = torch.tensor([module.out_features, module.in_features])
        elif isinstance(module, QuantizedExperts):
            shapes = {"gate_up_proj": (module.width, module.hidden_size)}
            shapes["down_proj"] = (module.hidden_size, module.width)
            for matrix, parts in FUSED.items():
                for part in parts if f"{name}.{matrix}_packed" in tensors else ():
                    for expert in range(module.num_experts):
                        tensors[f"{name}.{expert}.{part}.weight_shape"] = torch.tensor(shapes[matrix])
    return tensors


def converters() -> list[WeightConverter]:
    """The stored tensors of quantised modules in transformers' terms, for all formats; reversed on saving."""
    experts = [
        WeightConverter(
            [f"mlp.experts.*.{part}.weight{suffix}" for part in parts],
            f"mlp.experts.{matrix}{suffix}",
            [StackExperts()],
        )
        for suffix in ("_scale", "_packed", "")  # the empty one last: older transformers match it with all of them
        for matrix, parts in FUSED.items()
    ]
    return [*experts, WeightConverter("weight_scale", "weight_scale", [WidenScale()])]


class StackExperts(ConversionOps):
    """One tensor an expert, or two (gate and up), to one stack of all experts."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        stacks = [torch.stack(input_dict.pop(pattern)) for pattern in source_patterns]
        stack = torch.cat(stacks, dim=1) if len(stacks) > 1 else stacks[0]
        return {target_patterns[0]: stack.float() if _is_scale(stack) else stack}

    @property
    def reverse_op(self) -> ConversionOps:
        return UnstackExperts()


class UnstackExperts(ConversionOps):
    """The reverse: every expert's own tensors."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> dict[str, Any]:
        stack = _single(input_dict)
        stack = stored_scale(stack, model.dtype) if _is_scale(stack) else stack
        parts = stack.chunk(len(target_patterns), dim=1)
        return {
            pattern.replace("*", str(expert)): matrix.contiguous()
            for pattern, part in zip(target_patterns, parts, strict=True)
            for expert, matrix in enumerate(part)
        }

    @property
    def reverse_op(self) -> ConversionOps:
        return StackExperts()


class WidenScale(ConversionOps):
    """Scales are in the weights' type in files and in float32 in memory."""

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **kwargs: Any) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {target_patterns[0]: _single(input_dict).float()}

    @property
    def reverse_op(self) -> ConversionOps:
        return NarrowScale()


class NarrowScale(ConversionOps):
    """The reverse: no bit is lost."""

    @torch.no_grad()
    def convert(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_dict: dict[str, Any], target_patterns: list[str], model: PreTrainedModel, **kwargs: Any
    ) -> dict[str, Any]:
        return {target_patterns[0]: stored_scale(_single(input_dict), model.dtype)}

    @property
    def reverse_op(self) -> ConversionOps:
        return WidenScale()


def _single(input_dict: dict[str, Any]) -> torch.Tensor:
    (value,) = input_dict.values()
    return value[0] if isinstance(value, list) else value


def _is_scale(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.itemsize > 1  # the values themselves are integers or fp8
