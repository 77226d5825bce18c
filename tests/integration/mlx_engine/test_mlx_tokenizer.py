"""mlx-lm's tokenizer gives our ids and our prompts, and its streaming decoder gives the text back."""

# pyright: reportMissingImports=false

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer
from support import NANO
from tokenizers import Tokenizer

from axk1.chat.prompt import prompt_ids
from axk1.evaluation.held_out import held_out_problems

CODE = 'def f(x: list[int]) -> str:\n\treturn ", ".join(f"{i:>3}" for i in x if i != 0)  # 0x1F\r\n'
EMOJI = "👩‍👩‍👧‍👦 🇰🇷 👍🏽 🤖 e\u0301 한국어\u1112\u1161\u11ab"
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "17 + 25?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "그리고 9를 빼면? 👍"},
]


def random_texts(count: int) -> list[str]:
    """Valid text of any letters, mostly of small code points."""
    draw = random.Random(0)
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 24))) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(NANO)


def test_ids_and_texts(tokenizer) -> None:
    texts = [problem.question for problem in held_out_problems(200, seed=2)] + [CODE, EMOJI] + random_texts(10_000)
    plain = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == plain.encode(text, add_special_tokens=False).ids, text
        detokenizer = tokenizer.detokenizer
        for token in ids:
            detokenizer.add_token(token)
        detokenizer.finalize()
        assert detokenizer.text.removeprefix(" ") == text.removeprefix(" ")  # it leaves out a space at the beginning


@pytest.mark.parametrize("think", [True, False])
def test_prompts_are_those_of_the_chat(tokenizer, think: bool) -> None:
    for turns in (TURNS, TURNS[1:2]):
        found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=think)
        assert found == prompt_ids(tokenizer._tokenizer, turns, think)


def test_what_mlx_lm_reads_off_the_tokenizer(tokenizer, nano: Path) -> None:
    words = tokenizer.get_vocab()
    assert (tokenizer.think_start_id, tokenizer.think_end_id) == (words["<think>"], words["</think>"])
    assert tokenizer.has_tool_calling and tokenizer.tool_call_start == "<tool_call>"
    assert words["<|im_end|>"] in tokenizer.eos_token_ids
