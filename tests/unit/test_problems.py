"""The train and held-out split of the problems, and every trace replayed by code that shares none of theirs."""

from __future__ import annotations

import datetime
import itertools
import re
import subprocess
import sys
from collections import Counter

import pytest

from axk1.tasks import LANGUAGES, TASKS, Problem, answer_language, generate, is_held_out, score

TRAIN, HELDOUT = 20_000, 10_000
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
WEEKDAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "ko": ["월요일", "화요일", "수요일", "목요일", "금요일", "토요일", "일요일"],
    "zh": ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"],
    "ja": ["月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"],
    "es": ["lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"],
}


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return list(itertools.islice(generate("train", 11), TRAIN))


@pytest.fixture(scope="module")
def heldout() -> list[Problem]:
    return list(itertools.islice(generate("heldout", 11), HELDOUT))


@pytest.fixture(scope="module")
def every(train: list[Problem], heldout: list[Problem]) -> list[Problem]:
    return train + heldout


def of_task(problems: list[Problem], task: str) -> list[Problem]:
    found = [problem for problem in problems if problem.task == task]
    assert len(found) > 200
    return found


def integers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def test_no_numbers_name_or_template_is_in_both_splits(train: list[Problem], heldout: list[Problem]) -> None:
    for task in TASKS:
        if task != "chat":
            in_train = {p.numbers for p in of_task(train, task)}
            assert in_train.isdisjoint({p.numbers for p in of_task(heldout, task)})
    assert {n for p in train for n in p.names}.isdisjoint({n for p in heldout for n in p.names})

    def slots(problems: list[Problem]) -> set[str]:
        return {f"{p.task}/{p.language}/{slot}" for p in problems for slot in p.template.split("/")[2:] if ":" in slot}

    assert len(slots(train)) > 1000
    assert slots(train).isdisjoint(slots(heldout))


def test_no_question_is_in_both_splits(train: list[Problem], heldout: list[Problem]) -> None:
    def normalised(problem: Problem) -> str:
        return problem.language + re.sub(r"[^\w+*×()-]", "", problem.question).lower()

    assert {normalised(p) for p in train}.isdisjoint({normalised(p) for p in heldout})


def test_numbers_are_held_out_by_a_hash_that_never_changes(every: list[Problem]) -> None:
    assert [n for n in range(60) if is_held_out("word", (n,))] == HELD_OUT_BELOW_60
    for problem in every:
        assert problem.task == "chat" or is_held_out(problem.task, problem.numbers) == (problem.split == "heldout")


HELD_OUT_BELOW_60 = [8, 20, 31, 35, 46]


def test_every_equation_of_every_trace_is_right(every: list[Problem]) -> None:
    seen: Counter[str] = Counter()
    for problem in every:
        for left, operator, right, result in EQUATION.findall(problem.reasoning):
            a, b, c = int(left), int(right), int(result)
            right_value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
            assert right_value == c, problem
            assert 0 <= c < 1000
            seen[operator] += 1
    assert set(seen) == set("+-*/")


def test_sums_and_differences_of_two_digits_go_by_tens_and_units(every: list[Problem]) -> None:
    text = "\n".join(p.reasoning for p in every)
    written = re.findall(r"(\d+)([-+])(\d+): (\d+)([-+])(\d+)=(\d+), (\d+)([-+])(\d+)=\d+", text)
    assert len(written) == len(re.findall(r"[-+]\d+:", text)) > 5000
    for left, sign, right, first, sign_1, tens, between, second, sign_2, units in written:
        assert (first, tens, second, units) == (left, f"{right[:-1]}0", between, right[-1])
        assert sign == sign_1 == sign_2
    assert not re.search(r"\d[-+]\d*[1-9][1-9]=", " ".join(p.reasoning for p in every if p.task == "word"))


def test_arithmetic_traces_rewrite_the_question_into_its_value(every: list[Problem]) -> None:
    for problem in of_task(every, "arithmetic"):
        asked = max(re.findall(r"[\d(][\d+\-*×() ]*[\d)]", problem.question), key=len).replace("×", "*")
        expression = re.sub(r"\s", "", asked)
        for sentence in problem.reasoning.rstrip(".").split(". "):
            left, result = re.split("[:=]", sentence)[0], sentence.rpartition("=")[2]
            if "=" in sentence:
                assert left in expression, problem
                expression = (
                    expression.replace(f"({left})", result, 1)
                    if f"({left})" in expression
                    else replace(expression, left, result)
                )
            else:
                assert left == expression, problem
        assert expression == problem.value == str(eval(asked)), problem
        assert problem.multi_step == (len(re.findall(r"[-+*]", asked)) > 1)


def replace(expression: str, left: str, result: str) -> str:
    """The first occurrence of `left` that is not the end or the beginning of a longer number."""
    return re.sub(rf"(?<!\d){re.escape(left)}(?!\d)", result, expression, count=1)


def test_word_traces_follow_the_events_of_the_question(every: list[Problem]) -> None:
    for problem in of_task(every, "word"):
        assert integers(re.sub(r"2(倍|つ分)", "", problem.question)) == in_order_of_question(problem)
        numbers, current = list(problem.numbers), 0
        expected: list[tuple[int, ...]] = []
        for slot in problem.template.split("/")[2:]:
            kind = slot.partition(":")[0]
            before = current
            if kind == "open":
                current = numbers.pop(0)
            elif kind in ("packed", "boxes"):
                product = numbers.pop(0) * numbers.pop(0)
                current = before + product
            elif kind == "double":
                current = 2 * before
            elif kind in ("gain", "lose"):
                current = before + numbers.pop(0) * (1 if kind == "gain" else -1)
            elif kind == "share":
                people = numbers.pop(0)
                assert before % people == 0
                current = before // people
            if kind != "ask":
                expected.append((before, current))
        sentences = [s for s in problem.reasoning.rstrip(".").split(". ")]
        assert not numbers and len(sentences) == len(expected), problem
        for sentence, (before, after) in zip(sentences, expected, strict=True):
            assert integers(sentence)[-1] == after, problem
            operation = re.findall(r"(\d+)[-+*/]\d+(?=:|=|$)", sentence.rpartition(":")[0] or sentence)[-1:]
            assert not operation or before == 0 or int(operation[0]) == before, problem
        assert str(current) == problem.value
        assert 2 <= len(EQUATION.findall(problem.reasoning)) - problem.reasoning.count(":") <= 4


def in_order_of_question(problem: Problem) -> list[int]:
    """The problem's numbers as its question says them: Korean and Japanese name a box's content before the boxes."""
    said = integers(re.sub(r"2倍", "", problem.question))
    assert sorted(said) == sorted(problem.numbers), problem
    return said


def test_counting_traces_walk_through_the_list(every: list[Problem]) -> None:
    for problem in of_task(every, "counting"):
        head, _, walk = problem.reasoning.rstrip(".").partition(": ")
        steps = [(step.rsplit(" ", 2)[0], step.rsplit(" ", 1)[1]) for step in walk.split(", ")]
        signs = [step.rsplit(" ", 2)[1] for step in walk.split(", ")]
        gap = re.escape("、" if problem.language in ("zh", "ja") else ", ")
        if head[0] in "<>":
            bound, numbers = int(head[1:]), [int(re.split("[<>=]", step)[0]) for step, _ in steps]
            hits = [n > bound if head[0] == ">" else n < bound for n in numbers]
            for (step, _), n in zip(steps, numbers, strict=True):
                assert step == f"{n}{'>' if n > bound else '<' if n < bound else '='}{bound}"
            items, said = [str(n) for n in numbers], str(bound)
        else:
            positions, items = zip(*[step.split(" ", 1) for step, _ in steps], strict=True)
            assert positions == tuple(str(i + 1) for i in range(len(steps)))
            said, hits = head, [item == head for item in items]
            items = [f"{i + 1}) {item}" for i, item in enumerate(items)]
        joined = gap.join(map(re.escape, items))
        assert re.search(rf"(?<!\d){joined}(?!\d)", problem.question), problem
        assert said in problem.question
        assert [int(count) for _, count in steps] == list(itertools.accumulate(hits)), problem
        assert signs == ["+" if hit else "-" for hit in hits]
        assert problem.value == str(sum(hits))


def test_sorting_traces_insert_one_number_at_a_time(every: list[Problem]) -> None:
    picked = Counter()
    for problem in of_task(every, "sorting"):
        inserted, _, pick = problem.reasoning.partition(".")
        steps = [line.rsplit(":", 1) for line in inserted.split(";")]
        lists = [integers(line) for _, line in steps]
        asked = max(re.findall(r"\d+(?:(?:, |、)\d+)+", problem.question), key=len)
        numbers, descending = integers(asked), lists[-1] != sorted(lists[-1])
        for i, line in enumerate(lists):
            assert line == sorted(numbers[: i + 1], reverse=descending), problem
            assert integers(steps[i][0]) == [numbers[i]], problem
        assert len(lists) == len(numbers) and inserted[0] == "<>"[descending]
        if problem.multi_step:
            k = integers(pick)[0]
            assert integers(pick)[1:] == [n for i in range(k) for n in (i + 1, lists[-1][i])], problem
            assert problem.value == str(lists[-1][k - 1])
        else:
            assert problem.value == ", ".join(map(str, lists[-1]))
        picked[re.split("[/:]", problem.template)[2], descending] += 1
    kinds = {("sort_up", False), ("sort_down", True), ("kth_small", False), ("kth_large", True), ("median", False)}
    assert set(picked) == kinds


def test_calendar_traces_step_to_the_day_that_datetime_finds(every: list[Problem]) -> None:
    for problem in of_task(every, "calendar"):
        days = WEEKDAYS[problem.language]
        start, n, m = problem.numbers
        asked = re.sub(r"\{|\}", "", problem.question)
        assert days[start] in asked
        assert sorted(integers(asked)) == sorted(abs(x) for x in (n, m) if x), problem
        monday = datetime.date(2024, 1, 1)
        target = monday + datetime.timedelta(days=start + n + m)
        assert problem.value == days[target.weekday()], problem
        walk = [step.split(" ")[-1] for step in problem.reasoning.split(". ")[-1].rstrip(".").split(", ")]
        sign = -1 if n < 0 else 1
        assert walk == [days[(start + sign * i) % 7] for i in range(len(walk))]
        assert walk[-1] == problem.value and len(walk) <= 7


def test_answers_are_scored_right_and_altered_answers_wrong(every: list[Problem]) -> None:
    for problem in every[::3]:
        assert score(problem, problem.answer), problem
        assert not score(problem, ""), problem
        if problem.task == "calendar":
            days = WEEKDAYS[problem.language]
            other = days[(days.index(problem.value) + 1) % 7]
            assert not score(problem, problem.answer.replace(problem.value, other))
            assert not score(problem, f"{other}, {problem.answer}")
        elif problem.task == "chat":
            assert not score(problem, problem.answer[:-4])
        elif "," in problem.value:
            assert not score(problem, ", ".join(reversed(problem.value.split(", "))))
            assert not score(problem, problem.value.rsplit(",", 1)[0])
        else:
            assert not score(problem, problem.answer.replace(problem.value, str(int(problem.value) + 1)))
            assert not score(problem, problem.answer.replace(problem.value, f"1{problem.value}"))


def test_replies_are_in_the_language_of_the_question_and_name_nobody(every: list[Problem]) -> None:
    for problem in every:
        assert answer_language(problem.answer) == problem.language, problem
        assert not any(name in problem.reasoning or name in problem.answer for name in problem.names)
        assert "{" not in problem.question and "(는)" not in problem.question and "(가)" not in problem.question


def test_problems_are_short(every: list[Problem]) -> None:
    for problem in every:
        assert len(problem.question) <= 260 and len(problem.reasoning) <= 200, problem
        assert len(problem.answer) <= 110


def test_shares_of_tasks_and_languages(train: list[Problem]) -> None:
    tasks, languages = Counter(p.task for p in train), Counter(p.language for p in train)
    for task, share in {"arithmetic": 0.22, "word": 0.30, "counting": 0.14, "sorting": 0.12, "calendar": 0.14}.items():
        assert tasks[task] / TRAIN == pytest.approx(share, abs=0.015)
    for language in LANGUAGES:
        assert languages[language] / TRAIN == pytest.approx(0.2, abs=0.015)
    assert sum(p.template.endswith("/gym") for p in train) > 50


def test_streams_are_deterministic_in_the_seed() -> None:
    def first(seed: int) -> list[Problem]:
        return list(itertools.islice(generate("train", seed), 300))

    assert first(3) == first(3)
    assert len({p.question for p in first(3)} & {p.question for p in first(4)}) < 30


def test_selection_of_tasks_languages_and_weights() -> None:
    drawn = itertools.islice(generate("heldout", 0, tasks=["word", "chat"], languages=["ko"], weights={"word": 1}), 50)
    assert {(p.task, p.language) for p in drawn} == {("word", "ko")}


@pytest.mark.parametrize(
    "arguments",
    [{"tasks": ["wrod"]}, {"languages": ["de"]}, {"languages": []}, {"weights": {"word": 0.0}}],
)
def test_unknown_selection_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"tasks|languages|weights"):
        generate("train", 0, **arguments)
    with pytest.raises(ValueError, match="split"):
        generate("test", 0)  # pyright: ignore[reportArgumentType]


def test_import_needs_no_torch() -> None:
    code = "import sys, axk1.tasks; sys.exit('torch' in sys.modules or 'reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
