"""Measures a checkpoint on held-out problems: both modes, five languages."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from axk1.evaluation.benchmarks import OURS
from axk1.evaluation.intervals import Share, share_of
from axk1.files import read_text
from axk1.generation.sampling import GREEDY, Sampling, row_seeds
from axk1.generation.speculate import NO_DRAFTS
from axk1.tasks import LANGUAGES, Problem, answer_language, different, generate, score
from axk1.tasks.probe import as_problem, probes
from axk1.tasks.situations import situations

if TYPE_CHECKING:
    from axk1.chat import Reply
    from axk1.chat.messages import Message

_MADE: tuple[Callable[[int], Iterable[Problem]], ...] = (
    lambda seed: generate("heldout", seed),
    lambda seed: situations("heldout", seed),
    lambda seed: map(as_problem, sorted(probes(), key=lambda probe: zlib.crc32(probe.question.encode()))),
)
SETS = dict(zip(OURS, _MADE, strict=True))
"""Of the first edition, of the second, and those that nobody generated."""
TAGS = ("<think>", "</think>")


class Answers(Protocol):
    """What answers conversations: :class:`axk1.chat.Chat`, or a server behind ``axk1.integrations.lm_eval``."""

    def reply_batch(
        self, conversations: Sequence[Sequence[Message]], *, think: bool | Sequence[bool] = False, **options: Any
    ) -> list[Reply]:
        """A reply to each; options are those of :meth:`axk1.chat.Chat.reply_batch`."""
        ...


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
    chat: Answers,
    problems: list[Problem],
    think: bool,
    *,
    batch_size: int = 64,
    max_new_tokens: int | None = 256,
    sampling: Sampling = GREEDY,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Replies in one mode, in the problems' order; ``progress`` is told how many are done."""
    conversations = [[{"role": "user", "content": problem.question}] for problem in problems]
    how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "sampling": sampling, "progress": progress}
    replies = answer(chat, conversations, think, **how)
    return [_judge(problem, reply, think) for problem, reply in zip(problems, replies, strict=True)]


def answer(
    chat: Answers,
    conversations: Sequence[list[Message]],
    think: bool,
    *,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Reply]:
    """A reply to each conversation, in their order: batches of similar lengths, and with a seed a draw for each that
    does not depend on the batches. ``max_new_tokens`` None: what the context holds."""
    replies: list[Reply | None] = [None] * len(conversations)
    seeds = None if sampling.seed is None else row_seeds(sampling.seed, len(conversations))
    lengths = [sum(len(message["content"] or "") for message in conversation) for conversation in conversations]
    by_length = sorted(range(len(conversations)), key=lengths.__getitem__)  # little padding, fewer steps
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = chat.reply_batch(
            [conversations[i] for i in chosen],
            think=think,
            sampling=replace(sampling, seed=None),
            seeds=None if seeds is None else [seeds[i] for i in chosen],
            max_new_tokens=max_new_tokens,
            drafts=NO_DRAFTS,
        )
        for i, reply in zip(chosen, batch, strict=True):
            replies[i] = reply
        progress(start + len(chosen))
    return replies  # pyright: ignore[reportReturnType]


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
    """Shares over ``results`` of both modes: accuracy by mode, task, language and steps; obedience; language; lengths.

    Each with its 95% interval over problems (:func:`axk1.evaluation.intervals.wilson`). Of a mode that was not asked
    for, all counts are 0.
    """

    def share(chosen: Iterable[Result], what: str = "correct") -> Share:
        return share_of(((r.question, r.think), float(getattr(r, what))) for r in chosen)

    languages, tasks = sorted({r.language for r in results}), sorted({r.task for r in results})
    modes = {"think": [r for r in results if r.think], "non_think": [r for r in results if not r.think]}
    report: dict[str, Any] = {
        "mode_obeyed": share(results, "mode_obeyed"),
        "language_kept": share(results, "language_kept"),
    }
    for mode, chosen in modes.items():
        report[mode] = {
            "all": share(chosen),
            "mode_obeyed": share(chosen, "mode_obeyed"),
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
