"""A.X K1 in the patched llama.cpp against ours: log-probabilities, greedy replies, what is refused."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamacpp_binding import Input, LlamaCpp
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
from support import NANO

from axk1.checkpoint.compressed import DEFAULT_GROUP
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.integrations.llamacpp.export import export_gguf
from axk1.quantized.plan import KINDS

REPLY = 12
CLOSE = 1e-4
"""Of log-probabilities in fp32; llama.cpp's exponential and sines are not the library's."""


FORMS: dict[str, dict[str, Any]] = {
    "released, default rope, the norm that is never applied": dict(rope_parameters=DEFAULT, change=with_stored_norm),
    "released, YaRN, negative biases": dict(rope_parameters=YARN, change=below_zero),
    "released, softmax, no bias": dict(rope_parameters=YARN, scoring_func="softmax", change=without_optional),
    "per expert, default rope, the older name": dict(layout="per_expert", rope_parameters=DEFAULT, config=older_name),
    "per expert, YaRN, no bias": dict(layout="per_expert", rope_parameters=YARN, change=without_optional),
    "two dense layers, two shared experts": dict(
        first_k_dense_replace=2, n_shared_experts=2, config=layer_types_alone, rope_parameters=DEFAULT
    ),
    "all groups": dict(topk_group=4, rope_parameters=DEFAULT),
    "no MTP": dict(num_nextn_predict_layers=0, rope_parameters=DEFAULT),
    "YaRN's softmax scale": dict(rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}),
    "weights that do not sum to one": dict(rope_parameters=YARN | {"mscale": 0.7}, norm_topk_prob=False),
    "linear rope": dict(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
}


@torch.no_grad()
def our_table(model: Any, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()


def table(engine: LlamaCpp, ids: list[int], parts: list[int]) -> np.ndarray:
    """``[T, V]`` log-probabilities, the prompt fed in ``parts`` tokens at a time."""
    engine.forget()
    rows, start = [], 0
    for count in parts:
        rows.append(engine.step([Input(ids[i], i) for i in range(start, start + count)]))
        start += count
    return torch.from_numpy(np.concatenate(rows)).log_softmax(-1).numpy()


def reply(engine: LlamaCpp, ids: list[int]) -> list[int]:
    engine.forget()
    logits = engine.step([Input(token, i) for i, token in enumerate(ids)])
    found: list[int] = []
    while True:
        found.append(int(logits[-1].argmax()))
        if len(found) == REPLY:
            return found
        logits = engine.step([Input(found[-1], len(ids) + len(found) - 1)])


@torch.no_grad()
def our_reply(model: Any, prompt: list[int]) -> list[int]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=REPLY, do_sample=False, eos_token_id=None)
    return out[0, len(prompt) :].tolist()


def distance(build: Path, file: Path, reference: Any, ids: list[int], plain: bool = True) -> float:
    """The largest difference to ours, whole and token by token."""
    engine = LlamaCpp(build, file, 256, plain=plain)
    expected = our_table(reference, ids)
    steps = [20, 11, *[1] * (len(ids) - 31)]
    tables = [table(engine, ids, [len(ids)]), table(engine, ids, steps)]
    if plain:
        assert reply(engine, ids) == our_reply(reference, ids)
    engine.close()
    return max(float(np.abs(found - expected).max()) for found in tables)


@pytest.mark.parametrize("form", FORMS)
def test_random_checkpoints(build: Path, tmp_path: Path, form: str) -> None:
    folder = save(tmp_path / "model", **FORMS[form])
    (file,) = export_gguf(folder, tmp_path / "gguf", "f32")
    assert distance(build, file, ours(folder), prompts(3)[2]) < CLOSE


def test_the_nano(build: Path, nano_f32: Path) -> None:
    assert distance(build, nano_f32, ours(NANO), prompts(3, 6_000)[2]) < CLOSE


@pytest.mark.parametrize("scheme", KINDS)
def test_a_quantised_source(build: Path, tmp_path: Path, scheme: Any) -> None:
    """Its rounded weights, in full."""
    folder = save(tmp_path / "model", rope_parameters=YARN)
    quantize_checkpoint(folder, tmp_path / scheme, scheme, 32 if scheme in DEFAULT_GROUP else None)
    (file,) = export_gguf(tmp_path / scheme, tmp_path / "gguf", "f32")
    reference = ours(tmp_path / scheme)
    reference.dequantize(torch.float32)
    assert distance(build, file, reference, prompts(3)[2]) < CLOSE


REFUSED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "topk_method='group_limited_greedy'": lambda values: values.update(topk_method="group_limited_greedy"),
    "tie_word_embeddings=True": lambda values: values.update(tie_word_embeddings=True),
    "rope_type='dynamic'": lambda values: values.update(rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
    "attention_factor": lambda values: values["rope_parameters"].update(attention_factor=1.0),
    "mscale=0.7 with mscale_all_dim=0.5": lambda values: values["rope_parameters"].update(
        mscale=0.7, mscale_all_dim=0.5
    ),
    "rope_interleave=False": lambda values: values.update(rope_interleave=False),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, message: str) -> None:
    folder = save(tmp_path, rope_parameters=YARN, num_hidden_layers=2, config=REFUSED[message])
    with pytest.raises(CheckpointError, match=message):
        export_gguf(folder, tmp_path / "gguf", "f32")


def test_dense_layers_behind_experts_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, rope_parameters=YARN, mlp_layer_types=["sparse", "dense", "sparse"])
    with pytest.raises(CheckpointError, match="a dense layer behind a MoE layer"):
        export_gguf(folder, tmp_path / "gguf", "f32")
