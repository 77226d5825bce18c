"""Situations, expressions and stories: everything whose reasoning is one expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from random import Random

from axk1.tasks.situations.columns import solve
from axk1.tasks.situations.frames import FRAMES, Frame
from axk1.tasks.situations.grammar import Language, expand, fill
from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.situations.numbers import draw, written
from axk1.tasks.situations.told import Told, slots_of

LARGEST = 99_999
_SIGNS = {"+": "+++＋", "-": "---－−–", "*": "**×××xxX·＊", "/": "/÷÷:／"}


@cache
def _compiled(expression: str):
    return compile(expression, expression, "eval")


def _draw(frame: Frame, language: str, rng: Random) -> dict[str, int] | None:
    for _ in range(60):
        values = {letter: draw(kind, language, rng) for letter, kind in zip("abcd", frame.kinds, strict=False)}
        result = eval(_compiled(frame.expression), {}, values)
        if result == int(result) and 0 < result <= LARGEST and _works_out(frame.expression, values):
            return values
    return None


def _works_out(expression: str, values: dict[str, int]) -> bool:
    """No step below zero; a long product or a long quotient is left to calculators."""
    inner = re.search(r"\(([^()]*)\)", expression)
    if inner and (eval(_compiled(inner[1]), {}, values) <= 0):
        return False
    product = re.search(r"([a-d])\*([a-d])", expression)
    return not product or min(values[product[1]], values[product[2]]) < 100


def situation(task: str) -> Callable[[str, Random], Told | None]:
    def tell(language: str, rng: Random) -> Told | None:
        spoken = tables_of(language)
        name = rng.choice(_frames(task, language))
        frame = FRAMES[name]
        values = _draw(frame, language, rng)
        if values is None:
            return None
        question = fill(expand(rng.choice(spoken.frames[name]), rng), slots_of(spoken, language, values, rng))
        if task == "word" and rng.random() < 0.06:
            question = _aside(spoken, language, rng) + spoken.gap + question
        try:
            reasoning, value = solve(_in_figures(frame.expression, values))
        except ValueError:  # more goes than was there, and comes back later
            return None
        return Told(question, reasoning, str(value), tuple(values.values()), name)

    return tell


@cache
def _frames(task: str, language: str) -> list[str]:
    return [name for name, frame in FRAMES.items() if frame.task == task and name in tables_of(language).frames]


def _in_figures(expression: str, values: dict[str, int]) -> str:
    return re.sub("[a-d]", lambda found: str(values[found[0]]), expression)


def _aside(spoken: Language, language: str, rng: Random) -> str:
    return fill(expand(rng.choice(spoken.aside), rng), slots_of(spoken, language, {}, rng))


def expression(language: str, rng: Random) -> Told | None:
    """Figures with signs, or with the words for them."""
    if rng.random() < 0.45:
        return situation("arithmetic")(language, rng)
    count = rng.choices((1, 2, 3), (60, 28, 12))[0]
    operators = [rng.choice("++--**/" if count == 1 else "++--*") for _ in range(count)]
    numbers = [draw("n" if count < 3 else "t", language, rng) for _ in range(count + 1)]
    for place, operator in enumerate(operators, 1):
        if operator in "*/":
            numbers[place] = draw("t" if rng.random() < 0.3 else "s", language, rng)
        if operator == "/":
            numbers[place - 1] *= numbers[place]
    if count == 1 and operators == ["*"] and len(str(numbers[0])) == 4:
        numbers[1] = draw("s", language, rng)
    below_zero = count == 1 and rng.random() < 0.04
    expression = "".join(f"{number}{operator}" for number, operator in zip(numbers, [*operators, ""], strict=True))
    if count == 2 and "*" not in operators and rng.random() < 0.15:
        expression = f"{numbers[0]}{operators[0]}({numbers[1]}{operators[1]}{numbers[2]})"
    try:
        reasoning, value = solve(expression)
    except ValueError:
        return None
    if (re.search(r"=-", reasoning) and not below_zero) or abs(value) > LARGEST:
        return None
    shown = _signed(expression, language, rng)
    spoken = tables_of(language)
    question = fill(expand(rng.choice(spoken.ask), rng), {"e": shown})
    return Told(question, reasoning, str(value), numbers, "signs")


def _signed(expression: str, language: str, rng: Random) -> str:
    """The expression with one way to write each sign: with spaces or without, or as words."""
    spoken, in_words, spaced = tables_of(language).signs, rng.random() < 0.3, rng.random() < 0.5
    signs = {sign: rng.choice(spoken[sign]) if in_words else rng.choice(_SIGNS[sign]) for sign in "+-*/"}
    gap = " " if (spaced and not in_words) or (in_words and language not in ("zh", "ja")) else ""
    parts = re.findall(r"\d+|[-+*/]|[()]", expression)
    shown = ""
    for part in parts:
        if part.isdigit():
            shown += written(int(part), language, rng)
        else:
            shown += part if part in "()" else f"{gap}{signs[part]}{gap}"
    return shown


def _story(language: str, rng: Random) -> Told | None:
    """Somebody has things, one to three events change how many."""
    spoken = tables_of(language)
    kind = "n" if rng.random() < 0.3 else "t"
    now = draw(kind, language, rng)
    slots = slots_of(spoken, language, {"a": now}, rng)
    numbers, expression, sentences = [now], str(now), [spoken.events["open"]]
    told = [fill(expand(rng.choice(sentences[0]), rng), slots)]
    for event in rng.choices(("gain", "lose", "packs", "double"), (36, 40, 18, 6), k=rng.choice((1, 2, 2, 3))):
        drawn = {"b": draw(kind if event != "packs" else "s", language, rng), "c": draw("s", language, rng)}
        if event == "double":
            drawn, now = {}, now * 2
            expression = f"{expression}*2" if expression.isdigit() else f"({expression})*2"
        elif event == "packs":
            now, expression = now + drawn["b"] * drawn["c"], f"{expression}+{drawn['b']}*{drawn['c']}"
        else:
            del drawn["c"]
            sign = "+" if event == "gain" else "-"
            now, expression = now + int(f"{sign}{drawn['b']}"), f"{expression}{sign}{drawn['b']}"
        if now <= 0:
            return None
        numbers += drawn.values()
        told.append(fill(expand(rng.choice(spoken.events[event]), rng), slots | _figures(spoken, language, drawn, rng)))
    told.append(fill(expand(rng.choice(spoken.events["ask"]), rng), slots))
    reasoning, value = solve(expression)  # never below zero: it was looked at above
    return Told(spoken.gap.join(told), reasoning, str(value), numbers, "story")


def _figures(spoken: Language, language: str, values: dict[str, int], rng: Random) -> dict[str, str]:
    return {letter: written(number, language, rng) for letter, number in values.items()}


def word(language: str, rng: Random) -> Told | None:
    return _story(language, rng) if rng.random() < 0.2 else situation("word")(language, rng)
