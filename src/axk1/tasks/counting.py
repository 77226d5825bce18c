"""Counting: how often an item occurs in a list, and how many numbers of a list lie above or below a bound."""

from __future__ import annotations

from random import Random

from axk1.tasks.language import join_particles
from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem, Split


def build(split: Split, language: str, rng: Random) -> Problem:
    """One counting problem; the trace walks through the list with a running counter.

    Items recur, so the list numbers them: the trace says the position, the item there, whether it
    counts (+ or -) and the count. Numbers differ.
    """
    return _items(split, language, rng) if rng.random() < 0.55 else _bound(split, language, rng)


def _items(split: Split, language: str, rng: Random) -> Problem:
    tables = TABLES[language]
    group = rng.randrange(len(tables.count_words))
    words = tables.count_words[group]
    kinds = rng.sample(range(len(words)), rng.randint(2, 4))
    target = kinds[0]
    drawn = [target if rng.random() < 0.4 else rng.choice(kinds) for _ in range(rng.randint(5, 9))]
    steps, count = [], 0
    for position, index in enumerate(drawn, start=1):
        count += index == target
        steps.append(f"{position} {words[index]} {'+' if index == target else '-'} {count}")
    listed = [f"{position}) {words[index]}" for position, index in enumerate(drawn, start=1)]
    slot, text = tables.count_item.pick(split, rng)
    question = text.format(x=words[target], l=tables.list_gap.join(listed))
    reasoning = f"{words[target]}: {', '.join(steps)}."
    numbers = (group, target, *drawn)
    return _problem(split, language, question, reasoning, count, numbers, f"item:{slot}", multi_step=False)


def _bound(split: Split, language: str, rng: Random) -> Problem:
    tables = TABLES[language]
    bound, above = rng.randint(15, 85), rng.random() < 0.5
    numbers = rng.sample(range(1, 100), rng.randint(5, 7))
    steps, count = [], 0
    for n in numbers:
        hit = n > bound if above else n < bound
        count += hit
        steps.append(f"{n}{'>' if n > bound else '<' if n < bound else '='}{bound} {'+' if hit else '-'} {count}")
    kind, pool = ("above", tables.count_above) if above else ("below", tables.count_below)
    slot, text = pool.pick(split, rng)
    question = text.format(x=bound, l=tables.list_gap.join(map(str, numbers)))
    reasoning = f"{'>' if above else '<'}{bound}: {', '.join(steps)}."
    drawn = (int(above), bound, *numbers)
    return _problem(split, language, question, reasoning, count, drawn, f"{kind}:{slot}", multi_step=True)


def _problem(
    split: Split,
    language: str,
    question: str,
    reasoning: str,
    count: int,
    numbers: tuple[int, ...],
    template: str,
    multi_step: bool,
) -> Problem:
    return Problem(
        task="counting",
        language=language,
        question=join_particles(question),
        reasoning=reasoning,
        answer=TABLES[language].number_answer.format(v=count),
        value=str(count),
        numbers=numbers,
        template=f"counting/{language}/{template}",
        names=(),
        multi_step=multi_step,
        split=split,
    )
