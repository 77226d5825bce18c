"""MTP drafts in vLLM: they change no greedy reply, and are right as often as in our own decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from samples import YARN, ours, prompts, save
from support import NANO
from transformers import AutoTokenizer

from axk1.evaluation.acceptance import mtp_acceptance
from axk1.evaluation.held_out import held_out_problems

PLAIN = {"max_tokens": 96}
DRAFTS = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
TWO_DRAFTS = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 2}}


@pytest.fixture(scope="module")
def problems() -> list[list[int]]:
    """Held-out problems as prompts, in Think and Non-Think by turns."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.question}],
            add_generation_prompt=True,
            enable_thinking=i % 2 == 0,
            return_dict=False,
        )
        for i, problem in enumerate(held_out_problems(60))
    ]


def acceptance(drafts: dict[str, int]) -> float:
    return drafts["vllm:spec_decode_num_accepted_tokens"] / drafts["vllm:spec_decode_num_draft_tokens"]


def our_acceptance(rows: list[dict]) -> float:
    """The share of second tokens that our MTP module predicts in the same replies."""
    ids = [torch.tensor(row["prompt"] + row["answer"]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side="left")
    longest = padded.shape[1]
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in ids])
    lengths = torch.tensor([len(row["prompt"]) for row in rows])
    return mtp_acceptance(ours(NANO), padded, mask, lengths)


def test_the_nano(run_jobs, problems) -> None:
    engine = {"model": str(NANO), "dtype": "float32"}
    jobs = [{"engine": engine | more, "prompts": problems, "sampling": PLAIN} for more in ({}, DRAFTS, TWO_DRAFTS)]
    plain, one, two = run_jobs(jobs)
    assert [row["answer"] for row in one["rows"]] == [row["answer"] for row in plain["rows"]]
    assert [row["answer"] for row in two["rows"]] == [row["answer"] for row in plain["rows"]]
    assert one["drafts"]["vllm:spec_decode_num_drafts"] > 500
    assert abs(acceptance(one["drafts"]) - our_acceptance(plain["rows"])) < 0.02
    two_kept, drafts = (two["drafts"][f"vllm:spec_decode_num_{what}"] for what in ("accepted_tokens", "drafts"))
    assert two_kept / drafts > 1.3  # measured 1.51; one draft a step cannot keep more than 1


def test_random_checkpoints(tmp_path: Path, run_jobs) -> None:
    """Both layouts; random drafts are mostly wrong, which may not change replies either."""
    folders = [save(tmp_path / "a", rope_parameters=YARN), save(tmp_path / "b", "per_expert", rope_parameters=YARN)]
    jobs = [
        {"engine": {"model": str(folder), "dtype": "float32"} | more, "prompts": prompts(), "sampling": PLAIN}
        for folder in folders
        for more in ({}, DRAFTS)
    ]
    rows = [[row["answer"] for row in result["rows"]] for result in run_jobs(jobs)]
    assert rows[0] == rows[1] == rows[2] == rows[3]


def test_a_checkpoint_without_mtp_is_refused(tmp_path: Path, run_jobs) -> None:
    folder = save(tmp_path, num_nextn_predict_layers=0)
    (result,) = run_jobs([{"engine": {"model": str(folder)} | DRAFTS, "prompts": prompts(1), "sampling": PLAIN}])
    assert "no MTP layer" in result["error"]
