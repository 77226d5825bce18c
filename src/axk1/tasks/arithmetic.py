"""Chains of sums, differences and small products, with a trace that reduces one operation at a time."""

from __future__ import annotations

import re
from functools import cache
from random import Random
from typing import Any

from axk1.tasks.language import join_particles
from axk1.tasks.text import TABLES
from axk1.tasks.types import Problem, Split

LARGEST = 999
_SHARE_ONE_STEP = 0.2
_SHARE_REASONING_GYM = 0.1  # of the English ones
_TOKEN = re.compile(r"\d+|[-+*()]")


def apply(left: int, operator: str, right: int) -> int:
    """The value of one operation; `operator` is one of + - * /, and / must leave no remainder."""
    if operator == "/":
        return left // right
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def written(left: int, operator: str, right: int) -> str:
    """One operation with its value; a sum or difference of two digits goes by tens and units, as
    `35+48: 35+40=75, 75+8=83`, so that no single step needs more than a digit and a carry."""
    value, units = apply(left, operator, right), right % 10
    if operator in "*/" or units in (0, right):
        return f"{left}{operator}{right}={value}"
    between = apply(left, operator, right - units)
    first, second = f"{left}{operator}{right - units}={between}", f"{between}{operator}{units}={value}"
    return f"{left}{operator}{right}: {first}, {second}"


def _next_operation(tokens: list[str]) -> int:
    """Index of the operator to evaluate first: inside the first inner parentheses, products before sums."""
    close = tokens.index(")") if ")" in tokens else len(tokens)
    start = max((i for i in range(close) if tokens[i] == "("), default=-1) + 1
    products = [i for i in range(start, close) if tokens[i] == "*"]
    return products[0] if products else start + 1


def reduce_expression(expression: str) -> tuple[list[str], list[int]]:
    """Trace sentences of an expression such as 35+4*6-9, and the value after each operation.

    Each operation is written out (see `written`), then what remains of the expression, unless that is one operation
    and so opens the next sentence by itself.
    """
    tokens = _TOKEN.findall(expression)
    sentences: list[str] = []
    values: list[int] = []
    while len(tokens) > 1:
        i = _next_operation(tokens)
        operation = int(tokens[i - 1]), tokens[i], int(tokens[i + 1])
        value = apply(*operation)
        sentences.append(written(*operation) + ".")
        values.append(value)
        enclosed = i >= 2 and tokens[i - 2] == "(" and tokens[i + 2] == ")"
        tokens[i - 1 - enclosed : i + 2 + enclosed] = [str(value)]
        if len(tokens) > 3:
            sentences.append("".join(tokens) + ".")
    return sentences, values


def _chain(rng: Random, length: int) -> str:
    """An expression of `length` operands without regard to the range of its values."""
    terms: list[str] = []
    operands = length
    while operands:
        if operands >= 2 and rng.random() < 0.25:
            terms.append(f"{rng.randint(2, 9)}*{rng.randint(2, 9)}")
            operands -= 2
        elif operands >= 2 and terms and rng.random() < 0.25:
            a, b = rng.randint(2, 40), rng.randint(2, 40)
            terms.append(f"({max(a, b)}{rng.choice('+-')}{min(a, b)})")
            operands -= 2
        elif operands == 3 and not terms and rng.random() < 0.12:
            small = rng.randint(3, 9)
            a = rng.randint(1, small - 1)
            inner = f"({small - a}+{a})" if rng.random() < 0.5 else f"({small + a}-{a})"
            terms.append(f"{inner}*{rng.randint(2, 9)}")
            operands -= 3
        else:
            terms.append(str(rng.randint(2, 50)))
            operands -= 1
    text = terms[0]
    for term in terms[1:]:
        text += rng.choice("+-") + term
    return text


def _gym_expression(split: Split, rng: Random) -> tuple[str, str]:
    """(expression, question) of a reasoning_gym chain_sum item; even item seeds are training, odd ones held-out."""
    index = 2 * rng.randrange(10**8) + (split == "heldout")
    item = _gym_dataset()[index]
    return item["metadata"]["expression"].replace(" ", ""), item["question"]


@cache
def _gym_dataset() -> Any:
    from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset

    config = ChainSumConfig(min_terms=2, max_terms=4, min_digits=1, max_digits=2, seed=0, size=2 * 10**8)
    return ChainSumDataset(config)


def build(split: Split, language: str, rng: Random) -> Problem | None:
    """One arithmetic problem, or None where the draw leaves 0..999 (the caller draws again)."""
    tables = TABLES[language]
    gym = language == "en" and rng.random() < _SHARE_REASONING_GYM
    question = ""
    if gym:
        expression, question = _gym_expression(split, rng)
    else:
        expression = _chain(rng, 2 if rng.random() < _SHARE_ONE_STEP else rng.choice((3, 3, 4)))
    sentences, values = reduce_expression(expression)
    if not values or min(values) < 0 or max(values) > LARGEST:
        return None
    template = "gym"
    # The held-out split keeps only the expression: reasoning_gym has one wording, which training has seen.
    if not gym or split == "heldout":
        slot, text = tables.arithmetic.pick(split, rng)
        template = f"{'gym/' if gym else ''}ask:{slot}"
        shown = expression if rng.random() < 0.6 else re.sub(r"([-+*])", r" \1 ", expression)
        question = join_particles(text.format(e=shown if rng.random() < 0.6 else shown.replace("*", "×")))
    return Problem(
        task="arithmetic",
        language=language,
        question=question,
        reasoning=" ".join(sentences),
        answer=tables.number_answer.format(v=values[-1]),
        value=str(values[-1]),
        numbers=tuple(int(n) for n in re.findall(r"\d+", expression)),
        template=f"arithmetic/{language}/{template}",
        names=(),
        multi_step=len(values) > 1,
        split=split,
    )


def follow_up(previous: Problem, rng: Random) -> Problem:
    """A second turn that adds to, or subtracts from, the number that `previous` was answered with."""
    tables, split = TABLES[previous.language], "train" if previous.split == "train" else "heldout"
    current, n = int(previous.value), rng.randint(2, 30)
    kind = "subtract" if current > n and rng.random() < 0.5 else "add"
    slot, text = tables.follow_up[kind].pick(split, rng)
    value = current - n if kind == "subtract" else current + n
    return Problem(
        task="arithmetic",
        language=previous.language,
        question=join_particles(text.format(n=n)),
        reasoning=written(current, "-" if kind == "subtract" else "+", n) + ".",
        answer=tables.number_answer.format(v=value),
        value=str(value),
        numbers=(current, n),
        template=f"arithmetic/{previous.language}/{kind}:{slot}",
        names=(),
        multi_step=False,
        split=split,
    )
