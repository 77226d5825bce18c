"""Short plain conversation: who the model is, what it can do, and what it does not know."""

from __future__ import annotations

from random import Random

from axk1.tasks.text import INTENTS, PREFIXES
from axk1.tasks.types import Problem, Split

_WITHOUT_PREFIX = ("hello", "thanks", "bye")


def _lower_first(text: str) -> str:
    """`text` as it goes on after a comma: its first letter, which a Spanish mark may precede, in lower case."""
    start = len(text) - len(text.lstrip("¿¡"))
    return text[:start] + text[start : start + 1].lower() + text[start + 1 :]


def build(split: Split, language: str, rng: Random) -> Problem:
    """One thing said in conversation; at times after a greeting, without its final mark or in lower case."""
    # "unknown" covers many subjects, so it is drawn as often as three other intents.
    name = rng.choice((*INTENTS[language], "unknown", "unknown"))
    intent = INTENTS[language][name]
    slot, said = intent.says.pick(split, rng)
    if name not in _WITHOUT_PREFIX and rng.random() < 0.2:
        said = rng.choice(PREFIXES[language]) + _lower_first(said)
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
