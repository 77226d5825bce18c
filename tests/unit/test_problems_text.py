"""The text tables: enough wordings, held-out wordings made of known words, Korean particles, Spanish agreement."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

import pytest

from axk1.tasks import LANGUAGES, TASKS, answer_language, conversations, dialogues, generate, is_held_out
from axk1.tasks.language import join_particles
from axk1.tasks.text import INTENTS, PREFIXES, TABLES
from axk1.tasks.types import Pool


def pools(language: str) -> Iterator[tuple[str, Pool]]:
    """(name, pool) of every pool of wordings of one language; names of people are not wordings."""
    for field in dataclasses.fields(TABLES[language]):
        value = getattr(TABLES[language], field.name)
        if isinstance(value, Pool) and field.name != "names":
            yield field.name, value
        elif isinstance(value, dict):
            yield from ((f"{field.name}.{key}", pool) for key, pool in value.items() if isinstance(pool, Pool))
    yield from ((f"chat.{name}", intent.says) for name, intent in INTENTS[language].items())


def words(language: str, text: str) -> set[str]:
    """Words where the language writes spaces between them, characters where it does not or where they are inflected."""
    text = re.sub(r"\{\w+\}", " ", text)
    return set(re.findall(r"\w+", text.lower()) if language in ("en", "es") else re.sub(r"\s", "", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_wordings_are_other_sentences_of_known_words(language: str) -> None:
    known = {word for _, pool in pools(language) for text in pool.train for word in words(language, text)}
    for name, pool in pools(language):
        assert len(set(pool.train + pool.heldout)) == len(pool.train) + len(pool.heldout), name
        assert len(pool.heldout) >= 2, name
        for text in pool.heldout:
            assert words(language, text) <= known, (name, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_wordings_to_learn_from(language: str) -> None:
    tables = TABLES[language]
    assert len(tables.opening.train) >= 8 and len(tables.closing.train) >= 5
    assert set(tables.events) == {"gain", "lose", "double", "boxes", "share"}
    assert all(len(pool.train) >= 6 for pool in tables.events.values())
    assert set(tables.names.train).isdisjoint(tables.names.heldout)
    assert set(INTENTS[language]) == set(INTENTS["en"])
    assert all(len(intent.says.train) >= 8 for intent in INTENTS[language].values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_wordings_use_the_slots_of_the_english_ones(language: str) -> None:
    english = dict(pools("en"))
    optional = {"name", "item", "c", "q", "Q", "los", "todos"}
    for name, pool in pools(language):
        for text in pool.train + pool.heldout:
            slots = set(re.findall(r"\{(\w+)\}", text)) - optional
            assert slots == set(re.findall(r"\{(\w+)\}", english[name].train[0])) - optional, (name, text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_conversation_is_told_apart_by_language(language: str) -> None:
    for intent in INTENTS[language].values():
        assert answer_language(intent.answer) == language
    answers = [intent.answer for intent in INTENTS[language].values()]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_greeting_before_a_training_sentence_gives_no_held_out_one(language: str) -> None:
    def said(text: str) -> str:
        return re.sub(r"\W", "", text).lower()

    for name in ("who", "can", "feeling", "human", "languages", "think", "maker", "unknown"):
        says = INTENTS[language][name].says
        in_train = {said(prefix + text) for prefix in ("", *PREFIXES[language]) for text in says.train}
        assert in_train.isdisjoint({said(text) for text in says.heldout}), name


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("민준은(는) 책을(를) 14권을(를)", "민준은 책을 14권을"),
        ("지우은(는) 사과이(가) 3개이(가)", "지우는 사과가 3개가"),
        ("3+40은(는) 3+45을(를) 3+7은(는) 2은(는) 6과(와)", "3+40은 3+45를 3+7은 2는 6과"),
        ("5-(2+4)은(는) 5-(2+3)을(를)", "5-(2+4)는 5-(2+3)을"),
        ("서울(으)로 집(으)로 학교(으)로", "서울로 집으로 학교로"),
    ],
)
def test_korean_particles(text: str, joined: str) -> None:
    assert join_particles(text) == joined


def test_korean_questions_carry_the_right_particles() -> None:
    for problem in itertools.islice(generate("train", 5, tasks=["word"], languages=["ko"]), 500):
        for before, particle in re.findall(r"([가-힣])(은|는|을|를) ", problem.question):
            final = (ord(before) - ord("가")) % 28 > 0
            assert final == (particle in "은을") or before + particle in ("보는",), problem.question


def test_spanish_interrogatives_agree_with_their_item() -> None:
    feminine = {item["item"] for item in TABLES["es"].items if item["los"] == "las"}
    asked = 0
    for problem in itertools.islice(generate("train", 6, tasks=["word"], languages=["es"]), 800):
        for ending, item in re.findall(r"¿Cuánt([ao]s) (\w+) (?:tiene|quedan|hay)", problem.question):
            assert (ending == "as") == (item in feminine), problem.question
            asked += 1
    assert asked > 100


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_follow_ups_go_on_from_the_previous_answer(split: str) -> None:
    follow_ups = 0
    for first, second in itertools.islice(dialogues(split, 2), 3000):  # pyright: ignore[reportArgumentType]
        assert first.language == second.language and {first.split, second.split} == {split}
        assert {first.task, second.task} <= set(TASKS)
        if re.search(r"/(add|subtract):", second.template):
            follow_ups += 1
            change = int(re.findall(r"\d+", second.question)[0]) * (1 if "/add:" in second.template else -1)
            assert int(second.value) == int(first.value) + change >= 0
            assert second.reasoning.startswith(first.value)
            assert is_held_out("arithmetic", second.numbers) == (split == "heldout")
            assert f"/{'t' if split == 'train' else 'h'}" in second.template.replace(":", "/")
    assert follow_ups > 100


def test_conversations_are_two_turns_with_reasoning_on_the_replies() -> None:
    for turns in itertools.islice(conversations("train", 1), 300):
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
        assert all(turn["content"] for turn in turns)
        assert all(turn.get("reasoning_content") for turn in turns[1::2])
        assert all("reasoning_content" not in turn for turn in turns[::2])
