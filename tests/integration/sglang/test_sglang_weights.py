"""SGLang's loader on checkpoints of both layouts: every tensor that arrives is ours."""

# pyright: reportMissingImports=false
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_tensors, file_of
from sglang_checkpoints import LAYOUTS, NANO, write_pair

from axk1 import AXK1ForCausalLM

STACKED = {
    "self_attn.fused_qkv_a_proj_with_mqa.weight": ("self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.shared_experts.gate_up_proj.weight": (
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
    ),
    "mlp.experts.w13_weight": ("mlp.experts.gate_up_proj",),
    "mlp.experts.w2_weight": ("mlp.experts.down_proj",),
}


def ours(folder: Path) -> Any:
    return AXK1ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def layer_tensors(layer: torch.nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    """Our layer's tensors under SGLang's names."""
    state = layer.state_dict()
    return {name: torch.cat([state[part] for part in STACKED.get(name, (name,))]) for name in names}


def assert_same_layer(theirs: torch.nn.Module, layer: torch.nn.Module) -> None:
    parameters = dict(theirs.named_parameters())
    expected = layer_tensors(layer, list(parameters))
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name].float()), name
    moved = {part for parts in STACKED.values() for part in parts}
    left = set(layer.state_dict()) - set(parameters) - moved
    dense = {"post_mlp_layernorm.weight"} if "mlp.gate_proj.weight" in layer.state_dict() else set()
    assert left <= dense | {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}


def assert_same_model(theirs: Any, model: Any) -> None:
    vocab = model.config.vocab_size  # SGLang pads the vocabulary's rows
    assert torch.equal(theirs.model.embed_tokens.weight[:vocab], model.model.embed_tokens.weight)
    assert torch.equal(theirs.lm_head.weight[:vocab], model.lm_head.weight)
    assert torch.equal(theirs.model.norm.weight, model.model.norm.weight)
    assert len(theirs.model.layers) == model.config.num_hidden_layers
    for their_layer, layer in zip(theirs.model.layers, model.model.layers[: len(theirs.model.layers)], strict=True):
        assert_same_layer(their_layer, layer)


def assert_same_draft(theirs: Any, model: Any) -> None:
    module = model.model.mtp_layers[0]
    assert_same_layer(theirs.model.decoder, module)
    for name in ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"):
        assert torch.equal(theirs.model.get_parameter(name), module.get_parameter(name)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_random_checkpoint_without_router_bias_loads(engine, checkpoints: dict[str, Path], layout: str):
    model = ours(checkpoints["released"])
    assert not any("correction_bias" in name for name in stored_names(checkpoints[layout]))
    assert_same_model(engine.load(checkpoints[layout]), model)
    assert_same_draft(engine.load(checkpoints[layout], is_draft_model=True), model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_nano_loads(engine, nano_per_expert: Path, layout: str):
    """With a router bias that training has moved."""
    folder = {"released": NANO, "per_expert": nano_per_expert}[layout]
    model = ours(NANO)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.any()
    assert_same_model(engine.load(folder), model)
    assert_same_draft(engine.load(folder, is_draft_model=True), model)


@pytest.mark.parametrize("stored", [True, False])
def test_the_norm_of_a_dense_layer_may_be_there_or_not(engine, tmp_path: Path, stored: bool):
    folder, key = write_pair(tmp_path)["released"], "model.layers.0.post_mlp_layernorm.weight"
    if not stored:
        edit_tensors(file_of(folder, key), lambda tensors: tensors.pop(key))
    assert (key in stored_names(folder)) is stored
    loaded = engine.load(folder)
    assert loaded.model.layers[0].post_mlp_layernorm is None
    assert_same_model(loaded, ours(folder))


@pytest.mark.parametrize(
    ("key", "is_draft"), [("model.layers.1.post_mlp_layernorm.weight", False), ("model.layers.3.eh_proj.weight", True)]
)
def test_a_missing_tensor_is_named(engine, tmp_path: Path, key: str, is_draft: bool):
    folder = write_pair(tmp_path)["released"]
    edit_tensors(file_of(folder, key), lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=f"lacks 1 tensors of .*{key}.*axk1 verify"):
        engine.load(folder, is_draft_model=is_draft)
    engine.load(folder, is_draft_model=not is_draft)  # the other one does not need it


def test_a_later_partial_update_is_taken_as_it_is(engine, checkpoints: dict[str, Path]):
    """As after a step of reinforcement learning."""
    model = engine.load(checkpoints["released"])
    model.load_weights([("model.norm.weight", torch.full((model.config.hidden_size,), 3.0))])
    assert (model.model.norm.weight == 3).all()


def stored_names(folder: Path) -> set[str]:
    from axk1.checkpoint.files import open_checkpoint

    return set(open_checkpoint(folder).tensors)
