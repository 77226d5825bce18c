"""What is asked where whole replies are measured: real problems where a tokenizer is at hand, random ids elsewhere."""

from __future__ import annotations

import random
from itertools import islice
from typing import NamedTuple

from axk1.bench.models import Model

LENGTH = 64
"""Tokens of a random prompt."""
TASKS = ["word", "calendar", "counting", "sorting"]  # those that need no package of the extra "train"


class Prompts(NamedTuple):
    """What is asked, as token ids."""

    ids: list[list[int]]
    stop_ids: list[int]
    """Tokens that end a reply; none of random weights, whose replies are as long as they may be."""


def prompts_for(model: Model, count: int) -> Prompts:
    """``count`` prompts: held-out problems in Think mode, by the checkpoint's own template."""
    if not (model.folder / "tokenizer.json").is_file():
        draw = random.Random(0)
        return Prompts([[draw.randrange(3, model.config.vocab_size) for _ in range(LENGTH)] for _ in range(count)], [])
    from axk1.chat.prompt import prompt_ids
    from axk1.load import load_tokenizer, stop_ids
    from axk1.tasks import generate

    tokenizer = load_tokenizer(model.folder)
    problems = islice(generate("heldout", 0, tasks=TASKS), count)
    conversations = [[{"role": "user", "content": problem.question}] for problem in problems]
    ids = [prompt_ids(tokenizer, messages, think=True) for messages in conversations]
    return Prompts(ids, stop_ids(model.folder))
