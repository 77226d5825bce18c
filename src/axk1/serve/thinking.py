"""Think or not, and how long: every name that clients have for it, as one mode and one budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from axk1.chat.budget import has_closed
from axk1.chat.parser import THINK_CLOSE
from axk1.engine.interface import Reasoning
from axk1.serve.errors import Refusal

EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": 32768,
    "xhigh": None,
    "max": None,
}
"""Reasoning tokens at most, by effort; None: no limit."""
BUDGETS = ("thinking_budget", "thinking_token_budget", "budget_tokens")
_TEMPLATE = {"enable_thinking"}


@dataclass(frozen=True, slots=True)
class Thinking:
    """The mode of a reply. ``budget``: reasoning tokens at most; None: no limit."""

    think: bool
    budget: int | None = None


def choose(
    default: bool,
    *,
    template: Mapping[str, Any] | None = None,
    effort: Any = None,
    budgets: Mapping[str, int | None] | None = None,
    thinking: Mapping[str, Any] | None = None,
) -> Thinking:
    """The mode that a request asks for.

    Args:
        default: the server's mode.
        template: ``chat_template_kwargs``, which may hold ``enable_thinking`` alone.
        effort: a key of :data:`EFFORTS`.
        budgets: by their names; -1: no limit.
        thinking: ``{"type": "enabled", "budget_tokens": N}`` (``disabled``, ``adaptive``).

    Raises:
        Refusal: for unknown values, or some that contradict each other.
    """
    said, named = _template(template), dict(budgets or {})
    if thinking is not None:
        kind = thinking.get("type")
        if kind not in ("enabled", "disabled", "adaptive"):
            raise Refusal(f"thinking.type is {str(kind)[:100]!r}; use enabled, disabled or adaptive.", param="thinking")
        said = said if said is not None else kind != "disabled"
        named["thinking.budget_tokens"] = thinking.get("budget_tokens")
    budget = _budget(named)
    if effort is not None:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise Refusal(
                f"The effort {str(effort)[:100]!r} is unknown; use {', '.join(EFFORTS)}.", param="reasoning_effort"
            )
        if budget is None:
            budget = -1 if EFFORTS[effort] is None else EFFORTS[effort]
    think = said if said is not None else default if budget is None else budget != 0
    return Thinking(think and budget != 0, None if budget is None or budget < 0 else budget)


def _template(given: Mapping[str, Any] | None) -> bool | None:
    if unknown := set(given or {}) - _TEMPLATE:
        names = ", ".join(sorted(unknown))
        raise Refusal(f"chat_template_kwargs has {names}; only enable_thinking is taken.", param="chat_template_kwargs")
    said = (given or {}).get("enable_thinking")
    if said is not None and not isinstance(said, bool):
        raise Refusal(f"enable_thinking is {said!r}; it must be true or false.", param="chat_template_kwargs")
    return said


def _budget(named: Mapping[str, Any]) -> int | None:
    given = {name: value for name, value in named.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < -1:
            raise Refusal(f"{name} is {value!r}; it must be -1 (no limit), 0 (no reasoning) or more.", param=name)
    if len(set(given.values())) > 1:
        raise Refusal(f"{' and '.join(given)} differ; give one of them.", param=next(iter(given)))
    return next(iter(given.values()), None)


class Closing:
    """How the server ends a reasoning: a sentence, then ``</think>``.

    Args:
        tokenizer: the checkpoint's tokenizer.
        sentence: what is written before the tag; may be empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, sentence: str) -> None:
        self._is_closed = partial(has_closed, tokenizer)
        self._sentence = tokenizer.encode(sentence, add_special_tokens=False) if sentence else []
        self._tag: list[int] = tokenizer.encode(THINK_CLOSE, add_special_tokens=False)

    def reasoning(self, budget: int | None) -> Reasoning:
        """What the engine is told. The sentence counts as reasoning: it is left out where it would take more than a
        quarter of the budget."""
        length = len(self._sentence)
        if budget is None:
            return Reasoning([*self._sentence, *self._tag], self._is_closed)
        if length * 4 > budget:
            return Reasoning(self._tag, self._is_closed, budget)
        return Reasoning([*self._sentence, *self._tag], self._is_closed, budget - length)
