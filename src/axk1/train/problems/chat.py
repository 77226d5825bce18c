"""Short plain conversation: who the model is, what it can do, and what it does not know."""

from __future__ import annotations

from random import Random

from axk1.train.problems.text import INTENTS
from axk1.train.problems.types import Problem, Split


def build(split: Split, language: str, rng: Random) -> Problem:
    """One thing said in conversation; a third of the time without its final mark or, once, in lower case."""
    # "unknown" covers many subjects, so it is drawn as often as three other intents.
    name = rng.choice((*INTENTS[language], "unknown", "unknown"))
    intent = INTENTS[language][name]
    slot, said = intent.says.pick(split, rng)
    if rng.random() < 0.2:
        said = said.rstrip("?.!。？！").lstrip("¿¡")
    if rng.random() < 0.15:
        said = said.lower()
    return Problem(
        task="chat",
        language=language,
        question=said,
        reasoning=intent.reasoning,
        answer=intent.answer,
        value=intent.answer,
        numbers=(),
        template=f"chat/{language}/{name}:{slot}",
        names=(),
        multi_step=False,
        split=split,
    )
