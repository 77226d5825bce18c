"""Measures a checkpoint on held-out problems: both modes, five languages."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axk1.files import read_text
from axk1.generation.sampling import GREEDY, Sampling, row_seeds
from axk1.generation.speculate import NO_DRAFTS
from axk1.tasks import LANGUAGES, Problem, answer_language, different, generate, score
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
        problems: a name of ``SETS``; the probe set is the same for every seed, and no more than it has. Or the path of
            a file (:func:`file_problems`), of which the first are taken.

    Raises:
        ValueError: no such set, or a faulty file.
    """
    if problems.endswith(".jsonl"):
        return list(islice(different(file_problems(Path(problems))), count))
    if problems not in SETS:
        raise ValueError(
            f'"{problems}" is no set of problems: there are {", ".join(SETS)}, and files ending in .jsonl.'
        )
    return list(islice(different(SETS[problems](seed)), count))


def file_problems(path: Path) -> Iterator[Problem]:
    """Problems of a JSONL file: ``prompt`` and ``answer``, optionally ``domain`` and ``language`` (en).

    An answer is a number, numbers in order ("3, 5, 9"), a time ("9:15") or words, and is looked for at the end of the
    reply (:func:`axk1.tasks.score`).

    Raises:
        ValueError: naming the line.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            prompt, answer = values["prompt"], values["answer"]
            domain, language = str(values.get("domain", path.stem)), values.get("language", "en")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: is no object with prompt and answer ({error!r}).") from None
        if not isinstance(prompt, str) or not isinstance(answer, str | int) or language not in LANGUAGES:
            raise ValueError(
                f"{path}, line {number}: prompt must be text, answer text or a whole number, language one of "
                f"{', '.join(LANGUAGES)}."
            )
        told = {"question": prompt, "value": str(answer), "answer": f"= {answer}"}
        yield Problem(
            domain, language, **told, reasoning="", numbers=(), template="", names=(), multi_step=False, split=""
        )


def answer_problems(
    chat: Chat,
    problems: list[Problem],
    think: bool,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Replies in one mode, in the problems' order; ``progress`` is told how many are done."""
    results: list[Result | None] = [None] * len(problems)
    seeds = None if sampling.seed is None else row_seeds(sampling.seed, len(problems))
    by_length = sorted(range(len(problems)), key=lambda i: len(problems[i].question))  # little padding, fewer steps
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        conversations = [[{"role": "user", "content": problems[i].question}] for i in chosen]
        replies = chat.reply_batch(
            conversations,
            think=think,
            sampling=replace(sampling, seed=None),
            seeds=None if seeds is None else [seeds[i] for i in chosen],
            max_new_tokens=max_new_tokens,
            drafts=NO_DRAFTS,
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


def wilson(share: float, problems: int) -> tuple[float, float]:
    """The 95% interval of a share over so many independent problems (Wilson, 1927).

    Repeats of a problem are not independent, so they make a share surer and do not count: the interval is too wide with
    them, never too narrow.
    """
    z = 1.959964
    centre, spread = (
        share + z * z / (2 * problems),
        z * (share * (1 - share) / problems + (z / (2 * problems)) ** 2) ** 0.5,
    )
    scale = 1 + z * z / problems
    return round(max(0.0, (centre - spread) / scale), 4), round(min(1.0, (centre + spread) / scale), 4)


def summary(results: list[Result]) -> dict[str, Any]:
    """Shares over ``results`` of both modes: accuracy by mode, task, language and steps; obedience; language; lengths.

    Each with its 95% interval (:func:`wilson`).
    """

    def share(chosen: Iterable[Result], what: str = "correct") -> dict[str, Any]:
        found = list(chosen)
        mean = sum(getattr(r, what) for r in found) / len(found) if found else None
        interval = wilson(mean, len({(r.question, r.think) for r in found})) if mean is not None else None
        return {"share": None if mean is None else round(mean, 4), "count": len(found), "interval": interval}

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
            "longest_tokens": max((r.tokens for r in chosen), default=0),
        }
    return report
