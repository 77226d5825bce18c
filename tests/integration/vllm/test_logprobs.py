"""Log-probabilities of prompt and reply in vLLM equal ours and transformers' own, in fp32; in bf16 they are as near."""

from __future__ import annotations

from pathlib import Path

import torch
from samples import (
    DEFAULT,
    YARN,
    layer_types_alone,
    logprobs,
    older_name,
    ours,
    prompts,
    save,
    transformers,
    with_stored_norm,
    without_optional,
)
from support import NANO

FORMS = {
    "released, default rope": dict(rope_parameters=DEFAULT, change=with_stored_norm),
    "released, YaRN": dict(rope_parameters=YARN),
    "per expert, default rope": dict(layout="per_expert", rope_parameters=DEFAULT, config=older_name),
    "per expert, YaRN, nothing optional": dict(layout="per_expert", rope_parameters=YARN, change=without_optional),
    "two dense layers": dict(
        rope_parameters=YARN, first_k_dense_replace=2, n_shared_experts=2, config=layer_types_alone
    ),
}
SCORES = {"max_tokens": 12, "ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}


def difference(scores: list[torch.Tensor], others: list[torch.Tensor]) -> torch.Tensor:
    return (torch.cat(scores) - torch.cat(others)).abs()


def test_random_checkpoints_in_fp32(tmp_path: Path, run_jobs) -> None:
    folders = {name: save(tmp_path / str(i), **form) for i, (name, form) in enumerate(FORMS.items())}
    jobs = [
        {"engine": {"model": str(folder), "dtype": "float32"}, "prompts": prompts(), "sampling": SCORES}
        for folder in folders.values()
    ]
    for (name, folder), result in zip(folders.items(), run_jobs(jobs), strict=True):
        assert "error" not in result, (name, result["error"])
        found = [torch.tensor(row["logprobs"]) for row in result["rows"]]
        assert difference(found, logprobs(ours(folder), result["rows"])).max() < 1e-4, name
        assert difference(found, logprobs(transformers(folder), result["rows"])).max() < 1e-4, name


def test_the_nano(run_jobs) -> None:
    jobs = [
        {"engine": {"model": str(NANO), "dtype": dtype}, "prompts": prompts(6, 6_000), "sampling": SCORES}
        for dtype in ("float32", "bfloat16")
    ]
    full, half = run_jobs(jobs)
    found = [torch.tensor(row["logprobs"]) for row in full["rows"]]
    assert difference(found, logprobs(ours(NANO), full["rows"])).max() < 1e-4
    assert difference(found, logprobs(transformers(NANO), full["rows"])).max() < 1e-4
    exact = logprobs(transformers(NANO), half["rows"])
    theirs = difference(logprobs(transformers(NANO, torch.bfloat16), half["rows"]), exact).mean()
    assert difference([torch.tensor(row["logprobs"]) for row in half["rows"]], exact).mean() < 1.25 * theirs


def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, run_jobs) -> None:
    wrong = {
        "attention_bias=True": dict(attention_bias=True),
        "rope_interleave=False": dict(rope_interleave=False),
        "tie_word_embeddings=True": dict(tie_word_embeddings=True),
        "topk_method='greedy'": dict(topk_method="greedy"),
        "mlp_layer_types=": dict(mlp_layer_types=["dense", "sparse", "dense"]),
        "lower it to 256": dict(rope_parameters=YARN | {"factor": 2.0}),
    }
    folders = [save(tmp_path / str(i), **fields) for i, fields in enumerate(wrong.values())]
    jobs = [{"engine": {"model": str(folder)}, "prompts": prompts(1), "sampling": SCORES} for folder in folders]
    for message, result in zip(wrong, run_jobs(jobs), strict=True):
        assert message in result["error"]
