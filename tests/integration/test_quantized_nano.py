"""The nano in every format but int3, which has not been measured: it answers held-out problems as well as in bfloat16,
and its replies are as likely."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from axk1.chat import Chat, load
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.evaluation import held_out
from axk1.quantized.plan import Kind
from axk1.tasks import Problem

NANO = Path(__file__).parents[2] / "models" / "nano"
PROBLEMS = 500
"""A point is five problems; one or two turn out differently for reasons of rounding alone."""
KINDS: tuple[Kind, ...] = ("int8", "int4", "fp8")
LOST_POINTS = {"int8": 1, "fp8": 1, "int4": 3}
PERPLEXITY = {"int8": 1.001, "fp8": 1.002, "int4": 1.005}
"""Times bfloat16's, over the reasoning and the answers that belong to the problems."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> dict[str, Chat]:
    root = tmp_path_factory.mktemp("quantized")
    for kind in KINDS:
        quantize_checkpoint(NANO, root / kind, kind)
    return {"bf16": load(NANO), **{kind: load(root / kind) for kind in KINDS}}


@pytest.fixture(scope="module")
def points(chats) -> dict[str, float]:
    """Think accuracy in percent."""
    problems = held_out.held_out_problems(PROBLEMS, seed=13)
    found = {}
    for kind, chat in chats.items():
        results = held_out.answer_problems(chat, problems, True, batch_size=125, max_new_tokens=192)
        found[kind] = 100 * sum(result.correct for result in results) / len(results)
    return found


@pytest.fixture(scope="module")
def perplexities(chats) -> dict[str, float]:
    problems = held_out.held_out_problems(200, seed=17)
    return {kind: perplexity(chat, problems) for kind, chat in chats.items()}


@torch.no_grad()
def perplexity(chat: Chat, problems: list[Problem]) -> float:
    """Of the problems' own replies, reasoning included."""
    total, count = 0.0, 0
    for start in range(0, len(problems), 25):
        rows, lengths = [], []
        for problem in problems[start : start + 25]:
            prompt = chat.prompt([{"role": "user", "content": problem.question}], True)
            reply = f"{problem.reasoning}</think>{problem.answer}<|im_end|>"
            rows.append(prompt + chat.tokenizer(reply, add_special_tokens=False)["input_ids"])  # pyright: ignore
            lengths.append(len(prompt))
        batch = chat.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = chat.model(ids, attention_mask=mask).logits[:, :-1]  # pyright: ignore[reportCallIssue]
        columns = torch.arange(1, ids.shape[1])  # pyright: ignore[reportAttributeAccessIssue]
        learned = (columns >= torch.tensor(lengths)[:, None]) & mask[:, 1:].bool()  # pyright: ignore
        total += F.cross_entropy(logits[learned], ids[:, 1:][learned], reduction="sum").item()  # pyright: ignore
        count += int(learned.sum())
    return math.exp(total / count)


@pytest.mark.parametrize("kind", KINDS)
def test_think_accuracy(points, kind) -> None:
    assert points[kind] >= points["bf16"] - LOST_POINTS[kind], points


@pytest.mark.parametrize("kind", KINDS)
def test_perplexity_of_replies(perplexities, kind) -> None:
    assert perplexities[kind] <= perplexities["bf16"] * PERPLEXITY[kind], perplexities
