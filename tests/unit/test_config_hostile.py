"""Whatever a config.json says ends soon, in one sentence or in a model of the sizes that it names."""

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_fields

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.files import load_config
from axk1.config import _SIZES as SIZES
from axk1.modeling.rope import AXK1RotaryEmbedding

FIELDS = sorted({*SIZES, *AXK1Config.__annotations__} - {"model_type"})
ROPE = ["rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow"]
ROPE += ["mscale", "mscale_all_dim", "attention_factor", "truncate", "short_factor", "long_factor", "low_freq_factor"]
ROPE += ["high_freq_factor", "partial_rotary_factor", "mrope_section", "full_attention"]
OTHERS = ["head_dim", "qk_head_dim", "rope_theta", "rope_scaling", "partial_rotary_factor", "per_layer_config", "dtype"]
OTHERS += ["is_moe_layer", "to_dict", "_check_rules", "num_labels", "id2label", "layer_types", "num_mtp_layers"]
OTHERS += ["transformers_version", "architectures", "quantization_config", "use_bidirectional_attention"]

simple = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 8, -1, 10**6, 2**31, 2**63, 10**400, 0.5, 0.01, 1e-308, 1e308, 1e13]),
    st.floats(),
    st.sampled_from(
        ["", "yarn", "linear", "dynamic", "longrope", "llama3", "default", "proportional", "float32", "silu"]
    ),
    st.text(max_size=5),
)
hostile = st.recursive(
    simple,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ropes = st.dictionaries(st.sampled_from(ROPE), hostile, max_size=8) | hostile
changes = st.dictionaries(st.sampled_from(FIELDS), hostile, max_size=3)


def assert_sound(config: AXK1Config) -> None:
    """What is accepted can be computed, in the sizes that were checked."""
    for name, (least, largest) in SIZES.items():
        assert least <= getattr(config, name) <= largest
    assert (config.head_dim, config.qk_head_dim) == (
        config.qk_rope_head_dim,
        config.qk_nope_head_dim + config.qk_rope_head_dim,
    )
    assert len(config.mlp_layer_types or []) == config.num_hidden_layers
    assert AXK1RotaryEmbedding(config).inv_freq.shape == (config.qk_rope_head_dim // 2,)
    assert config.is_moe_layer(config.num_hidden_layers) is True


@settings(max_examples=400, deadline=2_000, suppress_health_check=[HealthCheck.too_slow])
@given(base=tiny_fields(), wrong=changes, rope=st.none() | ropes)
def test_hostile_fields_end_in_one_sentence_or_a_sound_configuration(base, wrong, rope):
    fields = {**base, **wrong, **({} if rope is None else {"rope_parameters": rope})}
    try:
        config = AXK1Config(**fields)
    except ValueError as error:
        assert len(str(error)) < 2_000
        return
    assert_sound(config)


@settings(max_examples=400, deadline=2_000, suppress_health_check=list(HealthCheck))
@given(base=tiny_fields(), wrong=changes, others=st.dictionaries(st.sampled_from(OTHERS), hostile, max_size=2))
def test_hostile_files_end_in_one_sentence_or_a_sound_configuration(tmp_path_factory, base, wrong, others):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "config.json").write_text(json.dumps({**base, **wrong, **others, "model_type": "axk1"}))
    try:
        config = load_config(folder)
    except CheckpointError as error:
        assert error.file == str(folder / "config.json")
        return
    assert_sound(config)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_size_has_an_end(name):
    least, largest = SIZES[name]
    released = getattr(AXK1Config(), name)
    assert least <= 4 * released <= largest  # well above K1
    for value in (largest + 1, 10**6 * largest, 10**400, least - 1):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=rf"{name}=.* must be a whole number"):
            AXK1Config(**{name: value})
        assert time.perf_counter() - start < 1


def test_layers_times_experts_have_an_end():
    with pytest.raises(ValueError, match="n_routed_experts=1024 is too many for 1024 layers"):
        AXK1Config(num_hidden_layers=1_024, n_routed_experts=1_024)
    AXK1Config(num_hidden_layers=256, n_routed_experts=1_024)


@pytest.mark.parametrize("rope_type", ["default", "linear", "yarn", "llama3", "longrope", "dynamic"])
@pytest.mark.parametrize("factor", [0.01, 0.0625, 0.5, 1.5, "1", [1]])
def test_a_part_of_the_rotary_dimensions_is_refused(rope_type, factor):
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    shape: dict[str, Any] = {"max_position_embeddings": 128, "qk_rope_head_dim": 8}
    assert_sound(AXK1Config(**shape, rope_parameters=rope))
    assert_sound(AXK1Config(**shape, rope_parameters=rope, partial_rotary_factor=1.0))
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        AXK1Config(**shape, rope_parameters=rope | {"partial_rotary_factor": factor})
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        AXK1Config(**shape, rope_parameters=rope, partial_rotary_factor=factor)
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        AXK1Config(**shape, rope_scaling=rope | {"partial_rotary_factor": factor})


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "proportional"}, "rope_type.*must be one of default, "),
        ({"rope_type": "yarn", "factor": None}, "factor"),
        ({"rope_type": "linear"}, r"\['factor'\]=None is missing for linear"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}, "short_factor.*list of 4 numbers"),
        ({"rope_type": "default", "mrope_section": [1, 2]}, "mrope_section"),
        ({"rope_type": "default", "mrope_section": 5}, r"\['mrope_section'\]=5 is no setting"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"rope_type": "default", "rope_theta": 10**400}, r"rope_theta'\]=2\*\*1328 must be"),
        ([1], r"rope_parameters=\[1\] must be an object"),
    ],
)
def test_rotary_settings_that_are_not_implemented_are_refused(rope, words):
    with pytest.raises(ValueError, match=words):
        AXK1Config(qk_rope_head_dim=8, max_position_embeddings=128, rope_parameters=rope)


def test_derived_sizes_of_a_file_change_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "axk1", "head_dim": 4_096, "qk_head_dim": 1}))
    assert_sound(load_config(tmp_path))


def test_verify_refuses_at_once(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "axk1", "num_hidden_layers": 10**6}))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"num_hidden_layers=1000000 must be a whole number .*at most 1,024"):
        verify_checkpoint(tmp_path)
    assert time.perf_counter() - start < 1
