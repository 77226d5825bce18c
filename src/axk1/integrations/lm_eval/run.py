"""Runs tasks of lm-eval and ours for it (``tasks/``) in the modes that are asked for."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axk1.evaluation.held_out import Answers
from axk1.evaluation.intervals import Share, share_of
from axk1.evaluation.task_results import TaskResult, judged, of_replies

if TYPE_CHECKING:
    from axk1.integrations.lm_eval.model import Asked

TASKS = Path(__file__).with_name("tasks")
FEWSHOT_SEED = 1234  # lm-eval's own default
Problem = tuple[str, int]
"""A task of a group, and its problem's number."""
Values = dict[str, list[tuple[Problem, float]]]
"""By metric."""


def check_installed() -> None:
    """Raises:
    ValueError: lm-eval is not there.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "Tasks of benchmarks, and servers, are evaluated with lm-eval, which is not installed here: "
            "in a clone, pip install '.[eval]'."
        )


class Tasks:
    """Tasks by their names, loaded and found fit before anything runs.

    Args:
        names: tasks, groups or tags of lm-eval, or of ``include``.
        include: folders with more YAML files.
        run_code: whether tasks may run code that the model wrote, on this machine.

    Raises:
        ValueError: a task is not known, its data cannot be had, it asks for no replies, or runs code without leave.
    """

    def __init__(self, names: Sequence[str], include: Sequence[Path] = (), run_code: bool = False) -> None:
        check_installed()
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with quiet():
            self._manager = TaskManager(include_path=[TASKS, *include], include_defaults=False)
            if not set(names) <= set(self._manager.all_tasks):  # reading lm-eval's thousands of files takes a while
                self._manager = TaskManager(include_path=[TASKS, *include])
        self._run_code = run_code
        self._loaded = {name: self._load(name) for name in dict.fromkeys(names)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def run(
        self,
        name: str,
        answers: Answers,
        think: bool,
        *,
        repeats: int = 1,
        limit: int | None = None,
        sampling: Any,
        progress: Callable[[int, int], None] = lambda done, all: None,
        **how: Any,
    ) -> tuple[TaskResult, list[dict[str, Any]]]:
        """The result of one task in one mode, and every reply as a record.

        Args:
            name: one of ``names``.
            answers: what replies.
            think: the mode.
            repeats: replies to each problem; the n-th has the seed ``sampling.seed + n``.
            limit: problems of each task at most; of a group, of each of its tasks.
            sampling: :class:`axk1.generation.sampling.Sampling`.
            how: ``batch_size`` and ``max_new_tokens`` of :func:`axk1.evaluation.held_out.answer`.

        Raises:
            ValueError: no metric of the task is a number between 0 and 1 for each problem.
        """
        from lm_eval.evaluator import evaluate

        from axk1.integrations.lm_eval.model import ChatLM

        values: Values = {}
        replies: list[tuple[Problem, int, bool]] = []
        records: list[dict[str, Any]] = []
        for repeat in range(repeats):
            drawn = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + repeat)

            def told(done: int, all: int, before: int = repeat) -> None:
                progress(before * all + done, repeats * all)

            model = ChatLM(answers, think, told, sampling=drawn, **how)
            with quiet():
                found: Any = evaluate(
                    lm=model,
                    task_dict=self._loaded[name],
                    limit=limit,
                    bootstrap_iters=0,
                    apply_chat_template=True,
                    fewshot_as_multiturn=True,
                    confirm_run_unsafe_code=self._run_code,
                )
            scored = _scores(found["samples"])
            for problem, metrics in scored.items():
                for metric, numbers in metrics.items():
                    values.setdefault(metric, []).extend((problem, number) for number in numbers)
            replies += [((each.task, each.problem), *judged(each.reply, think)) for each in model.asked]
            records += [_record(each, think, repeat, scored) for each in model.asked]
        scores: dict[str, Share] = {metric: share_of(pairs) for metric, pairs in values.items()}
        if not scores:
            raise ValueError(
                f"{name} has no metric that is a number between 0 and 1 for each problem, so it has no interval; run "
                "it with lm-eval's own command."
            )
        return of_replies(name, think, scores, replies), records

    def _load(self, name: str) -> Any:
        if name not in self._manager.all_tasks:
            raise ValueError(
                f'"{name}" is no task: `axk1 eval --list` shows benchmarks, `lm_eval ls tasks` lm-eval\'s tasks, and '
                "--include names a folder of YAML files."
            )
        try:
            with quiet():
                loaded = self._manager.load([name])
        except Exception as error:  # whatever datasets and a task's own code raise
            raise ValueError(f"{name} cannot be loaded ({type(error).__name__}: {error}).") from error
        for leaf, task in loaded["tasks"].items():
            self._check(leaf, task)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return loaded

    def _check(self, leaf: str, task: Any) -> None:
        from axk1.integrations.lm_eval.model import begun, no_replies

        if task.OUTPUT_TYPE != "generate_until":
            raise ValueError(no_replies(leaf))
        if task.get_config("gen_prefix"):
            raise ValueError(begun(leaf))
        if getattr(task, "UNSAFE_CODE", False) and not self._run_code:
            raise ValueError(
                f"{leaf} runs code that the model wrote, on this machine; allow it with --run-code, in a container."
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Standard output is for the report: what tasks print goes to standard error."""
    with redirect_stdout(sys.stderr):
        yield


def _scores(samples: dict[str, list[dict[str, Any]]]) -> dict[Problem, dict[str, list[float]]]:
    """Numbers by problem and metric. A metric that is judged after a filter has its name behind it; one that gives
    several values for a problem (instructions of a prompt) has all of them."""
    found: dict[Problem, dict[str, list[float]]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                numbers = _numbers(row[metric])
                name = metric if row["filter"] == "none" else f"{metric},{row['filter']}"
                if numbers:
                    found.setdefault((task, row["doc_id"]), {})[name] = numbers
    return found


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int | float) and 0 <= each <= 1 for each in values):
        return []
    return [float(each) for each in values]


def _record(each: Asked, think: bool, repeat: int, scored: dict[Problem, dict[str, list[float]]]) -> dict[str, Any]:
    tokens, obeyed = judged(each.reply, think)
    return {
        "task": each.task,
        "problem": each.problem,
        "think": think,
        "repeat": repeat,
        "messages": each.messages,
        "reasoning": each.reply.reasoning,
        "answer": each.answer,
        "finish_reason": each.reply.finish_reason,
        "tokens": tokens,
        "mode_obeyed": obeyed,
        "scores": scored.get((each.task, each.problem), {}),
    }
