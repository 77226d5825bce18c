"""What has to hold before a faster way may stand in for a module."""

import torch
from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens in on ``module``; transformers' own recorders, asked for nothing, do not count."""
    if "_hf_hook" in module.__dict__:  # accelerate: weights that live elsewhere
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)


def is_inference() -> bool:
    """Whether nobody records what is computed: neither gradients nor a compiled graph."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_half_inference_on_cpu(x: torch.Tensor) -> bool:
    """Whether ``x``, of 16-bit floats on the CPU, is computed with as it is, outside of training and compilation."""
    half = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return half and is_inference() and not torch.is_autocast_enabled("cpu")
