"""Weekdays, clocks, units of measure."""

from __future__ import annotations

from random import Random

from axk1.tasks.situations.columns import operation, solve
from axk1.tasks.situations.grammar import language as tables_of
from axk1.tasks.situations.numbers import draw, written
from axk1.tasks.situations.sums import situation
from axk1.tasks.situations.told import Told, pattern
from axk1.tasks.text import TABLES

_CLOCK = {"ko": "{h}시 {m}분", "zh": "{h}点{m}分", "ja": "{h}時{m}分"}


def calendar(language: str, rng: Random) -> Told | None:
    kind = rng.choice(
        ("day_after", "day_after", "day_before", "tomorrow", "yesterday", "over", "clock", "frame", "frame")
    )
    if kind == "frame":
        return situation("calendar")(language, rng)
    if kind == "clock":
        return _clock(language, rng)
    tables, start = TABLES[language], rng.randrange(7)
    days = {"tomorrow": 1, "yesterday": -1, "over": 2}.get(kind) or rng.randint(2, 30) * (-1 if "before" in kind else 1)
    day, spoken_days = tables.weekdays[start], abs(days)
    shown = str(spoken_days)
    if language == "zh" and spoken_days == 2:
        shown = "两"
    question = pattern(kind, language, rng, d=day, n=shown)
    rest = spoken_days % 7
    sign = 1 if days > 0 else -1
    walk = [tables.weekdays[(start + sign * step) % 7] for step in range(rest + 1)]
    steps = [walk[0], *(f"{step} {name}" for step, name in enumerate(walk[1:], 1))]
    weeks = f" {spoken_days}-{spoken_days - rest}={rest}." if spoken_days > 6 else f" {rest}."
    reasoning = f"{tables.forward if sign > 0 else tables.back}{weeks} {', '.join(steps)}."
    return Told(question, reasoning, walk[-1], (start, days), kind, tables.weekday_answer.format(v=walk[-1]))


def _clock(language: str, rng: Random) -> Told | None:
    hour, minute, lasts = rng.randint(1, 10), rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50)), rng.randint(1, 30) * 5
    later, at = minute + lasts, hour
    trace = [operation(minute, "+", lasts), f"{at}:{later}."]
    while later >= 60:
        trace.append(operation(later, "-", 60))
        later, at = later - 60, at + 1
        trace.append(f"{at}:{later:02}.")
    if at > 12:
        return None
    shown = f"{hour}:{minute:02}"
    if language in _CLOCK and rng.random() < 0.5:
        shown = _CLOCK[language].format(h=hour, m=minute) if minute else _CLOCK[language].split("{m}")[0].format(h=hour)
    question = pattern("clock", language, rng, t=shown, n=str(lasts))
    value = f"{at}:{later:02}"
    if trace[-1] != f"{value}.":
        trace.append(f"{value}.")
    return Told(question, " ".join(trace), value, (hour, minute, lasts), "clock")


def units(language: str, rng: Random) -> Told | None:
    spoken = tables_of(language)
    big, small, factor = rng.choice(spoken.units)
    count, rest = draw("s" if rng.random() < 0.6 else "t", language, rng), rng.randint(1, factor - 1)
    direction = rng.choice(("down", "down", "up", "mixed"))
    if direction == "mixed":
        if factor < 10:
            return None
        rest = rest - rest % 50 if factor == 1000 and rest > 50 else rest
        shown = {"a": str(count), "b": big, "c": str(rest), "s": small}
        question, expression = pattern("unit_mixed", language, rng, **shown), f"{count}*{factor}+{rest}"
    elif direction == "up":
        number = count * factor
        shown = {"a": written(number, language, rng), "b": small, "s": big}
        question, expression = pattern("unit_down", language, rng, **shown), f"{number}/{factor}"
    else:
        question = pattern("unit_down", language, rng, a=str(count), b=big, s=small)
        expression = f"{count}*{factor}"
    reasoning, value = solve(expression)
    return Told(question, reasoning, str(value), (count, rest, factor), direction)
