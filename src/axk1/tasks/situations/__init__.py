"""Situations told in five languages: the problems of the second edition.

Where the first edition fills templates, this one composes: what happens (`frames`), how it is said (a grammar for each
language), how it is typed (`tell.as_typed`), and reasoning that works digit by digit (`columns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random

from axk1.tasks import chat
from axk1.tasks.generate import generate
from axk1.tasks.situations import dates, lists, sums
from axk1.tasks.situations.keyboard import as_typed
from axk1.tasks.situations.numbers import draw
from axk1.tasks.situations.retold import retold
from axk1.tasks.situations.told import Told, pattern
from axk1.tasks.text import INTENTS, TABLES
from axk1.tasks.types import LANGUAGES, Problem, Split, is_held_out

TASKS = ("arithmetic", "word", "counting", "sorting", "calendar", "comparison", "units", "chat")
WEIGHTS = {
    "arithmetic": 0.26,
    "word": 0.38,
    "counting": 0.07,
    "sorting": 0.07,
    "calendar": 0.07,
    "comparison": 0.05,
    "units": 0.05,
    "chat": 0.05,
}


def _conversation(language: str, rng: Random) -> Told | None:
    """Plain conversation of the first edition, and open questions, to which the honest answer is always the same."""
    if rng.random() < 0.6:
        said = chat.build("train", language, rng)
        return Told(said.question, said.reasoning, said.value, (), "chat", said.answer)
    unknown = INTENTS[language]["unknown"]
    question = pattern("unknown", language, rng, y=str(draw("y", language, rng)))
    return Told(question, unknown.reasoning, unknown.answer, (), "unknown", unknown.answer)


_BUILDERS = {
    "arithmetic": sums.expression,
    "word": sums.word,
    "counting": lists.letters,
    "sorting": lists.order,
    "calendar": dates.calendar,
    "comparison": lists.comparison,
    "units": dates.units,
    "chat": _conversation,
}


def situations(split: Split, seed: int, *, weights: Mapping[str, float] | None = None) -> Iterator[Problem]:
    """Problems of `split` without end, the same for the same arguments; languages are equally frequent."""
    rng = Random(f"situations/{split}/{seed}")
    names, shares = zip(*(weights or WEIGHTS).items(), strict=True)
    while True:
        task, language = rng.choices(names, shares)[0], rng.choice(LANGUAGES)
        problem = _problem(split, task, language, rng)
        if problem is None:
            continue
        if not problem.numbers or is_held_out(task, problem.numbers) == (split == "heldout"):
            yield problem


def both_editions(
    split: Split, seed: int, *, templates: float, weights: Mapping[str, float] | None = None
) -> Iterator[Problem]:
    """Situations, and a share of the first edition's problems (`templates`), these too with reasoning in columns."""
    rng, old, new = (
        Random(f"editions/{split}/{seed}"),
        generate(split, seed),
        situations(split, seed, weights=weights),
    )
    while True:
        yield retold(next(old)) if rng.random() < templates else next(new)


def _problem(split: Split, task: str, language: str, rng: Random) -> Problem | None:
    """One problem of a task, or None where its numbers do not work out (the caller draws again)."""
    told = _BUILDERS[task](language, rng)
    if told is None:
        return None
    answer = told.answer or TABLES[language].number_answer.format(v=told.value)
    return Problem(
        task=task,
        language=language,
        question=as_typed(told.question, language, rng, accents=task == "counting"),
        reasoning=told.reasoning,
        answer=answer,
        value=told.value,
        numbers=tuple(told.numbers),
        template=f"{task}/{language}/{told.name}",
        names=(),
        multi_step=told.reasoning.count("=") > 1,
        split=split,
    )


__all__ = ["TASKS", "WEIGHTS", "both_editions", "retold", "situations"]
