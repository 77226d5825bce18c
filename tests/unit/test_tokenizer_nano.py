"""The committed tokenizer of the nano: its contract, and how short it makes the nano's problems."""

from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from axk1.tasks import LANGUAGES, generate
from axk1.tokenizer.special_tokens import NAMED_TOKENS, NANO_SLOTS
from axk1.tokenizer.train import TEMPLATE_FILE, chat_template

FOLDER = Path(__file__).parents[2] / "models" / "nano"
VOCAB_SIZE = 6144


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_vocabulary_and_special_ids(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    for token in NAMED_TOKENS:
        assert tokenizer.convert_tokens_to_ids(token.text) == VOCAB_SIZE - NANO_SLOTS + token.offset
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|pad|>",
    )


def test_every_digit_is_one_token_and_no_token_has_more(tokenizer):
    pieces = [tokenizer.decode([index]) for index in range(VOCAB_SIZE - NANO_SLOTS)]
    assert sorted(piece for piece in pieces if any(digit in piece for digit in "0123456789")) == list("0123456789")


def test_the_template_is_the_packages(tokenizer):
    assert (FOLDER / TEMPLATE_FILE).read_text(encoding="utf-8") == chat_template() == tokenizer.chat_template


@pytest.mark.parametrize("language", LANGUAGES)
def test_problems_are_short_and_round_trip(tokenizer, language):
    problems = list(islice(generate("heldout", 1, languages=[language]), 200))
    for problem in problems:
        assert tokenizer.decode(tokenizer(problem.question)["input_ids"]) == problem.question
    characters = sum(len(problem.question) for problem in problems)
    tokens = sum(len(tokenizer(problem.question)["input_ids"]) for problem in problems)
    assert characters / tokens > {"en": 2.4, "ko": 1.2, "zh": 1.1, "ja": 1.2, "es": 2.4}[language]
