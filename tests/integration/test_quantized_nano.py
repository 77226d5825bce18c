"""The nano in every format: it answers held-out problems as well as in bfloat16, and its replies are as likely.

``python docs/quantization.py --quality`` writes what is measured here into the page.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from axk1.chat import Chat, load
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.evaluation import held_out
from axk1.kernels.rounding import rounded
from axk1.tasks import Problem

NANO = Path(__file__).parents[2] / "models" / "nano"
PROBLEMS = 500
"""A point is five problems; one or two turn out differently for reasons of rounding alone."""
FORMATS: dict[str, tuple[Any, int | None]] = {
    "int8": ("int8", None),
    "fp8": ("fp8", None),
    "int4": ("int4", None),
    "int4, groups of 32": ("int4", 32),
    "int3": ("int3", None),
}
"""Scheme and group size. The nano's experts are 192 by 96: their groups are of 32 in any case."""
LOST_POINTS = {"int8": 1, "fp8": 1, "int4": 3, "int4, groups of 32": 3, "int3": 8}
PERPLEXITY = {"int8": 1.001, "fp8": 1.002, "int4": 1.005, "int4, groups of 32": 1.005, "int3": 1.03}
"""Times bfloat16's, over the reasoning and the answers that belong to the problems."""

pytestmark = pytest.mark.slow


class Quality(NamedTuple):
    """Of a format of the nano."""

    accuracy: float
    """Think accuracy in percent."""
    perplexity: float
    """Of the problems' own replies, reasoning included."""
    divergence: float
    """From bfloat16's distribution of the next token (Kullback-Leibler, 1/1000 nat), over these replies."""
    top: float
    """How often, in percent, the most probable token is bfloat16's."""


def measured(root: Path) -> dict[str, Quality]:
    """All formats; quantised copies are written to ``root``."""
    chats = {"bfloat16": load(NANO)}
    for name, (scheme, group) in FORMATS.items():
        quantize_checkpoint(NANO, root / name, scheme, group, rounder=rounded)
        chats[name] = load(root / name)
    asked = held_out.held_out_problems(PROBLEMS, seed=13)
    told = held_out.held_out_problems(200, seed=17)
    return {
        name: Quality(accuracy(chat, asked), *likelihood(chat, chats["bfloat16"], told)) for name, chat in chats.items()
    }


def accuracy(chat: Chat, problems: list[Problem]) -> float:
    """Think accuracy in percent."""
    results = held_out.answer_problems(chat, problems, True, batch_size=125, max_new_tokens=192)
    return 100 * sum(result.correct for result in results) / len(results)


@torch.no_grad()
def likelihood(chat: Chat, reference: Chat, problems: list[Problem]) -> tuple[float, float, float]:
    """Perplexity, divergence and share of equal first choices over the problems' own replies."""
    total, divergence, same, count = 0.0, 0.0, 0, 0
    for ids, mask, learned in _batches(chat, problems):
        ours, theirs = (
            each.model(ids, attention_mask=mask).logits[:, :-1][learned].float().log_softmax(-1)  # pyright: ignore[reportCallIssue]
            for each in (chat, reference)
        )
        total += F.nll_loss(ours, ids[:, 1:][learned], reduction="sum").item()
        divergence += F.kl_div(ours, theirs, reduction="sum", log_target=True).item()
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(ours)
    return math.exp(total / count), 1000 * divergence / count, 100 * same / count


def _batches(chat: Chat, problems: list[Problem]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for start in range(0, len(problems), 25):
        rows, lengths = [], []
        for problem in problems[start : start + 25]:
            prompt = chat.prompt([{"role": "user", "content": problem.question}], True)
            reply = f"{problem.reasoning}</think>{problem.answer}<|im_end|>"
            rows.append(prompt + chat.tokenizer(reply, add_special_tokens=False)["input_ids"])  # pyright: ignore
            lengths.append(len(prompt))
        batch: Any = chat.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        ids, mask = batch["input_ids"], batch["attention_mask"]
        columns = torch.arange(1, ids.shape[1])
        yield ids, mask, (columns >= torch.tensor(lengths)[:, None]) & mask[:, 1:].bool()


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Quality]:
    return measured(tmp_path_factory.mktemp("quantized"))


@pytest.mark.parametrize("name", FORMATS)
def test_think_accuracy(quality: dict[str, Quality], name: str) -> None:
    assert quality[name].accuracy >= quality["bfloat16"].accuracy - LOST_POINTS[name], quality


@pytest.mark.parametrize("name", FORMATS)
def test_perplexity_of_replies(quality: dict[str, Quality], name: str) -> None:
    assert quality[name].perplexity <= quality["bfloat16"].perplexity * PERPLEXITY[name], quality


def test_fewer_bits_diverge_more(quality: dict[str, Quality]) -> None:
    found = [quality[name].divergence for name in ("bfloat16", "int8", "fp8", "int4", "int3")]
    assert found[0] == 0 and found[1] < found[3] < found[4] and found[2] < found[3], quality
