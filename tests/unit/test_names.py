"""The table of tensors against the model itself, on the meta device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_fields

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint.names import (
    LAYOUTS,
    Layout,
    detect_layout,
    detect_prefix,
    expected_tensors,
    expert_slices,
    fused_name,
    is_ignored,
)


def model_shapes(config: AXK1Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in AXK1ForCausalLM(config).state_dict().items()}


def table_shapes(config: AXK1Config, layout: Layout = "released") -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.shape for spec in expected_tensors(config, layout)}


def test_k1_has_the_released_keys_shapes_and_size():
    config = AXK1Config.preset("k1")
    shapes = model_shapes(config)
    assert shapes == table_shapes(config)
    stored = [spec for spec in expected_tensors(config) if not spec.name.endswith("e_score_correction_bias")]
    assert len(stored) == 976
    assert sum(spec.size for spec in stored) == 518_983_059_456
    with torch.device("meta"):
        assert sum(p.numel() for p in AXK1ForCausalLM(config).parameters()) == 518_983_059_456
    assert shapes["model.layers.60.mlp.experts.gate_up_proj"] == (192, 4_096, 7_168)
    assert shapes["model.layers.1.mlp.experts.down_proj"] == (192, 7_168, 2_048)
    assert shapes["model.layers.0.post_mlp_layernorm.weight"] == (7_168,)


def test_one_mtp_layer_adds_the_published_number():
    specs = list(expected_tensors(AXK1Config.preset("k1", num_nextn_predict_layers=1)))
    mtp = [spec for spec in specs if spec.part == "MTP" and not spec.optional]
    assert sum(spec.size for spec in mtp) == 8_705_060_864
    assert all(spec.name.startswith("model.layers.61.") for spec in mtp)


@settings(max_examples=15, deadline=None)
@given(tiny_fields(), st.integers(0, 2), st.booleans())
def test_table_is_the_model(fields, mtp, tied):
    config = AXK1Config(**fields, num_nextn_predict_layers=mtp, tie_word_embeddings=tied)
    shapes = model_shapes(config)
    if tied:
        del shapes["lm_head.weight"]
    assert table_shapes(config) == shapes


@settings(max_examples=15, deadline=None)
@given(tiny_fields(), st.integers(0, 1))
def test_both_layouts_hold_the_same_numbers(fields, mtp):
    config = AXK1Config(**fields, num_nextn_predict_layers=mtp)
    fused, apart = (table_shapes(config, layout) for layout in LAYOUTS)
    for name, shape in fused.items():
        parts = expert_slices(config, name)
        if not parts:
            assert apart[name] == shape
            continue
        filled = torch.zeros(shape)
        for part in parts:
            rows = filled[part.expert, part.start : part.stop]
            assert apart.pop(part.name) == tuple(rows.shape)
            assert fused_name(part.name) == name
            rows += 1
        assert bool((filled == 1).all())
    assert not [name for name in apart if name not in fused]


def test_layout_and_prefix_are_recognised():
    config = AXK1Config.preset("nano")
    for layout in LAYOUTS:
        for prefix in ("model.", ""):
            names = [spec.name for spec in expected_tensors(config, layout, prefix, head=False)]
            assert detect_layout(names) == layout
            assert detect_prefix(names) == prefix
    both = [name for layout in LAYOUTS for name in table_shapes(config, layout)]
    with pytest.raises(ValueError, match=r"two layouts at once.*gate_proj|two layouts at once.*down_proj"):
        detect_layout(both)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("model.layers.61.embed_tokens.weight", True),
        ("model.layers.61.shared_head.head.weight", True),
        ("model.layers.61.shared_head.norm.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_only_copies_are_ignored(name, ignored):
    assert is_ignored(name) is ignored


def test_no_spec_lies_outside_the_model():
    """`fused_name` knows expert matrices only."""
    assert fused_name("model.layers.1.mlp.shared_experts.gate_proj.weight") is None
    assert fused_name("model.layers.1.mlp.experts.3.up_proj.weight") == "model.layers.1.mlp.experts.gate_up_proj"
    assert expert_slices(AXK1Config.preset("nano"), "model.layers.0.mlp.down_proj.weight") == []
