"""Writes a checkpoint in the released layout as GGUF, architecture deepseek2: ``gguf_export.py SRC FILE TYPE``.

For speed comparisons only: llama.cpp's deepseek2 has no norm after the MoE block, so ``post_mlp_layernorm`` and MTP
modules are left out and the outputs are not A.X K1's. Matrices are written as TYPE (f16, q8_0 or q4_0), norms and the
router in fp32. Runs in llama.cpp's environment: needs numpy and gguf.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # pyright: ignore[reportMissingImports]
import numpy as np

TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
NAMES = {  # of both layers and the model; what is not here is left out
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}


def export(source: Path, target: Path, kind: str) -> None:
    """Writes ``target``; it appears when it is complete."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    beside = target.with_name(f".{target.name}.tmp")
    writer = gguf.GGUFWriter(beside, "deepseek2")
    add_fields(writer, config)
    add_vocabulary(writer, config["vocab_size"])
    names = set()
    for name, array in converted(source, config):
        add_tensor(writer, name, array, TYPES[kind])
        names.add(name)
    for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
        if f"blk.{layer}.exp_probs_b.bias" not in names:
            zeros = np.zeros(config["n_routed_experts"], dtype=np.float32)
            add_tensor(writer, f"blk.{layer}.exp_probs_b.bias", zeros, TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(target)


def add_fields(writer: Any, config: dict[str, Any]) -> None:
    """The architecture. Keys and values are one head's: the cached latent, of which the value is the first part."""
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    scaling = config["rope_parameters"]
    writer.add_rope_freq_base(scaling["rope_theta"])
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def add_vocabulary(writer: Any, size: int) -> None:
    """Names for token ids: prompts are ids, but the server writes its answers as text."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


def add_tensor(writer: Any, name: str, array: np.ndarray, kind: Any) -> None:
    """One tensor in its type; what is read entry by entry stays fp32."""
    if array.ndim == 1 or "ffn_gate_inp" in name:
        kind = gguf.GGMLQuantizationType.F32
    elif array.shape[-1] % 32:  # a block of the quantised types
        kind = gguf.GGMLQuantizationType.F16
    data = gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def converted(source: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The trunk's tensors under llama.cpp's names."""
    for key, array in read(source):
        if key in NAMES:
            yield NAMES[key], array
            continue
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", key)
        if match is None or int(match[1]) >= config["num_hidden_layers"]:
            continue
        block, rest = f"blk.{match[1]}.", match[2]
        if rest == "mlp.experts.gate_up_proj":
            width = config["moe_intermediate_size"]
            yield block + "ffn_gate_exps.weight", array[:, :width]
            yield block + "ffn_up_exps.weight", array[:, width:]
        elif rest == "self_attn.kv_b_proj.weight":
            heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
            both = array.reshape(heads, -1, config["kv_lora_rank"])
            yield block + "attn_k_b.weight", both[:, :nope].transpose(0, 2, 1)
            yield block + "attn_v_b.weight", both[:, nope:]
        elif rest in NAMES:
            yield block + NAMES[rest], array


def read(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of a safetensors checkpoint as fp32 (numpy has no bfloat16: its bits are fp32's upper half)."""
    for file in sorted(folder.glob("model*.safetensors")):
        data = np.memmap(file, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            raw = data[start:stop]
            if entry["dtype"] == "BF16":
                array = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                array = raw.view({"F16": np.float16, "F32": np.float32}[entry["dtype"]]).astype(np.float32)
            yield key, array.reshape(entry["shape"])


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
