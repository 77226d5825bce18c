"""Endless streams of problems and of short conversations, deterministic in their seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random

from axk1.tasks import arithmetic, calendar, chat, counting, sorting, word
from axk1.tasks.types import LANGUAGES, TASKS, Problem, Split, is_held_out

WEIGHTS = {"arithmetic": 0.22, "word": 0.30, "counting": 0.14, "sorting": 0.12, "calendar": 0.14, "chat": 0.08}
_BUILDERS = {
    "arithmetic": arithmetic.build,
    "word": word.build,
    "counting": counting.build,
    "sorting": sorting.build,
    "calendar": calendar.build,
    "chat": chat.build,
}


def _checked(what: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    unknown = [value for value in given if value not in known]
    if unknown or not given:
        raise ValueError(f"{what}: {list(given)} must be a non-empty selection of {list(known)}")
    return tuple(given)


def _draw(split: Split, task: str, language: str, rng: Random) -> Problem:
    """One problem whose numbers belong to `split`."""
    while True:
        problem = _BUILDERS[task](split, language, rng)
        if problem is None:
            continue
        if not problem.numbers or is_held_out(task, problem.numbers) == (split == "heldout"):
            return problem


def generate(
    split: Split,
    seed: int,
    *,
    tasks: Sequence[str] = TASKS,
    languages: Sequence[str] = LANGUAGES,
    weights: Mapping[str, float] | None = None,
) -> Iterator[Problem]:
    """Problems of `split` without end, the same for the same arguments.

    `weights` gives the share of each task (default WEIGHTS, rescaled to `tasks`); languages are equally frequent.
    Raises ValueError for an unknown split, task or language.
    """
    _checked("split", [split], ("train", "heldout"))
    tasks, languages = _checked("tasks", tasks, TASKS), _checked("languages", languages, LANGUAGES)
    shares = [(weights or WEIGHTS).get(task, 0.0) for task in tasks]
    if sum(shares) <= 0:
        raise ValueError(f"weights: {dict(weights or {})} give no share to any of {list(tasks)}")
    return _stream(split, Random(f"{split}/{seed}"), tasks, languages, shares)


def _stream(
    split: Split, rng: Random, tasks: Sequence[str], languages: Sequence[str], shares: Sequence[float]
) -> Iterator[Problem]:
    while True:
        task = rng.choices(tasks, shares)[0]
        yield _draw(split, task, rng.choice(languages), rng)


def dialogues(split: Split, seed: int, *, languages: Sequence[str] = LANGUAGES) -> Iterator[tuple[Problem, Problem]]:
    """Pairs of problems for two turns in one language: conversation and a problem, two problems, or a follow-up."""
    languages = _checked("languages", languages, LANGUAGES)
    rng = Random(f"dialogues/{split}/{seed}")
    names, shares = zip(*WEIGHTS.items(), strict=True)
    while True:
        language = rng.choice(languages)
        if rng.random() < 0.4:
            first = _draw(split, rng.choice(("arithmetic", "word", "counting")), language, rng)
            second = arithmetic.follow_up(first, rng)
            if is_held_out("arithmetic", second.numbers) == (split == "heldout"):
                yield first, second
        else:
            opening = "chat" if rng.random() < 0.5 else rng.choices(names, shares)[0]
            yield _draw(split, opening, language, rng), _draw(split, rng.choices(names, shares)[0], language, rng)


def conversations(split: Split, seed: int, *, languages: Sequence[str] = LANGUAGES) -> Iterator[list[dict[str, str]]]:
    """Messages of two-turn conversations: role and content, and reasoning_content of the assistant's turns."""
    for problems in dialogues(split, seed, languages=languages):
        yield [message for problem in problems for message in messages(problem)]


def messages(problem: Problem) -> list[dict[str, str]]:
    """The user's and the assistant's message of one problem."""
    return [
        {"role": "user", "content": problem.question},
        {"role": "assistant", "content": problem.answer, "reasoning_content": problem.reasoning},
    ]


def different(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems whose question was not asked before."""
    asked: set[str] = set()
    for problem in problems:
        if problem.question not in asked:
            asked.add(problem.question)
            yield problem
