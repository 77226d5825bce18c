"""One problem of a task: a situation, told in one language as people type, with its reasoning in columns."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random

from axk1.tasks import chat
from axk1.tasks.language import join_particles
from axk1.tasks.situations import en, es, ja, ko, zh
from axk1.tasks.situations.columns import operation, solve
from axk1.tasks.situations.frames import FRAMES, Frame
from axk1.tasks.situations.grammar import Language, expand, fill
from axk1.tasks.situations.numbers import draw, full_width, written
from axk1.tasks.sorting import insertion_trace
from axk1.tasks.text import INTENTS, TABLES
from axk1.tasks.types import Problem, Split

SPOKEN = {"en": en.LANGUAGE, "ko": ko.LANGUAGE, "zh": zh.LANGUAGE, "ja": ja.LANGUAGE, "es": es.LANGUAGE}
LARGEST = 99_999
_SIGNS = {"+": "+++＋", "-": "---－−–", "*": "**×××xxX·＊", "/": "/÷÷:／"}
_WIDE = {"？": "?", "。": ".", "，": ",", "：": ":", "！": "!"}
_CLOCK = {"ko": "{h}시 {m}분", "zh": "{h}点{m}分", "ja": "{h}時{m}分"}
_QUOTES = ('"{w}"', "'{w}'", "{w}", "{w}", "“{w}”", "‘{w}’", "「{w}」")
_SYLLABLES = ("b c d f g h j l m n p r s t v br cr dr st tr pl sh ch th".split(), "a e i o u ee oo ai".split())


class _Told:
    """What a builder returns: the question, the reasoning, the value and the numbers that decide the split."""

    def __init__(
        self, question: str, reasoning: str, value: str, numbers: Sequence[int], name: str, answer: str = ""
    ) -> None:
        self.question, self.reasoning, self.value, self.answer = question, reasoning, value, answer
        self.numbers, self.name = tuple(numbers), name


def build(split: Split, task: str, language: str, rng: Random) -> Problem | None:
    """One problem of a task, or None where its numbers do not work out (the caller draws again)."""
    told = _BUILDERS[task](language, rng)
    if told is None:
        return None
    answer = told.answer or TABLES[language].number_answer.format(v=told.value)
    return Problem(
        task=task,
        language=language,
        question=as_typed(told.question, language, rng),
        reasoning=told.reasoning,
        answer=answer,
        value=told.value,
        numbers=told.numbers,
        template=f"{task}/{language}/{told.name}",
        names=(),
        multi_step=told.reasoning.count("=") > 1,
        split=split,
    )


# Numbers in situations


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


def _situation(task: str) -> Callable[[str, Random], _Told | None]:
    def tell(language: str, rng: Random) -> _Told | None:
        spoken = SPOKEN[language]
        name = rng.choice(_frames(task, language))
        frame = FRAMES[name]
        values = _draw(frame, language, rng)
        if values is None:
            return None
        question = fill(expand(rng.choice(spoken.frames[name]), rng), _slots(spoken, language, values, rng))
        if task == "word" and rng.random() < 0.06:
            question = _aside(spoken, language, rng) + spoken.gap + question
        try:
            reasoning, value = solve(_in_figures(frame.expression, values))
        except ValueError:  # more goes than was there, and comes back later
            return None
        return _Told(question, reasoning, str(value), tuple(values.values()), name)

    return tell


@cache
def _frames(task: str, language: str) -> list[str]:
    return [name for name, frame in FRAMES.items() if frame.task == task and name in SPOKEN[language].frames]


def _in_figures(expression: str, values: dict[str, int]) -> str:
    return re.sub("[a-d]", lambda found: str(values[found[0]]), expression)


def _aside(spoken: Language, language: str, rng: Random) -> str:
    return fill(expand(rng.choice(spoken.aside), rng), _slots(spoken, language, {}, rng))


def _slots(spoken: Language, language: str, values: dict[str, int], rng: Random) -> dict[str, str]:
    """Everything that a pattern may name: numbers, in figures (`a`) or words (`A`), a person, a thing."""
    person, thing = rng.choice(spoken.people).split(" "), rng.choice(spoken.things).split(" ")
    slots = dict(zip(spoken.people_slots, person, strict=False)) | dict(zip(spoken.thing_slots, thing, strict=True))
    slots = {name: text.replace("_", " ") for name, text in slots.items()}
    slots["one_c"] = f"{spoken.small[0]} {slots.get('c_', '')}"
    if "he" in spoken.people_slots and language == "en":
        slots["his"] = person[2]
    for letter, number in values.items():
        slots[letter] = str(number) if letter in "y" else written(number, language, rng)
        spelled = number <= 12 and rng.random() < 0.4
        slots[letter.upper()] = spoken.small[number - 1] if spelled else slots[letter]
    return slots


# Expressions


def _expression(language: str, rng: Random) -> _Told | None:
    """Figures with signs, or with the words for them."""
    if rng.random() < 0.45:
        return _situation("arithmetic")(language, rng)
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
    spoken = SPOKEN[language]
    question = fill(expand(rng.choice(spoken.ask), rng), {"e": shown})
    return _Told(question, reasoning, str(value), numbers, "signs")


def _signed(expression: str, language: str, rng: Random) -> str:
    """The expression with one way to write each sign: with spaces or without, or as words."""
    spoken, in_words, spaced = SPOKEN[language].signs, rng.random() < 0.3, rng.random() < 0.5
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


# Stories of several events


def _story(language: str, rng: Random) -> _Told | None:
    """Somebody has things, one to three events change how many."""
    spoken = SPOKEN[language]
    kind = "n" if rng.random() < 0.3 else "t"
    now = draw(kind, language, rng)
    slots = _slots(spoken, language, {"a": now}, rng)
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
        told.append(
            fill(expand(rng.choice(spoken.events[event]), rng), slots | _slots_of(spoken, language, drawn, rng))
        )
    told.append(fill(expand(rng.choice(spoken.events["ask"]), rng), slots))
    reasoning, value = solve(expression)  # never below zero: it was looked at above
    return _Told(spoken.gap.join(told), reasoning, str(value), numbers, "story")


def _slots_of(spoken: Language, language: str, values: dict[str, int], rng: Random) -> dict[str, str]:
    return {letter: written(number, language, rng) for letter, number in values.items()}


def _word(language: str, rng: Random) -> _Told | None:
    return _story(language, rng) if rng.random() < 0.2 else _situation("word")(language, rng)


# Letters, order, comparison


def _pattern(name: str, language: str, rng: Random, **values: str) -> str:
    spoken = SPOKEN[language]
    values = _slots(spoken, language, {}, rng) | {"gap": spoken.gap} | values
    return fill(expand(rng.choice(spoken.other[name]), rng), values)


def _some_word(language: str, rng: Random) -> str:
    """A word of the tables, or one that does not exist, so that its spelling has to be known from its pieces."""
    if language in ("en", "es") or rng.random() < 0.3:
        source = language if language == "es" else "en"
        if rng.random() < 0.5:
            return rng.choice(rng.choice(SPOKEN[source].things).split(" ")[:2])
        return "".join(rng.choice(_SYLLABLES[place % 2]) for place in range(rng.randint(2, 7)))
    letters = "".join(thing.split(" ")[0] for thing in rng.sample(SPOKEN[language].things, 3))
    word = "".join(rng.choice(letters) for _ in range(rng.randint(2, 5)))
    return word + (rng.choice(word) if rng.random() < 0.5 else "")


def _letters(language: str, rng: Random) -> _Told | None:
    word = _some_word(language, rng).replace("_", "").lower()
    asked = rng.choice(word) if rng.random() < 0.93 else rng.choice("aeiorst")
    quoted = rng.choice(_QUOTES)
    numbers = (zlib.crc32(word.encode()), ord(asked))
    if rng.random() < 0.35:
        walk = " ".join(f"{letter}{place}" for place, letter in enumerate(word, 1))
        question = _pattern("length", language, rng, w=quoted.format(w=word))
        return _Told(question, walk + ".", str(len(word)), (numbers[0],), "length")
    count, steps = 0, []
    for letter in word:
        count += letter == asked
        steps.append(f"{letter}{count}")
    mark = rng.choice(("{w}", "{w}", '"{w}"', "'{w}'")) if "'" not in quoted else "{w}"
    question = _pattern("letter", language, rng, w=quoted.format(w=word), x=mark.format(w=asked))
    return _Told(question, f"{asked}: {' '.join(steps)}.", str(count), numbers, "letter")


def _listed(numbers: Sequence[int], language: str, rng: Random) -> str:
    if rng.random() < 0.2 and len(numbers) > 2:
        return " ".join(map(str, numbers))
    gaps = {"zh": ("、", "，", ", ", "、"), "ja": ("、", "、", ", ")}.get(language, (", ", ", ", ","))
    text = rng.choice(gaps).join(map(str, numbers))
    last = {"en": " and ", "es": " y "}.get(language)
    return last.join(text.rsplit(", ", 1)) if last and rng.random() < 0.35 else text


def _several(rng: Random, count: int, language: str) -> list[int]:
    kind = rng.choice("ttn")
    found = {draw(kind, language, rng) for _ in range(count)}
    return rng.sample(sorted(found), len(found))


def _order(language: str, rng: Random) -> _Told | None:
    kind = rng.choice(("up", "up", "down", "least", "most"))
    numbers = _several(rng, rng.randint(3, 6), language)
    if len(numbers) < 3 or sum(len(str(n)) for n in numbers) > 15:
        return None
    question = _pattern(kind, language, rng, l=_listed(numbers, language, rng))
    if kind in ("up", "down"):
        trace, done = insertion_trace(numbers, kind == "down")
        value = ", ".join(map(str, done))
        return _Told(question, trace, value, numbers, kind, TABLES[language].list_answer.format(v=value))
    best, steps = numbers[0], [str(numbers[0])]
    for n in numbers[1:]:
        sign = ">" if n > best else "<"
        best = max(best, n) if kind == "most" else min(best, n)
        steps.append(f"{n}{sign}{steps[-1].split(' ')[-1]} {best}")
    return _Told(question, f"{'>' if kind == 'most' else '<'}: {', '.join(steps)}.", str(best), numbers, kind)


def _comparison(language: str, rng: Random) -> _Told | None:
    kind = rng.choice(("larger", "smaller", "is_more", "is_less", "who_more", "who_less", "frame", "frame"))
    if kind == "frame":
        return _situation("comparison")(language, rng)
    a, b = draw("n", language, rng), draw("n", language, rng)
    if rng.random() < 0.5:  # digits that change places
        b = int("".join(rng.sample(str(a), len(str(a)))))
    if a == b or b < 1:
        return None
    spoken, trace = SPOKEN[language], f"{a}{'>' if a > b else '<'}{b}."
    p, q = (rng.choice(spoken.people).split(" ")[0].replace("_", " ") for _ in range(2))
    shown = {"a": written(a, language, rng), "b": written(b, language, rng)}
    question = _pattern(kind, language, rng, p=p, q=q, **shown)
    if kind in ("larger", "smaller"):
        value = str(max(a, b) if kind == "larger" else min(a, b))
        return _Told(question, f"{trace} {value}.", value, (a, b), kind)
    if kind in ("is_more", "is_less"):
        value = spoken.yes_no[int((a > b) != (kind == "is_more"))]
        return _Told(question, trace, value, (a, b), kind, value)
    if p == q:
        return None
    value = p if (a > b) == (kind == "who_more") else q
    return _Told(question, f"{p} {a}, {q} {b}. {trace} {value}.", value, (a, b), kind)


# The calendar, clocks, units


def _calendar(language: str, rng: Random) -> _Told | None:
    kind = rng.choice(
        ("day_after", "day_after", "day_before", "tomorrow", "yesterday", "over", "clock", "frame", "frame")
    )
    if kind == "frame":
        return _situation("calendar")(language, rng)
    if kind == "clock":
        return _clock(language, rng)
    tables, start = TABLES[language], rng.randrange(7)
    days = {"tomorrow": 1, "yesterday": -1, "over": 2}.get(kind) or rng.randint(2, 30) * (-1 if "before" in kind else 1)
    day, spoken_days = tables.weekdays[start], abs(days)
    shown = str(spoken_days)
    if language == "zh" and spoken_days == 2:
        shown = "两"
    question = _pattern(kind, language, rng, d=day, n=shown)
    rest = spoken_days % 7
    sign = 1 if days > 0 else -1
    walk = [tables.weekdays[(start + sign * step) % 7] for step in range(rest + 1)]
    steps = [walk[0], *(f"{step} {name}" for step, name in enumerate(walk[1:], 1))]
    weeks = f" {spoken_days}-{spoken_days - rest}={rest}." if spoken_days > 6 else f" {rest}."
    reasoning = f"{tables.forward if sign > 0 else tables.back}{weeks} {', '.join(steps)}."
    return _Told(question, reasoning, walk[-1], (start, days), kind, tables.weekday_answer.format(v=walk[-1]))


def _clock(language: str, rng: Random) -> _Told | None:
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
    question = _pattern("clock", language, rng, t=shown, n=str(lasts))
    value = f"{at}:{later:02}"
    if trace[-1] != f"{value}.":
        trace.append(f"{value}.")
    return _Told(question, " ".join(trace), value, (hour, minute, lasts), "clock")


def _units(language: str, rng: Random) -> _Told | None:
    spoken = SPOKEN[language]
    big, small, factor = rng.choice(spoken.units)
    count, rest = draw("s" if rng.random() < 0.6 else "t", language, rng), rng.randint(1, factor - 1)
    direction = rng.choice(("down", "down", "up", "mixed"))
    if direction == "mixed":
        if factor < 10:
            return None
        rest = rest - rest % 50 if factor == 1000 and rest > 50 else rest
        shown = {"a": str(count), "b": big, "c": str(rest), "s": small}
        question, expression = _pattern("unit_mixed", language, rng, **shown), f"{count}*{factor}+{rest}"
    elif direction == "up":
        number = count * factor
        shown = {"a": written(number, language, rng), "b": small, "s": big}
        question, expression = _pattern("unit_down", language, rng, **shown), f"{number}/{factor}"
    else:
        question = _pattern("unit_down", language, rng, a=str(count), b=big, s=small)
        expression = f"{count}*{factor}"
    reasoning, value = solve(expression)
    return _Told(question, reasoning, str(value), (count, rest, factor), direction)


def _chat(language: str, rng: Random) -> _Told | None:
    """Plain conversation of the first edition, and open questions, to which the honest answer is always the same."""
    if rng.random() < 0.6:
        said = chat.build("train", language, rng)
        return _Told(said.question, said.reasoning, said.value, (), "chat", said.answer)
    unknown = INTENTS[language]["unknown"]
    question = _pattern("unknown", language, rng, y=str(draw("y", language, rng)))
    return _Told(question, unknown.reasoning, unknown.answer, (), "unknown", unknown.answer)


_BUILDERS = {
    "arithmetic": _expression,
    "word": _word,
    "counting": _letters,
    "sorting": _order,
    "calendar": _calendar,
    "comparison": _comparison,
    "units": _units,
    "chat": _chat,
}


# How people type


def as_typed(question: str, language: str, rng: Random) -> str:
    """The question with the habits of a keyboard: greetings, missing marks, half or full width, lower case."""
    spoken = SPOKEN[language]
    question = join_particles(question).strip()
    if rng.random() < 0.06:
        question = rng.choice(spoken.before) + question
    if rng.random() < 0.04:
        question += rng.choice(spoken.after)
    if rng.random() < 0.12:
        question = question.rstrip("?.!。？！")
    if language in ("en", "es"):
        return _latin(question, language, rng)
    if rng.random() < 0.06:
        return full_width(question)
    return "".join(_WIDE.get(c, c) for c in question) if rng.random() < 0.12 else question


def _latin(question: str, language: str, rng: Random) -> str:
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:] if rng.random() < 0.5 else question.lower()
    if language == "es" and rng.random() < 0.1:
        question = question.replace("¿", "")
        plain = unicodedata.normalize("NFD", question)
        question = unicodedata.normalize("NFC", re.sub("(?<=[aeiouAEIOU])\u0301", "", plain))
    return question[0].upper() + question[1:] if rng.random() < 0.7 else question
