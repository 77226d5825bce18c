"""Random checkpoints in every form the plugin reads, and the log-probabilities that ours and transformers give."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support import NANO
from transformers import AutoTokenizer
from transformers.models.axk1.configuration_axk1 import AXK1Config as TransformersConfig
from transformers.models.axk1.modeling_axk1 import AXK1ForCausalLM as TransformersModel

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint.convert import convert_checkpoint

DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
}
SIZES: dict[str, Any] = dict(  # the released latents (512 + 64): vLLM's CPU attention knows few widths
    vocab_size=512,
    hidden_size=128,
    intermediate_size=192,
    moe_intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    q_lora_rank=64,
    qk_nope_head_dim=32,
    v_head_dim=32,
    max_position_embeddings=512,
    initializer_range=0.08,
    num_nextn_predict_layers=1,
)


FROM_NANO = ("vocab_size", "max_position_embeddings", "bos_token_id", "pad_token_id", "eos_token_id")


def random_model(**changes: Any) -> AXK1ForCausalLM:
    """A model whose every part matters: norms and router biases are random too."""
    torch.manual_seed(0)
    model = AXK1ForCausalLM(AXK1Config(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.3, 0.3)
    return model


def save(
    folder: Path,
    layout: str = "released",
    change: Callable[[dict], None] | None = None,
    config: Callable[[dict], None] | None = None,
    **fields: Any,
) -> Path:
    """Writes a random fp32 model in a layout; ``change`` edits the tensors of its file, ``config`` its config.json."""
    random_model(**fields).save_pretrained(folder / "released")
    if layout != "released":
        convert_checkpoint(folder / "released", folder / layout, layout="per_expert")
    if change is not None:
        file = folder / layout / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    if config is not None:
        file = folder / layout / "config.json"
        values = json.loads(file.read_text())
        config(values)
        file.write_text(json.dumps(values))
    return folder / layout


def layer_types_alone(values: dict[str, Any]) -> None:
    """Says which layers are dense as transformers does."""
    del values["first_k_dense_replace"], values["moe_layer_freq"]


def older_name(values: dict[str, Any]) -> None:
    """The model type as an earlier upload spells it."""
    values["model_type"] = "AXK1"


def without_optional(tensors: dict[str, torch.Tensor]) -> None:
    """Leaves out what a checkpoint may lack: router biases and the norm behind the dense MLP."""
    for name in [*tensors]:
        if name.endswith("e_score_correction_bias") or name == "model.layers.0.post_mlp_layernorm.weight":
            del tensors[name]


def below_zero(tensors: dict[str, torch.Tensor]) -> None:
    """Router biases that leave every score below zero."""
    for name, tensor in tensors.items():
        if name.endswith("e_score_correction_bias"):
            tensor.sub_(2)


def with_stored_norm(tensors: dict[str, torch.Tensor]) -> None:
    """Stores a norm behind the dense MLP, as the released file does, whose use would be seen."""
    tensors["model.layers.0.post_mlp_layernorm.weight"] = torch.full((SIZES["hidden_size"],), 3.0)


def prompts(count: int = 4, vocabulary: int = 512) -> list[list[int]]:
    """Random prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, vocabulary, (20 + 9 * i,), generator=generator).tolist() for i in range(count)]


@torch.no_grad()
def logprobs(model: Any, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Per row the log-probability of every id but the first, under ``model``."""
    scores = []
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["answer"]])
        table = model(ids).logits.float().log_softmax(-1)[0, :-1]
        scores.append(table.gather(1, ids[0, 1:, None])[:, 0])
    return scores


def ours(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in this package's model."""
    return AXK1ForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in transformers' own model."""
    types = getattr(TransformersConfig.from_pretrained(folder), "mlp_layer_types", None) or []
    # versions before 5.23 count the dense layers by the older field only
    older: dict[str, Any] = {"first_k_dense_replace": types.count("dense")} if types else {}
    config = TransformersConfig.from_pretrained(folder, **older)
    setattr(config, "model_type", "axk1")  # noqa: B010  of "AXK1" it does not know how to read experts
    return TransformersModel.from_pretrained(folder, config=config, dtype=dtype).eval()


CALL = {"<|reserved_6|>": '\n{"name": "w", ', "<|reserved_7|>": '"arguments": {}}\n'}
"""A tool call in two tokens, as the template has it, which are put in the place of reserved ones."""


def script_tool_call(folder: Path) -> Path:
    """A model with the nano's tokenizer whose next token depends on the last one alone: it makes a tool call.

    In Think it reasons "Yes" first. One-hot embeddings, layers that add nothing, and a head that holds the table.
    """
    folder.mkdir()
    words = json.loads((NANO / "tokenizer.json").read_text())
    for token in words["added_tokens"]:
        if token["content"] in CALL:
            token |= {"content": CALL[token["content"]], "special": False}
    words["model"]["vocab"] = {CALL.get(token, token): number for token, number in words["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(NANO / name, folder / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = ["<think>", "Y", "es", "</think>", "<tool_call>", *CALL.values(), "</tool_call>", "<|im_end|>"]
    chain = tokenizer.convert_tokens_to_ids(text)
    assert len(set(chain)) == len(chain) <= SIZES["hidden_size"], "a scripted model knows only the last token"
    model = random_model(**{name: getattr(AXK1Config.from_pretrained(NANO), name) for name in FROM_NANO})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for i, (token, following) in enumerate(itertools.pairwise(chain)):
            model.model.embed_tokens.weight[token, i] = 1.0
            model.lm_head.weight[following, i] = 1.0
    model.save_pretrained(folder)
    return folder
