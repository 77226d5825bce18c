"""What SGLang decides by architecture name: with the plugin, without it, and with another version of SGLang."""

# pyright: reportMissingImports=false
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sglang_checkpoints import NANO
from tiny import YARN

from axk1.integrations.sglang import DRAFT, TARGET

OURS = {
    "attention": "MLA",
    "head_dim": 256,
    "latent": 512,
    "draft": [DRAFT],
    "draft_attention": "MLA",
    "target": [TARGET],
    "class": "axk1.integrations.sglang.models.axk1.AXK1ForCausalLM",
}


def probe(folder: Path, *version: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("sglang_probe.py")), str(folder), *version]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("PROBE ")]
    assert lines, ran.stdout + ran.stderr
    return json.loads(lines[0].removeprefix("PROBE "))


def test_the_plugin_gives_the_model_latent_attention_and_the_draft_its_name():
    assert probe(NANO) == OURS


def test_without_the_plugin_sglang_takes_other_classes_and_other_attention():
    """The trap that docs/upstream/sglang-architecture-lists.md reports: nothing fails, everything is different."""
    found = probe(NANO, SGLANG_PLUGINS="none")
    assert found == {
        "attention": "MHA",
        "head_dim": 64,
        "latent": None,
        "draft": [TARGET],
        "draft_attention": "MHA",
        "target": [TARGET],
        "class": "sglang.srt.models.transformers.TransformersForCausalLM",
    }


def test_another_version_is_refused_for_our_model_alone(deepseek_folder: Path):
    refused = probe(NANO, "0.5.24")["refused"]
    assert "sglang==0.5.23" in refused and "0.5.24 is installed" in refused and "AXK1_SGLANG_UNTESTED=1" in refused
    assert probe(NANO, "0.5.24", AXK1_SGLANG_UNTESTED="1") == OURS
    assert probe(deepseek_folder, "0.5.24")["class"] == "sglang.srt.models.deepseek_v2.DeepseekV3ForCausalLM"


def test_the_external_model_package_has_both_classes(engine):
    from sglang.srt.models.registry import import_model_classes

    classes = import_model_classes("axk1.integrations.sglang.models", strict=True)
    assert set(classes) == {TARGET, DRAFT}


def test_deepseek_in_the_same_process_stays_deepseek(engine, deepseek_folder: Path):
    from sglang.srt.models import deepseek_nextn, deepseek_v2
    from sglang.srt.models.registry import ModelRegistry

    config, draft = engine.model_config(deepseek_folder), engine.model_config(deepseek_folder, is_draft_model=True)
    assert config.attention_arch.name == "MLA" and config.hf_config.architectures == ["DeepseekV3ForCausalLM"]
    assert draft.hf_config.architectures == ["DeepseekV3ForCausalLMNextN"]
    engine.load(NANO)
    for hf_config in (config.hf_config, draft.hf_config):
        model_class, name = ModelRegistry.resolve_model_cls(hf_config.architectures)
        model = model_class(hf_config)
        layers = [model.model.decoder] if name.endswith("NextN") else list(model.model.layers)
        assert {type(layer) for layer in layers} == {deepseek_v2.DeepseekV2DecoderLayer}
        assert not [name for name, _ in model.named_parameters() if "post_mlp_layernorm" in name]
    assert deepseek_nextn.DeepseekV2DecoderLayer is deepseek_v2.DeepseekV2DecoderLayer


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scoring_func": "softmax"}, "scoring_func='softmax' is not served"),
        ({"topk_method": "greedy"}, "topk_method='greedy' is not served"),
        ({"n_shared_experts": 0}, "n_shared_experts=0 is not served"),
        ({"attention_bias": True}, "attention_bias=True is not served"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_parameters": {**YARN, "truncate": False}}, "rope_parameters truncate"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse"]}, "first_k_dense_replace"),
    ],
)
def test_what_sglang_would_compute_differently_is_refused(change: dict[str, Any], sentence: str):
    from tiny import random_fields

    from axk1 import AXK1Config
    from axk1.integrations.sglang.support import check_config

    served = dict(
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        mlp_layer_types=["dense", "sparse", "sparse"],
        num_hidden_layers=3,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
    )
    check_config(AXK1Config(**random_fields(0, **served)))
    with pytest.raises(ValueError, match=sentence.replace("[", r"\[")):
        check_config(AXK1Config(**random_fields(0, **{**served, **change})))


def test_a_draft_needs_one_mtp_module(tmp_path: Path, engine):
    from sglang_checkpoints import write_pair

    folder = write_pair(tmp_path, num_nextn_predict_layers=0)["released"]
    with pytest.raises(ValueError, match=r"has no MTP module .* leave out --speculative-algorithm"):
        engine.model_config(folder, is_draft_model=True)
