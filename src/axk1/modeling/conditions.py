"""What has to hold before a faster way may stand in for a module."""

import torch
from torch import nn


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody listens in on ``module``; transformers' own recorders, asked for nothing, do not count."""
    if "_hf_hook" in module.__dict__:  # accelerate: weights that live elsewhere
        return True
    if not module._forward_hooks and not module._forward_pre_hooks:
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks)


def is_hooked_inside(module: nn.Module) -> bool:
    """Whether it or a part of it is; quicker than to go through ``modules()``, since it is asked before every reply."""
    parts = [module]
    while parts:
        part = parts.pop()
        if is_hooked(part):
            return True
        parts.extend(child for child in part._modules.values() if child is not None)
    return False


def is_inference() -> bool:
    """Whether nobody records what is computed: neither gradients nor a compiled graph."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_half_inference_on_cpu(x: torch.Tensor) -> bool:
    """Whether ``x``, of 16-bit floats on the CPU, is computed with as it is, outside of training and compilation."""
    half = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return half and is_inference() and not torch.is_autocast_enabled("cpu")
