"""The one place that names the path of a step: the table of thresholds, and what is chosen by it.

Thresholds were measured, by ``axk1 bench``, on the processors that they name; ``axk1 info --paths`` prints what this
machine takes, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from axk1.kernels import instructions, native
from axk1.kernels.batch import Executor
from axk1.modeling.attention import products
from axk1.modeling.conditions import is_hooked, is_inference

if TYPE_CHECKING:
    from axk1.config import AXK1Config
    from axk1.modeling.causal_lm import AXK1ForCausalLM

STEP_TOKENS = 32
"""Up to as many tokens of a sequence are computed one by one, with sums in one order whatever runs beside them. More
are a prompt where nobody says what they are (``generate`` of transformers). Measured on a Zen 4 (AVX-512, bf16)."""
STEP_ROWS = 128
"""Tokens of a step, over all sequences: more are computed as prompts are. Measured on a Zen 4."""
PROMPT_TOKENS = 4_096
"""Tokens of prompts that are run at once, over all sequences: what bounds the memory for activations."""
ABSORBED_COST = 1.5
"""A multiplication of a step's absorbed attention takes as long as this many of a prompt's expanded one (Zen 4)."""


def may_pay(batch: int, tokens: int, dtype: torch.dtype) -> bool:
    """Whether kernels are asked for T tokens of each of B sequences: not for prompts where PyTorch has AMX's products,
    which are four times as fast."""
    return batch * tokens <= STEP_ROWS or dtype == torch.float32 or not instructions.has_amx()


def is_prompt(config: AXK1Config, batch: int, tokens: int, cached: int) -> bool:
    """Whether T tokens of each sequence, S cached with these, are read as a prompt where nobody says what they are."""
    if batch * tokens > STEP_ROWS:
        return True
    if tokens <= STEP_TOKENS:
        return False
    expanded, absorbed = products(config, tokens, cached)
    return expanded < ABSORBED_COST * absorbed


def describe() -> dict[str, str]:
    """What computes on this machine, by what is computed, with the reason."""
    chosen = native.instructions()
    if chosen is None:
        reason = "AXK1_KERNELS=0" if instructions.wanted() == "0" else "no kernels here: see the warning above"
        return {"all": f"PyTorch's operators ({reason})"}
    best = [each.name for each in instructions.usable()]
    asked = instructions.wanted()
    why = f"AXK1_KERNELS={asked}" if asked not in ("0", "1") else f"the first of {', '.join(best)}"
    amx = "PyTorch's operators (AMX)" if instructions.has_amx() else f"kernels, {chosen}"
    narrow = "bfloat16 products" if chosen == "avx512_bf16" else "bfloat16 widened to float32"
    return {
        "instruction set": f"{chosen} ({why})",
        "replies": f"kernels, {chosen}: {narrow}; up to {STEP_ROWS} tokens at once, each with bits of its own",
        "prompts in bfloat16": amx,
        "prompts in float32": f"kernels, {chosen}",
    }


def executor(model: AXK1ForCausalLM, dtype: torch.dtype) -> Executor | None:
    """What runs paged batches of ``model``, with pages of ``dtype`` and the weights and hooks that it has now.

    None where its modules have to: on other devices, in training, while something records what is computed or listens
    in on a module, with an attention that was chosen for itself."""
    from axk1.kernels.step import CPUExecutor
    from axk1.kernels.weights import FORMATS, read_model

    outside = (model, model.model, model.model.embed_tokens, model.lm_head)
    if model.device.type != "cpu" or model.training or not is_inference() or dtype not in FORMATS:
        return None
    if any(is_hooked(module) for module in outside) or not model.model._may_be_compiled() or not native.available():
        return None
    trunk = read_model(model)
    return None if trunk is None else CPUExecutor(model, dtype, trunk)
