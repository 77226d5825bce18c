"""Checkpoints in both layouts: random small ones without a router's bias, and the nano."""

import json
from pathlib import Path
from typing import Any

import pytest

NANO = Path(__file__).parents[3] / "models/nano"
LAYOUTS = ("released", "per_expert")
SHAPE: dict[str, Any] = dict(num_nextn_predict_layers=1, topk_method="noaux_tc", scoring_func="sigmoid")


def write_pair(folder: Path, **overrides: Any) -> dict[str, Path]:
    """A random small model (a dense and two MoE layers, one MTP module, YaRN) in each layout; norms are not ones."""
    from tiny import small_model

    from axk1.checkpoint.convert import convert_checkpoint

    model = small_model(**{**SHAPE, **overrides})
    for layer in model.model.layers:  # those of the MTP module too
        if layer.is_moe:
            layer.mlp.gate.e_score_correction_bias.zero_()  # as released: not written then
    model.save_pretrained(folder / "released")
    convert_checkpoint(folder / "released", folder / "per_expert", "per_expert")
    return {layout: folder / layout for layout in LAYOUTS}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the random model, by layout."""
    return write_pair(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="session")
def nano_per_expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano, one tensor an expert."""
    from axk1.checkpoint.convert import convert_checkpoint

    folder = tmp_path_factory.mktemp("nano") / "per_expert"
    convert_checkpoint(NANO, folder, "per_expert")
    return folder


@pytest.fixture(scope="session")
def deepseek_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but DeepSeek-V3's configuration, small."""
    from transformers import DeepseekV3Config

    folder = tmp_path_factory.mktemp("deepseek")
    config = DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=64,
        architectures=["DeepseekV3ForCausalLM"],
    )
    published = dict(num_nextn_predict_layers=1, moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), **published}))
    return folder
