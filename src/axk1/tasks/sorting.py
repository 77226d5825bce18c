"""Sorting of a few numbers, and picking the k-th smallest, the k-th largest or the median."""

from __future__ import annotations

from random import Random

from axk1.tasks.language import join_particles
from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem, Split


def insertion_trace(numbers: list[int], descending: bool) -> tuple[str, list[int]]:
    """Each number and the sorted list with it, as `<: 45: 45; 12: 12 45.` (< ascending), and the list at the end."""
    done: list[int] = []
    lines = []
    for n in numbers:
        done = sorted([*done, n], reverse=descending)
        lines.append(f"{n}: {' '.join(map(str, done))}")
    return f"{'>' if descending else '<'}: {'; '.join(lines)}.", done


def build(split: Split, language: str, rng: Random) -> Problem:
    """One sorting problem of 4 to 6 different numbers, half of them asking for one number of the order."""
    tables = TABLES[language]
    kind = rng.choice(("sort_up", "sort_down", "sort_up", "sort_down", "kth_small", "kth_large", "median"))
    length = {"median": 5, "kth_small": 4, "kth_large": 4}.get(kind) or rng.choice((4, 4, 5, 5))
    if kind.startswith("kth"):
        length += rng.randint(0, 1)
    drawn = rng.sample(range(1, 100), length)
    picks = not kind.startswith("sort")
    k = 3 if kind == "median" else rng.randint(2, 3) if picks else 0
    reasoning, done = insertion_trace(drawn, descending=kind in ("sort_down", "kth_large"))
    if picks:
        reasoning += f" {k}: " + ", ".join(f"{i} {done[i - 1]}" for i in range(1, k + 1)) + "."
    value = str(done[k - 1]) if picks else ", ".join(map(str, done))
    slot, text = getattr(tables, kind).pick(split, rng)
    question = text.format(l=tables.list_gap.join(map(str, drawn)), k=tables.ordinals[k - 1] if picks else "")
    return Problem(
        task="sorting",
        language=language,
        question=join_particles(question),
        reasoning=reasoning,
        answer=(tables.number_answer if picks else tables.list_answer).format(v=value),
        value=value,
        numbers=(("sort_up", "sort_down", "kth_small", "kth_large", "median").index(kind), k, *drawn),
        template=f"sorting/{language}/{kind}:{slot}",
        names=(),
        multi_step=picks,
        split=split,
    )
