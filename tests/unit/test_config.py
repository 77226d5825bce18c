"""Every spelling of a configuration, presets, round trips, and errors that name field, value and rule."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_fields, tiny_fields

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.config import K1_ROPE, PRESETS


def reread(config: AXK1Config, folder: Path) -> tuple[dict[str, Any], AXK1Config]:
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), AXK1Config.from_pretrained(folder)


def comparable(config: AXK1Config) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}


def test_defaults_are_the_released_architecture() -> None:
    config = AXK1Config()
    released = dict(
        model_type="axk1",
        vocab_size=163_840,
        hidden_size=7168,
        num_hidden_layers=61,
        num_attention_heads=64,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        qk_head_dim=192,
        intermediate_size=18_432,
        moe_intermediate_size=2048,
        n_routed_experts=192,
        n_shared_experts=1,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        max_position_embeddings=131_072,
        rope_interleave=True,
        rope_parameters=K1_ROPE,
        num_nextn_predict_layers=0,
        first_k_dense_replace=1,
        moe_layer_freq=1,
        pad_token_id=163_692,
        bos_token_id=163_691,
        eos_token_id=[163_704, 163_691],
    )
    assert {name: getattr(config, name) for name in released} == released
    assert config.mlp_layer_types == ["dense"] + ["sparse"] * 60
    assert AXK1Config.preset("k1").to_dict() == config.to_dict()


def test_preset_sizes() -> None:
    """The released count exactly; ``mini`` is about half a billion; ``nano`` fits 48 MB even in fp32."""
    sizes = {}
    for name in PRESETS:
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in AXK1ForCausalLM(AXK1Config.preset(name)).parameters())
    assert sizes["k1"] == 518_983_059_456
    assert sizes["mini"] == 559_524_096
    assert 5e6 < sizes["nano"] <= 12e6


def test_preset_overrides_and_unknown_names() -> None:
    config = AXK1Config.preset("nano", num_hidden_layers=3)
    assert config.num_hidden_layers == 3 and config.hidden_size == PRESETS["nano"]["hidden_size"]
    assert "num_hidden_layers" in PRESETS["nano"] and PRESETS["nano"]["num_hidden_layers"] != 3
    with pytest.raises(ValueError, match=r"'huge'.*k1, mini, nano"):
        AXK1Config.preset("huge")


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10_000.0}),
        ({"rope_theta": 5e4}, {"rope_type": "default", "rope_theta": 5e4}),
        ({"rope_theta": 5e4, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 5e4}),
        ({"rope_parameters": {"rope_theta": 5e4}}, {"rope_type": "default", "rope_theta": 5e4}),
        (
            {
                "rope_theta": 5e4,
                "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
            },
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 5e4},
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            {"rope_type": "linear", "factor": 3.0, "rope_theta": 10_000.0},
        ),
        ({"rope_parameters": K1_ROPE, "max_position_embeddings": 131_072}, K1_ROPE),
    ],
)
def test_rope_spellings(rope: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    fields = {k: v for k, v in random_fields(0).items() if k != "rope_parameters"}
    given_before = json.dumps(rope)
    config = AXK1Config(**{**fields, **rope})
    assert {k: v for k, v in (config.rope_parameters or {}).items() if k != "type"} == expected
    assert json.dumps(rope) == given_before, "the caller's dictionaries stay as they are"
    written, again = reread(config, tmp_path)
    assert written["rope_parameters"] == config.rope_parameters == again.rope_parameters


def test_scaled_rope_needs_no_repetition_of_the_released_default() -> None:
    assert AXK1Config(vocab_size=8).rope_parameters == K1_ROPE, "any model of the released length"
    assert AXK1Config(max_position_embeddings=4096).rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    one, other = AXK1Config(), AXK1Config()
    assert one.rope_parameters is not None
    one.rope_parameters["factor"] = 9.0
    assert other.rope_parameters == K1_ROPE and K1_ROPE["factor"] == 4.0


@pytest.mark.parametrize(
    ("spelling", "types", "dense", "freq"),
    [
        ({}, "dsss", 1, 1),
        ({"first_k_dense_replace": 2}, "ddss", 2, 1),
        ({"first_k_dense_replace": 0}, "ssss", 0, 1),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, "ddsd", 1, 2),
        ({"moe_layer_freq": 3}, "ddds", 1, 3),
        ({"first_k_dense_replace": 9}, "dddd", 9, 1),
        ({"mlp_layer_types": "ddss"}, "ddss", 2, 1),
        ({"mlp_layer_types": "ssss"}, "ssss", 0, 1),
        ({"mlp_layer_types": "dddd"}, "dddd", 4, 1),
        ({"mlp_layer_types": "dsds"}, "dsds", None, None),
        ({"mlp_layer_types": "dsss", "first_k_dense_replace": 1, "moe_layer_freq": 1}, "dsss", 1, 1),
    ],
)
def test_dense_layer_spellings(
    spelling: dict[str, Any], types: str, dense: int | None, freq: int | None, tmp_path: Path
) -> None:
    """Either spelling is read, both are written (where both can say it), and the file reads back the same."""
    words = {"d": "dense", "s": "sparse"}
    if "mlp_layer_types" in spelling:
        spelling = {**spelling, "mlp_layer_types": [words[c] for c in spelling["mlp_layer_types"]]}
    config = AXK1Config(**{**random_fields(0), "num_hidden_layers": 4, "mlp_layer_types": None, **spelling})
    expected = [words[c] for c in types]
    assert config.mlp_layer_types == expected
    assert (config.first_k_dense_replace, config.moe_layer_freq) == (dense, freq)
    assert [config.is_moe_layer(i) for i in range(5)] == [*(w == "sparse" for w in expected), True]
    written, again = reread(config, tmp_path)
    assert written["mlp_layer_types"] == expected
    assert written["first_k_dense_replace"] == dense and written["moe_layer_freq"] == freq
    assert comparable(again) == comparable(config)


@pytest.mark.parametrize("name", ["num_nextn_predict_layers", "num_mtp_layers"])
def test_mtp_spellings(name: str, tmp_path: Path) -> None:
    config = AXK1Config(**{**random_fields(0), name: 2})
    assert config.num_nextn_predict_layers == config.num_mtp_layers == 2
    written, again = reread(config, tmp_path)
    assert written["num_nextn_predict_layers"] == again.num_nextn_predict_layers == 2


@pytest.mark.parametrize("model_type", ["axk1", "AXK1"])
def test_model_types(model_type: str, tmp_path: Path) -> None:
    """The older name is read by the class and by AutoConfig, and the present one is written."""
    from transformers import AutoConfig

    fields = AXK1Config(**random_fields(0)).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": model_type}))
    for config in (AXK1Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(config) is AXK1Config
        assert config.model_type == "axk1" and config.to_dict()["model_type"] == "axk1"
        assert "auto_map" not in config.to_dict()


def test_transformers_own_configuration_file_reads_the_same(tmp_path: Path) -> None:
    """A file written by transformers' ``axk1`` gives every field they share the same value."""
    from transformers.models.axk1.configuration_axk1 import AXK1Config as TheirConfig

    layers = ["dense", "sparse", "sparse"]  # older versions of transformers have no other order
    fields = random_fields(3, num_hidden_layers=3, mlp_layer_types=layers)
    theirs = TheirConfig(**{**fields, "num_key_value_heads": fields["num_attention_heads"]})
    theirs.save_pretrained(tmp_path)
    ours = AXK1Config.from_pretrained(tmp_path)
    skipped = {"_name_or_path", "transformers_version"}
    shared = {k: v for k, v in json.loads((tmp_path / "config.json").read_text()).items() if k not in skipped}
    assert len(shared) > 30
    assert {name: getattr(ours, name) for name in shared} == shared


def test_special_tokens_belong_to_the_released_vocabulary(tmp_path: Path) -> None:
    """Another vocabulary starts without them; one that was enlarged keeps what it has."""
    small = AXK1Config(vocab_size=1000)
    assert small.pad_token_id is small.bos_token_id is small.eos_token_id is None
    grown = AXK1Config()
    grown.vocab_size = 163_904
    _, again = reread(grown, tmp_path)
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (163_692, 163_691, [163_704, 163_691])
    assert AXK1Config(eos_token_id=7, pad_token_id=0).pad_token_id == 0


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    fields=tiny_fields(),
    extra=st.fixed_dictionaries(
        {},
        optional={
            "num_nextn_predict_layers": st.integers(0, 3),
            "scoring_func": st.sampled_from(["sigmoid", "softmax"]),
            "topk_method": st.sampled_from(["noaux_tc", "group_limited_greedy", "greedy"]),
            "mtp_loss_weight": st.floats(0, 10),
            "router_aux_loss_coef": st.floats(0, 1),
            "router_bias_update_rate": st.floats(0, 1),
            "attention_dropout": st.floats(0, 0.99),
            "eos_token_id": st.one_of(st.none(), st.integers(0, 60), st.lists(st.integers(0, 60), min_size=1)),
            "tie_word_embeddings": st.booleans(),
            "use_cache": st.booleans(),
            "hidden_act": st.sampled_from(["silu", "gelu"]),
        },
    ),
)
def test_json_round_trip(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    config = AXK1Config(**{**fields, **extra})
    text = config.to_json_string(use_diff=False)
    again = AXK1Config.from_dict(json.loads(text))
    assert comparable(again) == comparable(config)
    for name, value in {**fields, **extra}.items():
        assert getattr(again, name) == value, name
    diff = AXK1Config.from_dict(json.loads(config.to_json_string(use_diff=True)))
    assert comparable(diff) == comparable(config)


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
]
NUMBERS = [
    "mtp_loss_weight",
    "router_aux_loss_coef",
    "router_bias_update_rate",
    "routed_scaling_factor",
    "attention_dropout",
    "initializer_range",
    "rms_norm_eps",
]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, "whole number of at least 1") for name in SIZES for value in (0, -1, 2.5, "4", True, None)),
    *(
        ({name: value}, "whole number of at least 0")
        for name in ("num_nextn_predict_layers", "n_shared_experts")
        for value in (-1, 1.5, True, "1")
    ),
    *(({name: value}, "number of at least 0") for name in NUMBERS for value in (-0.1, math.nan, math.inf, "x", True)),
    ({"attention_dropout": 1.0}, "less than 1"),
    ({"scoring_func": "tanh"}, "one of sigmoid, softmax"),
    ({"topk_method": "best"}, "one of noaux_tc, group_limited_greedy, greedy"),
    ({"hidden_act": "nope"}, "one of .*silu"),
    ({"norm_topk_prob": "yes"}, "one of True, False"),
    ({"rope_interleave": None}, "one of True, False"),
    ({"n_routed_experts": 9}, "multiple of n_group=4"),
    ({"topk_group": 5}, "must not exceed n_group=4"),
    ({"num_experts_per_tok": 5}, r"kept groups \(topk_group=2 x 2\)"),
    ({"n_routed_experts": 4, "num_experts_per_tok": 1, "topk_method": "noaux_tc"}, "topk_method=.*leaves one"),
    ({"qk_rope_head_dim": 5}, "must be even"),
    ({"num_key_value_heads": 3}, "must equal num_attention_heads=2"),
    ({"pad_token_id": 61}, r"vocabulary \(vocab_size=61\)"),
    ({"bos_token_id": -1}, r"vocabulary \(vocab_size=61\)"),
    ({"eos_token_id": [2, 99]}, r"vocabulary \(vocab_size=61\)"),
    ({"eos_token_id": "</s>"}, r"vocabulary \(vocab_size=61\)"),
    ({"first_k_dense_replace": -1}, "whole number of at least 0"),
    ({"first_k_dense_replace": 1.0}, "whole number of at least 0"),
    ({"moe_layer_freq": 0}, "whole number of at least 1"),
    ({"mlp_layer_types": ["dense"]}, "num_hidden_layers=3 words"),
    ({"mlp_layer_types": ["dense", "moe", "sparse"]}, "each 'dense' or 'sparse'"),
    ({"mlp_layer_types": "dense"}, "each 'dense' or 'sparse'"),
    ({"mlp_layer_types": ["dense"] * 3, "first_k_dense_replace": 1}, "contradicts first_k_dense_replace=1"),
    ({"num_mtp_layers": 2, "num_nextn_predict_layers": 1}, "contradicts num_nextn_predict_layers=1"),
    (
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        r"\['rope_type'\]='spiral' must be one of .*yarn",
    ),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, r"\['rope_theta'\]=0 must be a number above 0"),
    ({"rope_parameters": {**YARN, "factor": 0.5}}, r"\['factor'\]=0.5 must be a number of at least 1"),
    ({"rope_parameters": {k: v for k, v in YARN.items() if k != "factor"}}, r"\['factor'\]=None"),
    ({"rope_parameters": {**YARN, "original_max_position_embeddings": 128}}, "from 1 to max_position_embeddings=64"),
    ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "from 1 to max_position_embeddings=64"),
]
SHAPE = dict(
    random_fields(0),
    num_hidden_layers=3,
    mlp_layer_types=None,
    num_attention_heads=2,
    n_routed_experts=8,
    n_group=4,
    topk_group=2,
    num_experts_per_tok=3,
    rope_parameters=None,
)


@pytest.mark.parametrize(("wrong", "rule"), WRONG, ids=lambda value: str(value)[:60])
def test_errors_name_field_value_and_rule(wrong: dict[str, Any], rule: str) -> None:
    AXK1Config(**SHAPE)  # the rest is right
    with pytest.raises(ValueError, match=rule) as caught:
        AXK1Config(**{**SHAPE, **wrong})
    message, (name, value) = str(caught.value), next(iter(wrong.items()))
    assert name in message or "rope" in name, message
    assert isinstance(value, dict) or f"{value!r}" in message, message
    assert message.endswith(".") and "\n" not in message


def test_one_expert_a_group_is_fine_without_the_top_two_rule() -> None:
    fields = {**SHAPE, "n_routed_experts": 4, "num_experts_per_tok": 1}
    assert AXK1Config(**fields, topk_method="group_limited_greedy").n_routed_experts == 4
    assert AXK1Config(**{**fields, "num_experts_per_tok": 4}, topk_method="greedy").num_experts_per_tok == 4
