"""Log-probabilities of prompt and reply, and greedy replies, in mlx-lm equal ours in every form of a checkpoint."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm import batch_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load, load_model
from samples import (
    DEFAULT,
    YARN,
    below_zero,
    layer_types_alone,
    older_name,
    ours,
    prompts,
    save,
    with_stored_norm,
    without_optional,
)

REPLY = 12


FORMS: dict[str, dict[str, Any]] = {
    "released, default rope, the norm that is never applied": dict(rope_parameters=DEFAULT, change=with_stored_norm),
    "released, YaRN, negative biases": dict(rope_parameters=YARN, change=below_zero),
    "released, softmax, no bias": dict(rope_parameters=YARN, scoring_func="softmax", change=without_optional),
    "per expert, default rope, the older name": dict(layout="per_expert", rope_parameters=DEFAULT, config=older_name),
    "per expert, YaRN, no bias": dict(layout="per_expert", rope_parameters=YARN, change=without_optional),
    "two dense layers": dict(first_k_dense_replace=2, n_shared_experts=2, config=layer_types_alone),
    "a dense layer in the middle": dict(mlp_layer_types=["sparse", "dense", "sparse"], n_shared_experts=0),
    "YaRN's mscale": dict(rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}),
    "one mscale alone": dict(rope_parameters=YARN | {"mscale": 0.7}, norm_topk_prob=False),
    "linear rope, halves, biases": dict(
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        rope_interleave=False,
        attention_bias=True,
    ),
}


def table(logits: mx.array) -> torch.Tensor:
    """``[1, T, V]`` logits to log-probabilities ``[T, V]``."""
    return torch.from_numpy(np.array(logits.astype(mx.float32)))[0].log_softmax(-1)


@torch.no_grad()
def our_table(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@torch.no_grad()
def our_reply(model: Any, prompt: list[int]) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=REPLY, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


def check(folder: Path, ids: list[int]) -> None:
    """Whole, in parts through the cache, and token by token (the absorbed form) against ours."""
    model, _ = load_model(folder)
    reference = ours(folder)
    expected = our_table(reference, ids)
    assert (table(model(mx.array([ids]))) - expected).abs().max() < 1e-4
    cache = make_prompt_cache(model)
    parts = [ids[:20], ids[20:31], *([token] for token in ids[31:])]
    stepped = mx.concatenate([model(mx.array([part]), cache) for part in parts], axis=1)
    assert (table(stepped) - expected).abs().max() < 1e-4
    found = [int(token) for token, _ in generate_step(mx.array(ids), model, max_tokens=REPLY)]
    assert found == our_reply(reference, ids)


@pytest.mark.parametrize("form", FORMS)
def test_random_checkpoints(tmp_path: Path, form: str) -> None:
    check(save(tmp_path, **FORMS[form]), prompts(3)[2])


def test_the_nano(nano: Path) -> None:
    check(nano, prompts(3, 6_000)[2])


def test_a_batch_gives_what_each_prompt_gives_alone(nano: Path) -> None:
    model, tokenizer = load(str(nano))[:2]
    tokenizer.eos_token_ids = set()
    asked = prompts(4, 6_000)
    replies = batch_generate(model, tokenizer, asked, max_tokens=REPLY, return_prompt_caches=False).texts
    reference = ours(nano)
    assert replies == [tokenizer.decode(our_reply(reference, prompt)) for prompt in asked]


REFUSED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "topk_method='greedy'": lambda values: values.update(topk_method="greedy"),
    "tie_word_embeddings=True": lambda values: values.update(tie_word_embeddings=True),
    "hidden_act='gelu'": lambda values: values.update(hidden_act="gelu"),
    "rope_type='dynamic'": lambda values: values.update(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
    "attention_factor": lambda values: values["rope_parameters"].update(attention_factor=1.0),
    "num_hidden_layers=62": lambda values: values.update(num_hidden_layers=62),
}


def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path) -> None:
    for i, (message, change) in enumerate(REFUSED.items()):
        folder = save(tmp_path / str(i), rope_parameters=YARN, num_hidden_layers=2, config=change)
        with pytest.raises(ValueError, match=message):
            load_model(folder)


def test_latents_are_not_quantised(nano: Path) -> None:
    model, _ = load_model(nano)
    with pytest.raises(ValueError, match="leave out --kv-bits"):
        list(generate_step(mx.array(prompts(1, 6_000)[0]), model, max_tokens=4, kv_bits=8, quantized_kv_start=0))
