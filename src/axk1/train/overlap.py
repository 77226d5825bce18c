"""Mode-Overlap data (A.X K1's report, Think-Fusion): the same prompt in both modes, from the model's own right answers.

A problem is kept when the model solved it in Think and in Non-Think, each in the mode that was asked for, within a few
attempts. What it learns from is then in its own words, and differs by the mode alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from axk1.chat import Chat, Reply
from axk1.evaluation.held_out import obeys_mode
from axk1.files import write_text
from axk1.generation.sampling import Sampling, row_seeds
from axk1.tasks import Problem, score

BATCH = 64


class Overlap(NamedTuple):
    """How many problems were asked, and solved in each mode and in both, which is what was written."""

    asked: int
    think: int
    non_think: int
    both: int


def write_overlap(
    chat: Chat,
    problems: Sequence[Problem],
    out: Path,
    *,
    samples: int = 4,
    sampling: Sampling | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Overlap:
    """Writes two lines to the JSONL file ``out`` for each problem that was solved in both modes, Think first.

    Args:
        samples: attempts at most in each mode; those that were solved are not asked again.
        sampling: the official one if None.
        seed: of attempts; the same one gives the same file.
        progress: is told how many replies are there, of at most how many.
    """
    solved: dict[bool, dict[int, Reply]] = {True: {}, False: {}}
    total, done = 2 * samples * len(problems), 0
    for attempt in range(samples):
        for think, found in solved.items():
            open_ones = [place for place in range(len(problems)) if place not in found]
            seeds = row_seeds(seed * 1_000 + 2 * attempt + think, len(problems))
            for start in range(0, len(open_ones), BATCH):
                chosen = open_ones[start : start + BATCH]
                replies = chat.reply_batch(
                    [[{"role": "user", "content": problems[place].question}] for place in chosen],
                    think=think,
                    sampling=replace(sampling or Sampling(), seed=None),
                    seeds=[seeds[place] for place in chosen],
                    max_new_tokens=max_new_tokens,
                )
                right = zip(chosen, replies, strict=True)
                found |= {place: reply for place, reply in right if is_right(problems[place], reply, think)}
                done += len(chosen)
                progress(done, total)
    both = sorted(solved[True].keys() & solved[False].keys())
    lines = [_line(problems[place], solved[think][place], think) for place in both for think in solved]
    write_text(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return Overlap(len(problems), len(solved[True]), len(solved[False]), len(both))


def is_right(problem: Problem, reply: Reply, think: bool) -> bool:
    """Whether a reply ended, kept to its mode, and has the problem's value as its answer."""
    return obeys_mode(reply, think) and score(problem, reply.answer)


def _line(problem: Problem, reply: Reply, think: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"role": "assistant", "content": reply.answer}
    if think:
        answer["reasoning_content"] = reply.reasoning
    messages = [{"role": "user", "content": problem.question}, answer]
    return {"messages": messages, "think": think, "domain": problem.task}
