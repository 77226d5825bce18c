"""A model for lm-eval that replies in one mode, in this process or behind an address; reasoning is no part of a reply.

Imports lm-eval, which the extra ``eval`` brings.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from axk1.evaluation.held_out import Answers, answer

if TYPE_CHECKING:
    from axk1.chat import Reply


@dataclass(frozen=True)
class Asked:
    """One reply to one of a task's problems: ``answer`` is what the task judges."""

    task: str
    problem: int
    messages: list[dict[str, Any]]
    reply: Reply
    answer: str


class ChatLM(LM):
    """Replies to whole conversations, in Think or in Non-Think.

    Stop strings of a task cut the answer, never the reasoning: a model that reasons may pass over them. A task's limit
    of tokens is not used, as it is meant for answers without reasoning, nor are its temperature and sampling.

    Args:
        answers: what replies.
        think: the mode.
        how: options of :func:`axk1.evaluation.held_out.answer`.
        progress: is told how many replies are there, of how many.
    """

    def __init__(
        self, answers: Answers, think: bool, progress: Callable[[int, int], None] = lambda done, all: None, **how: Any
    ) -> None:
        super().__init__()
        self._answers, self._think, self._progress, self._how = answers, think, progress, how
        self.asked: list[Asked] = []
        """All replies so far."""

    @property
    def tokenizer_name(self) -> str:
        """None: the chat template is applied where the model is."""
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation as JSON, which :meth:`generate_until` reads again.

        Raises:
            ValueError: when the task has begun the answer itself.
        """
        if not add_generation_prompt:
            raise ValueError(begun("The task"))
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, each cut before the first of its task's stop strings."""
        conversations = [json.loads(request.args[0]) for request in requests]
        total = len(requests)
        replies = answer(
            self._answers,
            conversations,
            self._think,
            progress=lambda done: self._progress(done, total),
            **self._how,
        )
        for request, messages, reply in zip(requests, conversations, replies, strict=True):
            text = cut(reply.answer, request.args[1].get("until"))
            self.asked.append(Asked(request.task_name or "", request.doc_id or 0, messages, reply, text))
        return [asked.answer for asked in self.asked[-total:]]

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused: see the error."""
        raise ValueError(no_replies(requests[0].task_name or "The task"))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused: see the error."""
        raise ValueError(no_replies(requests[0].task_name or "The task"))


def no_replies(task: str) -> str:
    """Why a task of log-probabilities is not run."""
    return (
        f"{task} compares log-probabilities of given texts, so it has no replies in a mode; choose a task that asks "
        "for replies (axk1 eval --list names them), or run lm-eval's own model on it (docs/training.md)."
    )


def begun(task: str) -> str:
    """Why a task that writes the beginning of an answer is not run."""
    return (
        f"{task} begins the model's answer itself (gen_prefix), which leaves no place for a mode's reasoning; choose a "
        "task that asks for a whole reply."
    )


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """``text`` before the first of the stop strings."""
    stops = [until] if isinstance(until, str) else until or ()
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]
