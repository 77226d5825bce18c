"""Measures a checkpoint on held-out problems: both modes, five languages."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from axk1.generation.sampling import GREEDY
from axk1.generation.speculate import NO_DRAFTS
from axk1.tasks import Problem, answer_language, different, generate, score
from axk1.tasks.probe import as_problem, probes
from axk1.tasks.situations import situations

if TYPE_CHECKING:
    from axk1.chat import Chat, Reply

SETS: dict[str, Callable[[int], Iterable[Problem]]] = {
    "templates": lambda seed: generate("heldout", seed),
    "situations": lambda seed: situations("heldout", seed),
    "probe": lambda seed: map(as_problem, sorted(probes(), key=lambda probe: zlib.crc32(probe.question.encode()))),
}
"""Of the first edition, of the second, and those that nobody generated."""
TAGS = ("<think>", "</think>")


@dataclass(frozen=True)
class Result:
    """One reply to one held-out problem."""

    task: str
    language: str
    multi_step: bool
    think: bool
    question: str
    expected: str
    reasoning: str
    answer: str
    correct: bool
    mode_obeyed: bool
    language_kept: bool
    tokens: int


def held_out_problems(count: int, seed: int = 0, problems: str = "templates") -> list[Problem]:
    """``count`` different held-out problems; tasks in the usual shares, languages evenly.

    Args:
        problems: a name of ``SETS``; the probe set is the same for every seed, and no more than it has.

    Raises:
        ValueError: no such set.
    """
    if problems not in SETS:
        raise ValueError(f'"{problems}" is no set of problems: there are {", ".join(SETS)}.')
    return list(islice(different(SETS[problems](seed)), count))


def answer_problems(
    chat: Chat,
    problems: list[Problem],
    think: bool,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Greedy replies in one mode, in the problems' order; ``progress`` is told how many are done."""
    results: list[Result | None] = [None] * len(problems)
    by_length = sorted(range(len(problems)), key=lambda i: len(problems[i].question))  # little padding, fewer steps
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        conversations = [[{"role": "user", "content": problems[i].question}] for i in chosen]
        replies = chat.reply_batch(
            conversations, think=think, sampling=GREEDY, max_new_tokens=max_new_tokens, drafts=NO_DRAFTS
        )
        for i, reply in zip(chosen, replies, strict=True):
            results[i] = _judge(problems[i], reply, think)
        progress(start + len(chosen))
    return results  # pyright: ignore[reportReturnType]


def _judge(problem: Problem, reply: Reply, think: bool) -> Result:
    return Result(
        task=problem.task,
        language=problem.language,
        multi_step=problem.multi_step,
        think=think,
        question=problem.question,
        expected=problem.value,
        reasoning=reply.reasoning,
        answer=reply.answer,
        correct=reply.finish_reason == "stop" and score(problem, reply.answer),
        mode_obeyed=obeys_mode(reply, think),
        language_kept=answer_language(reply.answer) == problem.language,
        tokens=reply.reasoning_tokens + reply.answer_tokens,
    )


def obeys_mode(reply: Reply, think: bool) -> bool:
    """Think: some reasoning, closed once, then an answer. Non-Think: an answer and neither reasoning nor a tag."""
    plain = bool(reply.answer.strip()) and not any(tag in reply.answer for tag in TAGS)
    return plain and reply.finish_reason == "stop" and bool(reply.reasoning.strip()) == think


def summary(results: list[Result]) -> dict[str, Any]:
    """Shares over ``results`` of both modes: accuracy by mode, task, language and steps; obedience; language."""

    def share(chosen: Iterable[Result], what: str = "correct") -> dict[str, Any]:
        values = [getattr(r, what) for r in chosen]
        return {"share": round(sum(values) / len(values), 4) if values else None, "count": len(values)}

    languages, tasks = sorted({r.language for r in results}), sorted({r.task for r in results})
    modes = {"think": [r for r in results if r.think], "non_think": [r for r in results if not r.think]}
    report: dict[str, Any] = {
        "mode_obeyed": share(results, "mode_obeyed"),
        "language_kept": share(results, "language_kept"),
    }
    for mode, chosen in modes.items():
        report[mode] = {
            "all": share(chosen),
            "multi_step": share(r for r in chosen if r.multi_step),
            "by_task": {t: share(r for r in chosen if r.task == t) for t in tasks},
            "by_language": {x: share(r for r in chosen if r.language == x) for x in languages},
            "by_language_and_task": {
                f"{x}/{t}": share(r for r in chosen if (r.language, r.task) == (x, t)) for x in languages for t in tasks
            },
            "mean_tokens": round(sum(r.tokens for r in chosen) / max(len(chosen), 1), 1),
        }
    return report
