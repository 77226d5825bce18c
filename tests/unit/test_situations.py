"""The second edition's problems: every trace replayed digit by digit, every answer found again from its question."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from fractions import Fraction
from random import Random

import pytest

from axk1.tasks import LANGUAGES, Problem, answer_language, is_held_out, score
from axk1.tasks.situations import TASKS, both_editions, situations
from axk1.tasks.situations.columns import operation, solve
from axk1.tasks.situations.frames import FRAMES
from axk1.tasks.situations.grammar import expand, fill, language
from axk1.tasks.situations.told import slots_of
from axk1.tasks.text import TABLES

WEEK = {name: TABLES[name].weekdays for name in LANGUAGES}


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return list(itertools.islice(situations("train", 3), 12_000))


@pytest.fixture(scope="module")
def heldout() -> list[Problem]:
    return list(itertools.islice(situations("heldout", 3), 3_000))


def of(problems: list[Problem], *tasks: str) -> list[Problem]:
    found = [problem for problem in problems if problem.task in tasks]
    assert len(found) > 300
    return found


def exact(expression: str) -> Fraction:
    """The value of an expression by Python's own rules, without rounding."""
    return eval(re.sub(r"(\d+)", r"Fraction(\1)", expression), {"Fraction": Fraction})


# Columns


@pytest.mark.parametrize("operator", "+-*/")
def test_columns_give_what_arithmetic_gives(operator: str) -> None:
    rng = Random(operator)
    for _ in range(1_500):
        left, right = (
            rng.randrange(10 ** rng.randint(1, 5)),
            rng.randrange(1, 10 ** rng.randint(1, 2 + (operator in "+-") * 2)),
        )
        left = left * right if operator == "/" else max(left, 1)
        text = operation(left, operator, right)
        assert text.endswith(f"={exact(f'{left}{operator}{right}')}."), text
        replay(text)


def replay(text: str) -> None:
    """Every `a+b+1=c;rest` and `a/b=crd;rest` is right, and the digits beside it grow by those of its result."""
    done = ""
    for sentence in re.split(r"\. |\.$", text):
        steps = re.findall(r"([\d+*/-]+)=(\d+)(?:r(\d+))?;(\d+)", sentence)
        done = ""
        for number, (left, result, rest, shown) in enumerate(steps, 1):
            if "/" in left:
                a, b = map(int, left.split("/"))
                assert divmod(a, b) == (int(result), int(rest)), text
                done += result
            else:
                assert exact(left) == int(result), text
                done = (result if number == len(steps) else result[-1]) + done
            assert shown == done, text
        if steps:
            end = re.search(r"=(\d+)$", sentence)
            assert end is not None, text
            head = re.match(r"[\d*/=+-]+", sentence)
            zeros = end[1][len(done.lstrip("0")) or 1 :] if int(done) else ""
            assert int(done + zeros) == int(end[1]) and set(zeros) <= {"0"}, (text, head)


def test_an_expression_is_reduced_to_its_value_step_by_step() -> None:
    for expression in ("(45-12)*2+7", "3000-450*3", "350*20/100", "2*3+4*5", "((2+3)*4-6)/7", "12-20", "7"):
        reasoning, value = solve(expression)
        assert value == exact(expression), reasoning
        rewritten = [text for text in reasoning.rstrip(".").split(". ") if re.fullmatch(r"[\d+*/()-]+", text)]
        assert all(exact(text) == value or "*" in text for text in rewritten)


def test_columns_refuse_to_go_on_below_zero() -> None:
    with pytest.raises(ValueError, match="below zero"):
        solve("3-5+1")


# Problems


def test_expressions_are_those_of_the_question(train: list[Problem]) -> None:
    """Read from the question by its signs alone, whatever their spelling."""
    signs = {"×": "*", "x": "*", "X": "*", "·": "*", "＊": "*", "÷": "/", "：": "/", ":": "/", "／": "/", "＋": "+"}
    signs |= {"－": "-", "−": "-", "–": "-"}
    checked = 0
    for problem in of(train, "arithmetic"):
        if problem.template.endswith("/signs"):
            figures = problem.question.translate({0xFEE0 + ord(c): c for c in "0123456789(),"})
            figures = re.sub(r"(?<=\d)[,.](?=\d{3}(?!\d))", "", figures)
            figures = "".join(signs.get(c, c) for c in figures)
            found = re.search(r"\(?\d+(?: ?[-+*/] ?\(?\d+\)?)+", figures)
            if found:
                expression = found[0].replace(" ", "")
                assert exact(expression) == int(problem.value), problem
                checked += 1
    assert checked > 800


def test_situations_use_the_numbers_of_their_question(train: list[Problem]) -> None:
    """Every number that the frame drew stands in the question, in figures or as a numeral."""
    for problem in of(train, "word", "comparison"):
        frame = FRAMES.get(problem.template.split("/")[-1])
        if frame is None:
            continue
        values = dict(zip("abcd", problem.numbers, strict=False))
        expression = re.sub("[a-d]", lambda found, values=values: str(values[found[0]]), frame.expression)
        assert exact(expression) == int(problem.value), problem
        text = re.sub(
            r"(?<=\d)[,.，](?=\d{3}(?!\d))", "", problem.question.translate({0xFF10 + i: str(i) for i in range(10)})
        )
        small = language(problem.language).small
        for number in problem.numbers:
            numeral = small[number - 1] if number <= len(small) else str(number)
            assert str(number) in text or numeral in text.lower(), problem


def test_letters_order_and_comparisons_are_right(train: list[Problem]) -> None:
    for problem in of(train, "counting"):
        word = [step[0] for step in re.findall(r"(\S)(\d+)(?=[ .])", problem.reasoning.split(": ")[-1])]
        assert "".join(word) in problem.question.lower().replace("＇", "'"), problem
        asked = problem.reasoning.split(":")[0]
        expected = word.count(asked) if ": " in problem.reasoning else len(word)
        assert problem.value == str(expected), problem
    for problem in of(train, "sorting"):
        kind, numbers = problem.template.split("/")[-1], list(problem.numbers)
        expected = {
            "up": sorted(numbers),
            "down": sorted(numbers)[::-1],
            "least": [min(numbers)],
            "most": [max(numbers)],
        }
        assert problem.value == ", ".join(map(str, expected[kind])), problem
    yes_no = {"is_more": lambda a, b: a > b, "is_less": lambda a, b: a < b}
    for problem in of(train, "comparison"):
        kind = problem.template.split("/")[-1]
        if kind in yes_no:
            assert problem.answer == language(problem.language).yes_no[not yes_no[kind](*problem.numbers)], problem


def test_days_hours_and_units_are_right(train: list[Problem]) -> None:
    seen: Counter[str] = Counter()
    for problem in of(train, "calendar"):
        kind = problem.template.split("/")[-1]
        if "day" in kind or kind in ("tomorrow", "over"):
            start, days = problem.numbers
            if kind != "days_between":
                assert problem.value == WEEK[problem.language][(start + days) % 7], problem
                seen["day"] += 1
        elif kind == "clock":
            hour, minute, lasts = problem.numbers
            total = 60 * hour + minute + lasts
            assert problem.value == f"{total // 60}:{total % 60:02}", problem
            seen["clock"] += 1
    for problem in of(train, "units"):
        count, rest, factor = problem.numbers
        kind = problem.template.split("/")[-1]
        expected = {"down": count * factor, "up": count, "mixed": count * factor + rest}
        assert problem.value == str(expected[kind]), problem
    assert seen["day"] > 100 and seen["clock"] > 30


def test_all_reasoning_is_right_column_by_column(train: list[Problem], heldout: list[Problem]) -> None:
    for problem in of(train + heldout, "arithmetic", "word", "units"):
        replay(problem.reasoning)
        assert problem.reasoning.endswith(f"={problem.value}."), problem


def test_the_first_edition_is_told_again_in_columns() -> None:
    for problem in itertools.islice(both_editions("train", 1, templates=1.0), 3_000):
        if problem.task in ("word", "arithmetic"):
            replay(problem.reasoning)
            assert problem.reasoning.endswith(f"={problem.value}."), problem


def test_splits_share_no_numbers_and_no_question(train: list[Problem], heldout: list[Problem]) -> None:
    for problem in train + heldout:
        assert not problem.numbers or is_held_out(problem.task, problem.numbers) == (problem.split == "heldout")
    said = {re.sub(r"\W", "", p.question.lower()) for p in train if p.task != "chat"}
    assert said.isdisjoint({re.sub(r"\W", "", p.question.lower()) for p in heldout if p.task != "chat"})


def test_streams_are_deterministic_and_cover_tasks_and_languages(train: list[Problem]) -> None:
    assert list(itertools.islice(situations("train", 3), 200)) == train[:200]
    assert {(p.task, p.language) for p in train} == set(itertools.product(TASKS, LANGUAGES))
    assert {p.template.split("/")[-1] for p in train} >= set(FRAMES)
    digits = Counter(len(str(n)) for p in of(train, "arithmetic") for n in p.numbers)
    assert digits[4] > 300


def test_answers_are_in_the_language_of_the_question(train: list[Problem]) -> None:
    for problem in train:
        kind = problem.template.split("/")[-1]
        assert kind.startswith(("who", "is_")) or answer_language(problem.answer) == problem.language, problem


def test_answers_are_scored_right_and_those_of_others_wrong(train: list[Problem]) -> None:
    by_task = {task: [p for p in train if p.task == task] for task in TASKS}
    for problem in train[::4]:
        assert score(problem, problem.answer) and not score(problem, ""), problem
        end = problem.value.split(" ")[-1]
        same = (p for p in by_task[problem.task] if p.language == problem.language)
        other = next(p for p in same if p.value.split(" ")[-1] != end)
        assert not score(problem, other.answer), (problem, other)


# Patterns


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_pattern_is_whole(name: str) -> None:
    """Every language tells every situation, and no bracket, bar or slot is left over."""
    spoken, rng = language(name), Random(name)
    assert set(spoken.frames) == set(FRAMES)
    assert set(spoken.other) == set(language("en").other) and set(spoken.events) == set(language("en").events)
    for frame, patterns in spoken.frames.items():
        values = {letter: 20 + place for place, letter in enumerate("abcd"[: len(FRAMES[frame].kinds)])}
        for pattern in patterns:
            for _ in range(8):
                told = fill(expand(pattern, rng), slots_of(spoken, name, values, rng))
                assert not re.search(r"[\[\]{}|]|\d:(?!\d\d)", told), (frame, told)
                assert all(str(value) in told for value in values.values()), (frame, told)


def test_choices_that_belong_together_take_the_same_place() -> None:
    rng = Random(0)
    told = {expand("[1:cat|box] [2:a|b] [1:dog|[1:x|bag]] [2:A|B]", rng) for _ in range(100)}
    assert told == {"cat a dog A", "cat b dog B", "box a bag A", "box b bag B"}
    with pytest.raises(KeyError):
        fill("{nobody}", {})
