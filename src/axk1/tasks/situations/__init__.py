"""Situations told in five languages: the problems of the second edition.

Where the first edition fills templates, this one composes: what happens (`frames`), how it is said (a grammar for each
language), how it is typed (`tell.as_typed`), and reasoning that works digit by digit (`columns`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random

from axk1.tasks.generate import generate
from axk1.tasks.situations.retold import retold
from axk1.tasks.situations.tell import build
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


def situations(split: Split, seed: int, *, weights: Mapping[str, float] | None = None) -> Iterator[Problem]:
    """Problems of `split` without end, the same for the same arguments; languages are equally frequent."""
    rng = Random(f"situations/{split}/{seed}")
    names, shares = zip(*(weights or WEIGHTS).items(), strict=True)
    while True:
        task, language = rng.choices(names, shares)[0], rng.choice(LANGUAGES)
        problem = build(split, task, language, rng)
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


__all__ = ["TASKS", "WEIGHTS", "both_editions", "retold", "situations"]
