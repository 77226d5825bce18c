"""Weekdays some days after or before a given one: reduce by the weeks, then step day by day."""

from __future__ import annotations

from random import Random

from axk1.tasks.arithmetic import written
from axk1.tasks.language import join_particles
from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem, Split

_SHARE_TWICE = 0.35


def build(split: Split, language: str, rng: Random) -> Problem:
    """One weekday problem, with one number of days (1 to 40) or, for later days, sometimes two."""
    tables = TABLES[language]
    start, n, m = rng.randrange(7), rng.randint(2, 40), 0
    twice = rng.random() < _SHARE_TWICE
    if twice:
        n, m = rng.randint(2, 25), rng.randint(2, 25)
    kind = "after_twice" if twice else rng.choice(("after", "before"))
    sign = -1 if kind == "before" else 1
    total = n + m
    rest = total % 7
    steps = [written(n, "+", m)] if twice else []
    steps.append(f"{total}-{total - rest}={rest}")
    days = [tables.weekdays[(start + sign * i) % 7] for i in range(rest + 1)]
    walk = [days[0], *(f"{i} {day}" for i, day in enumerate(days[1:], 1))]
    slot, text = getattr(tables, kind).pick(split, rng)
    question = text.format(d=tables.weekdays[start], n=n, m=m)
    return Problem(
        task="calendar",
        language=language,
        question=join_particles(question),
        reasoning=f"{tables.forward if sign > 0 else tables.back} {', '.join(steps)}. {', '.join(walk)}.",
        answer=tables.weekday_answer.format(v=days[-1]),
        value=days[-1],
        numbers=(start, sign * n, m),
        template=f"calendar/{language}/{kind}:{slot}",
        names=(),
        multi_step=total > 7,
        split=split,
    )
