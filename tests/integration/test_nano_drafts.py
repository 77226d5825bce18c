"""MTP speculation on the trained nano: its drafts are mostly right, and change no reply."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import is_compiled

from axk1.chat import Chat, load
from axk1.evaluation.held_out import held_out_problems
from axk1.generation.decode import decode
from axk1.generation.sampling import GREEDY, Logprobs, Sampling
from axk1.generation.speculate import TIE_GAPS, Drafts, DraftStatistics

NANO = Path(__file__).parents[2] / "models" / "nano"
NEW = 96


@pytest.fixture(scope="module")
def chat() -> Chat:
    return load(NANO)


def prompts(chat: Chat, count: int, seed: int) -> list[list[int]]:
    """Held-out problems, in Think and Non-Think by turns."""
    problems = held_out_problems(count, seed)
    return [chat.prompt([{"role": "user", "content": p.question}], i % 2 == 0) for i, p in enumerate(problems)]


def replies(chat: Chat, batch: list[list[int]], sampling: Sampling = GREEDY, **options: Any) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in batch]
    steps = decode(
        chat.model, batch, sampling, max_new_tokens=NEW, stop_ids=chat.stop_ids, pad_id=chat._pad_id, **options
    )
    for step in steps:
        for row, new in zip(rows, step, strict=True):
            row += new
    return rows


def test_greedy_drafts_change_nothing(chat) -> None:
    statistics = DraftStatistics()
    for prompt in prompts(chat, 12, seed=3):
        plain = replies(chat, [prompt])
        for count in (1, 2):
            assert replies(chat, [prompt], drafts=Drafts(count), statistics=statistics) == plain
    assert statistics.acceptance_at[0] > 0.85  # measured 0.95
    assert not is_compiled(chat.model) or statistics.replays == 0  # a reply's bits are its own there
    assert statistics.tokens[1] > 1.6 * statistics.steps


def test_a_batch_with_drafts_is_its_replies_alone(chat) -> None:
    batch = prompts(chat, 10, seed=5)
    alone = [replies(chat, [prompt])[0] for prompt in batch]
    assert replies(chat, batch, drafts=Drafts(2)) == alone


def test_seeded_replies(chat) -> None:
    batch = prompts(chat, 4, seed=6)
    seeds, sampling = [1, 2, 3, 4], Sampling(seed=0)
    plain = [replies(chat, [p], sampling, seeds=[s])[0] for p, s in zip(batch, seeds, strict=True)]
    assert replies(chat, batch, sampling, seeds=seeds, drafts=Drafts(2)) == plain


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_hundreds_of_prompts(chat) -> None:
    """Exact, token for token, one prompt at a time, and no reply twice as long as it should be."""
    statistics = DraftStatistics()
    for prompt in prompts(chat, 300, seed=11):
        plain = replies(chat, [prompt])
        assert replies(chat, [prompt], drafts=Drafts(1), statistics=statistics) == plain
    assert statistics.acceptance_at[0] > 0.85


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_half_precision_exact_and_fast() -> None:
    """bf16: exact replies are plain decoding's; fast ones part from them only where two tokens are near."""
    chat = load(NANO, dtype="bfloat16")
    gaps = []
    for prompt in prompts(chat, 60, seed=12):
        recorded = Logprobs(8)
        (plain,) = replies(chat, [prompt], logprobs=recorded)
        assert replies(chat, [prompt], drafts=Drafts(2)) == [plain]
        (fast,) = replies(chat, [prompt], drafts=Drafts(2, exact=False))
        at = next((i for i, (a, b) in enumerate(zip(fast, plain, strict=False)) if a != b), None)
        if at is not None:
            top = recorded.rows[0][at].top
            gaps.append(top[0][1] - dict(top)[fast[at]])
    assert max(gaps, default=0.0) < TIE_GAPS[torch.bfloat16]
