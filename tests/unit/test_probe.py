"""The probe set: answers found another way, kinds and languages in number, and nothing like it in training."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from axk1.tasks import LANGUAGES, score
from axk1.tasks.probe import Probe, as_problem, normalised, probes, resembles
from axk1.tasks.situations import TASKS
from axk1.tasks.text import INTENTS, TABLES
from axk1.train.examples import problem_examples


def expected(probe: Probe) -> str:
    """The value of its `check`, written as an answer."""
    week = TABLES[probe.language].weekdays

    def day(start: int, later: int) -> str:
        return week[(start + later) % 7]

    def clock(hour: int, minute: int, lasts: int) -> str:
        return f"{hour + (minute + lasts) // 60}:{(minute + lasts) % 60:02}"

    value: Any = eval(probe.check, {"day": day, "clock": clock})
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def test_answers_are_what_their_checks_give() -> None:
    for probe in probes():
        assert (probe.answer == "unknown") == (not probe.check)
        if probe.check:
            assert expected(probe) == probe.answer, probe


def test_there_are_enough_of_each_language_and_kind() -> None:
    assert len({normalised(probe.question) for probe in probes()}) == len(probes()) >= 300
    assert min(Counter(probe.language for probe in probes()).values()) >= 60
    assert {(probe.language, probe.kind) for probe in probes()} == set(itertools.product(LANGUAGES, TASKS))


def test_no_two_of_a_language_are_one_sentence_with_other_numbers() -> None:
    for language in LANGUAGES:
        shapes = Counter(re.sub(r"\d+", "0", normalised(p.question)) for p in probes() if p.language == language)
        repeated = [shape for shape, count in shapes.items() if count > 1 and re.search(r"[^\W\d]", shape)]
        assert not repeated


@pytest.mark.parametrize("question", ["what is 305 minus 128", "WHAT IS 305 MINUS 128 ?", "What is ３０５ minus 128？"])
def test_a_probe_is_known_in_other_clothes(question: str) -> None:
    assert resembles(question) and not resembles(question.replace("128", "129"))


def test_a_long_part_of_a_probe_is_known() -> None:
    assert resembles("Well: the kids eat 29 of them and grandma puts in 7 lemons.")
    assert resembles("엄마가 말했다. 냉장고에 귤 43개가 있었는데 아빠가 17개 드셨다.")
    assert not resembles("The kids eat 29 plums and grandma puts in 7 lemons.")


def of_length(text: str, length: int) -> set[str]:
    """Pieces of a text of figures and letters alone."""
    text = re.sub(r"[\W_]", "", text.lower())
    return {text[at : at + length] for at in range(len(text) - length + 1)}


def test_training_holds_no_probe_and_no_long_part_of_one() -> None:
    """By letters, where the filter goes by words: 45 letters of Latin are more than 8 words as a rule."""
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "models" / "nano")
    drawn = problem_examples(tokenizer, 21, think=0.5, dialogue=0.0, learn_prompt=False, templates=0.2)
    ids = [example.input_ids for example in itertools.islice(drawn, 4_000)]
    asked = {piece for probe in probes() if probe.check for piece in of_length(probe.question, 45)}
    exactly = {normalised(probe.question) for probe in probes()}
    for text in tokenizer.batch_decode(ids):
        question = text.split("user\n")[-1].split("<|im_end|>")[0]
        assert normalised(question) not in exactly and asked.isdisjoint(of_length(question, 45)), question


def of_kind(kind: str, language: str = "en") -> Probe:
    return next(probe for probe in probes() if (probe.kind, probe.language) == (kind, language))


@pytest.mark.parametrize(
    ("probe", "reply", "is_right"),
    [
        (of_kind("arithmetic"), "The answer is 177.", True),
        (of_kind("arithmetic"), "The answer is 1177.", False),
        (of_kind("arithmetic"), "It is 177, not 178.", False),
        (Probe("en", "word", "", "1250", ""), "That makes 1,250.", True),
        (Probe("en", "arithmetic", "", "-8", ""), "The answer is 8.", False),
        (of_kind("sorting"), "The order is 7, 19, 42, 88.", True),
        (of_kind("sorting"), "The order is 7, 42, 19, 88.", False),
        (Probe("ko", "calendar", "", "3:20", ""), "답은 3:20입니다.", True),
        (Probe("ko", "calendar", "", "금요일", ""), "금요일입니다.", True),
        (Probe("ko", "calendar", "", "금요일", ""), "금요일, 토요일입니다.", False),
        (Probe("ja", "comparison", "", "いいえ", ""), "いいえ。", True),
        (Probe("ja", "comparison", "", "いいえ", ""), "はい。", False),
        (Probe("en", "comparison", "", "Ann", ""), "The answer is Ann.", True),
        (Probe("en", "comparison", "", "Ann", ""), "The answer is Tom.", False),
        (Probe("es", "chat", "", "unknown", ""), INTENTS["es"]["unknown"].answer, True),
        (Probe("es", "chat", "", "unknown", ""), "La respuesta es 7.", False),
    ],
)
def test_replies_are_judged(probe: Probe, reply: str, is_right: bool) -> None:
    assert score(as_problem(probe), reply) is is_right
