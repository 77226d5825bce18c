"""llama.cpp's tokenizer gives our ids, and its template our prompts."""

# pyright: reportMissingImports=false

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
import regex
from llamacpp_binding import LlamaCpp
from support import NANO
from tokenizers import Tokenizer

from axk1.checkpoint.errors import CheckpointError
from axk1.evaluation.held_out import held_out_problems
from axk1.integrations.llamacpp.vocabulary import PRE_TOKENIZERS, pre_tokenizer
from axk1.tokenizer.train import new_tokenizer

CODE = 'def f(x: list[int]) -> str:\n\treturn ", ".join(f"{i:>3}" for i in x if i != 0)  # 0x1F\r\n    \n\n\t  x'
EMOJI = "👩‍👩‍👧‍👦 🇰🇷 👍🏽 🤖 e\u0301 한국어\u1112\u1161\u11ab ㈀㉠㋐ ! 한국 を本ー"
SPECIAL = "<|im_start|>user\nIt's 'LL 'Sx they'RE</think><|im_end|>\n<|endoftext|>"


def known(letter: str) -> bool:
    """Whether the letter is as old as llama.cpp's tables (Unicode 15), or none in any version."""
    return unicodedata.category(letter) != "Cn" or regex.match(r"[\p{L}\p{M}\p{N}]", letter) is None


def random_texts(count: int) -> list[str]:
    """Valid text of any letters, mostly of small code points."""
    draw = random.Random(0)
    ranges = [(0x09, 0x7F), (0x20, 0x7F), (0xA0, 0x800), (0x800, 0xD800), (0x3000, 0x3400), (0xE000, 0x110000)]
    texts = []
    for _ in range(count):
        letters = (chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(1, 24)))
        texts.append("".join(letter for letter in letters if known(letter)))
    return texts


def test_ids(build: Path, nano_f32: Path) -> None:
    texts = [problem.question for problem in held_out_problems(200, seed=2)] + [CODE, EMOJI, SPECIAL]
    texts += [
        text for page in ("README.md", "README.ko.md") for text in (NANO.parents[1] / page).read_text().split("\n\n")
    ]
    texts += random_texts(10_000)
    plain, engine = Tokenizer.from_file(str(NANO / "tokenizer.json")), LlamaCpp(build, nano_f32, 8)
    different = [text for text in texts if engine.tokenize(text) != plain.encode(text, add_special_tokens=False).ids]
    engine.close()
    assert not different, (len(different), different[:3])


@pytest.mark.parametrize(("digits", "name"), [(3, "axk1"), (1, "axk1-digits")])
def test_names_of_patterns(digits: int, name: str) -> None:
    import json

    assert pre_tokenizer(json.loads(new_tokenizer(digits).to_str()), Path("tokenizer.json")) == name
    assert name in PRE_TOKENIZERS.values()


def test_an_unknown_pattern_is_refused() -> None:
    import json

    values = json.loads(new_tokenizer(2).to_str())
    with pytest.raises(CheckpointError, match="none of those known here"):
        pre_tokenizer(values, Path("tokenizer.json"))
