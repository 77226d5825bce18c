"""What stands between a checkpoint and SGLang's loader, which is silent about tensors that are missing."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

Weights = Iterable[tuple[str, torch.Tensor]]
POST_MLP_NORM = ".post_mlp_layernorm.weight"
WHOLE_CHECKPOINTS = ("auto", "safetensors")
"""Load formats whose first load brings every tensor (``dummy`` brings none, others bring shards)."""


def without_dense_norms(config: Any, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    """Leaves out the norm that the released file stores for dense layers, where nothing applies it."""
    from axk1.checkpoint.names import layer_index

    for name, tensor in weights:
        layer = layer_index(name)
        if layer is None or not name.endswith(POST_MLP_NORM) or config.is_moe_layer(layer):
            yield name, tensor


def checked(model: Any, weights: Weights, is_draft: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Passes everything through, and at the end of a model's first load of a whole checkpoint looks for gaps.

    Quantised checkpoints have other names and are not looked at.

    Args:
        model: one of our SGLang models.
        is_draft: whether it holds the MTP module or the trunk.

    Raises:
        ValueError: tensors are missing; without this their memory would be served as it was found.
    """
    from sglang.srt.runtime_context import get_context

    from axk1.checkpoint.names import detect_layout

    names: list[str] = []
    for name, tensor in weights:
        names.append(name)
        yield name, tensor
    first, model.has_weights = not getattr(model, "has_weights", False), True
    if not first or model.quant_config is not None or get_context().config_leaf("load_format") not in WHOLE_CHECKPOINTS:
        return
    missing = required(model.config, detect_layout(names), is_draft) - set(names)
    if missing:
        what = "the MTP module" if is_draft else "the model"
        raise ValueError(
            f"The checkpoint lacks {len(missing)} tensors of {what}, for example {min(missing)!r}: SGLang would serve "
            "uninitialised memory in their place. Check it with `axk1 verify`."
        )


def required(config: Any, layout: Any, is_draft: bool) -> set[str]:
    """Names of the tensors that the trunk (or the MTP module, ``is_draft``) cannot do without, in ``layout``."""
    from axk1.checkpoint.names import expected_tensors, layer_index

    names = (spec.name for spec in expected_tensors(config, layout) if not spec.optional)
    return {name for name in names if ((layer_index(name) or 0) >= config.num_hidden_layers) == is_draft}
