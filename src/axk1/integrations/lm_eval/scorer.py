"""Tasks of lm-eval in Think and Non-Think: prompts and scores are its own, replies are our chat's."""

# pyright: reportMissingImports=false

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from axk1.chat import Chat, Reply
from axk1.evaluation.held_out import obeys_mode
from axk1.generation.sampling import GREEDY, Sampling


class NoProbabilities(ValueError):
    """A task compares probabilities of answers, which a reply in Think has none of."""


class ChatScorer(HFLM):
    """lm-eval's own scorer of transformers models, with replies by ``chat``.

    A task's stop strings end an answer, never a reasoning, and it sees the answer alone. Probabilities of given answers
    are :class:`HFLM`'s, in Non-Think.

    Args:
        max_new_tokens: of a reply, in place of what a task says: few were made for models that reason.
    """

    def __init__(self, chat: Chat, think: bool, batch_size: int, max_new_tokens: int | None) -> None:
        super().__init__(pretrained=chat.model, tokenizer=chat.tokenizer, batch_size=batch_size)
        self.chat_template_args = {"enable_thinking": think}
        self.chat, self.think, self.most = chat, think, max_new_tokens
        self.replies: list[Reply] = []
        self._conversations: dict[str, list[dict[str, str]]] = {}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, which is kept for :meth:`generate_until`."""
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        if add_generation_prompt:
            self._conversations[text] = list(chat_history)
        return text

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to ``requests``, whose arguments are a prompt and how it is to be answered, in their order.

        Raises:
            ValueError: a task that begins the reply itself.
        """
        answers = [""] * len(requests)
        by_settings = sorted(range(len(requests)), key=lambda place: repr(requests[place].args[1]))
        for _, group in groupby(by_settings, key=lambda place: repr(requests[place].args[1])):
            places = list(group)
            for start in range(0, len(places), self.batch_size):
                chosen = places[start : start + self.batch_size]
                prompts = [self._conversation(requests[place]) for place in chosen]
                replies = self.chat.reply_batch(prompts, think=self.think, **self._options(requests[chosen[0]].args[1]))
                for place, reply in zip(chosen, replies, strict=True):
                    answers[place] = reply.answer
                self.replies += replies
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if self.think:
            raise NoProbabilities(f"{requests[0].task_name} compares probabilities of answers")
        return super().loglikelihood(requests, disable_tqdm)

    def _conversation(self, request: Any) -> list[dict[str, str]]:
        found = self._conversations.get(request.args[0])
        if found is None:
            raise ValueError(f"{request.task_name} begins the reply itself, which a conversation cannot.")
        return found

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        wanted = normalize_gen_kwargs(given, self.max_gen_toks)
        temperature, top_p = float(wanted.get("temperature") or 0), float(wanted.get("top_p") or 1)
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=0) if temperature else GREEDY
        stops = [each for each in wanted.get("until") or [] if each]
        return {"sampling": sampling, "stop": stops, "max_new_tokens": self.most or wanted["max_gen_toks"]}


def evaluate_tasks(
    chat: Chat,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int | None = None,
    include: Path | None = None,
    progress: Callable[[str], None] = lambda words: None,
) -> dict[str, dict[str, Any]]:
    """lm-eval's results of each task, by its name and then by mode (``think``, ``non_think``).

    A mode has ``metrics`` (name to value and standard error), ``samples``, and of generated replies ``mean_tokens`` and
    ``mode_obeyed``; None for Think where a task compares probabilities.

    Args:
        limit: of problems of each task, the first ones.
        include: a folder with tasks of one's own.

    Raises:
        ValueError: no such task, or its data cannot be had.
    """
    manager = TaskManager(include_path=None if include is None else str(include))
    for task in tasks:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=1)
            raise ValueError(f"{task} is no task of lm-eval{f'; the nearest is {near[0]}' if near else ''}.")
    report: dict[str, dict[str, Any]] = {}
    for task in tasks:
        for mode, think in (("think", True), ("non_think", False)):
            progress(f"{task}, {mode}")
            scorer = ChatScorer(chat, think, batch_size, max_new_tokens)
            report.setdefault(task, {})[mode] = _results(scorer, task, limit, manager)
    return report


def _results(scorer: ChatScorer, task: str, limit: int | None, manager: Any) -> dict[str, Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = simple_evaluate(
                scorer, tasks=[task], limit=limit, task_manager=manager, apply_chat_template=True, log_samples=False
            )
    except NoProbabilities:
        return None
    except (OSError, ConnectionError) as error:  # the hub, or a file
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"The data of {task} cannot be had: {reason}.") from error
    values = found["results"][task]
    metrics = {}
    for key, value in values.items():
        name, _, how = key.partition(",")
        if isinstance(value, int | float) and how and not name.endswith("_stderr"):
            error = values.get(f"{name}_stderr,{how}")
            metrics[name if how == "none" else f"{name} ({how})"] = (value, error if isinstance(error, float) else None)
    counts = found["n-samples"].values()
    result: dict[str, Any] = {"metrics": metrics, "samples": sum(each["effective"] for each in counts)}
    if scorer.replies:
        tokens = [reply.reasoning_tokens + reply.answer_tokens for reply in scorer.replies]
        obeyed = [obeys_mode(reply, scorer.think) for reply in scorer.replies]
        result |= {"mean_tokens": sum(tokens) / len(tokens), "mode_obeyed": sum(obeyed) / len(obeyed)}
    return result
