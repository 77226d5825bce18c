"""`axk1 eval`: accuracy of a checkpoint, or of a server, on held-out problems and on benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.evaluation.held_out import Answers, Result
    from axk1.evaluation.task_results import TaskResult
    from axk1.generation.sampling import Sampling
    from axk1.integrations.lm_eval.run import Tasks

ANSWER_TOKENS = 256
"""Of a reply to our own problems, where nothing else is said."""
ASKED_IN = {"both": (True, False), "think": (True,), "non-think": (False,)}
"""Values of --mode: whether to think, in the order of asking."""
EVERYTHING = 2**31
"""A server is handed all conversations, and has so many requests at once as were asked for: it waits for no batch."""


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|URL",
            help="Checkpoint folder, name on the hub, or a server's address. Default: AXK1_MODEL, else the nano.",
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "--set",
            metavar="NAME[,NAME]",
            help="templates, situations, probe (nobody generated it), FILE.jsonl (prompt, answer); benchmarks of "
            "--list; tasks of lm-eval.",
        ),
    ] = "templates",
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the benchmarks of A.X K1's card, published scores and commands.")
    ] = False,
    mode: Annotated[str, typer.Option(metavar="both|think|non-think", help="Which to ask in.")] = "both",
    count: Annotated[
        int | None,
        typer.Option("--problems", help="How many, each in both modes. Default: 1000 of ours, all of a benchmark."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed draws other problems of ours, and other replies.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Problems answered at once; of a server, requests.")] = 64,
    details: Annotated[Path | None, typer.Option(help="Write every reply to this JSONL file.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Write a page with charts to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    device: options.Device = None,
    threads: options.Threads = None,
    expert_cache: options.ExpertCache = None,
    repeats: Annotated[int, typer.Option(help="Replies to each problem, drawn anew; needs a temperature.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Of a reply. Default: 256 for our problems, for a benchmark what the context holds."),
    ] = None,
    include: Annotated[list[Path] | None, typer.Option(help="A folder of YAML files with more tasks.")] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Let tasks run code that the model wrote, on this machine.")
    ] = False,
    served_model: Annotated[str | None, typer.Option(help="The model's name at a server that has several.")] = None,
) -> None:
    """Ask held-out problems in five languages, or benchmarks, in Think and in Non-Think, and report what was right."""
    from rich.console import Console

    from axk1.cli import evaluate_view

    if show_list:
        evaluate_view.show_benchmarks(Console())
        return
    if mode not in ASKED_IN:
        raise ValueError(f'--mode is "{mode}"; it must be one of {", ".join(ASKED_IN)}.')
    if count is not None and count < 1:
        raise ValueError(f"--problems is {count}; it must be at least 1.")
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; it must be at least 1.")
    if repeats < 1 or (repeats > 1 and not temperature):
        raise ValueError(f"--repeats is {repeats}; it must be at least 1, and above 1 with a --temperature above 0.")
    streams.check_writable("--details", details)
    streams.check_writable("--report", page)
    own, wanted = _wanted(tasks, include or [], run_code)
    answers = _answers(model, device, threads, expert_cache, batch_size, served_model)
    from axk1.generation.sampling import Sampling

    sampling = Sampling(temperature=temperature, seed=seed * 1_000)
    at_once = batch_size if _here(answers) is not None else EVERYTHING
    run = Run(answers, ASKED_IN[mode], repeats, at_once, max_new_tokens, sampling)
    report = run.own_problems(own, count or 1000, seed) if own else {}
    if wanted is not None:
        for name in wanted:
            run.benchmark(wanted, name, count)
    report["tasks"] = [result.record() for result in run.results]
    store = _store(answers)
    if store is not None:
        report["experts"] = store.counters().to_dict()
    _write(run, details, page, model or "the default model")
    if as_json:
        typer.echo(streams.json_text(report, indent=2))
        return
    if own:
        evaluate_view.show_problems(report, Console())
    if wanted is not None:
        evaluate_view.show_tasks(run.results, Console())
    if store is not None:
        typer.echo(str(store.counters()), err=True)


@dataclass
class Run:
    """What is asked and how, and what came of it so far."""

    answers: Answers
    modes: tuple[bool, ...]
    repeats: int
    batch_size: int
    max_new_tokens: int | None
    sampling: Sampling
    results: list[TaskResult] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def own_problems(self, name: str, count: int, seed: int) -> dict[str, Any]:
        """Asks one of our sets, or a file, and returns its summary."""
        from dataclasses import replace

        from axk1.evaluation import held_out
        from axk1.evaluation.task_results import of_results

        problems = held_out.held_out_problems(count, seed, name)
        if not problems:
            raise ValueError(f"{name} has no problems; give a file with at least one.")
        results: list[Result] = []
        for think in self.modes:
            with self._progress(name, think) as progress:
                for repeat in range(self.repeats):
                    before, all = repeat * len(problems), self.repeats * len(problems)
                    results += held_out.answer_problems(
                        self.answers,
                        problems,
                        think,
                        batch_size=self.batch_size,
                        max_new_tokens=self.max_new_tokens or ANSWER_TOKENS,
                        sampling=replace(self.sampling, seed=(self.sampling.seed or 0) + repeat),
                        progress=lambda done, before=before, all=all: progress(before + done, all),
                    )
        self.results += of_results(name, results)
        self.details += [asdict(result) for result in results]
        report = held_out.summary(results)
        if (chat := _here(self.answers)) is not None and self._drafts_are_measured(chat):
            from axk1.evaluation.acceptance import reply_acceptance

            report["mtp_acceptance"] = round(reply_acceptance(chat, results), 4)
        return report

    def benchmark(self, tasks: Tasks, name: str, count: int | None) -> None:
        """Asks one of lm-eval's tasks."""
        for think in self.modes:
            with self._progress(name, think) as progress:
                result, details = tasks.run(
                    name,
                    self.answers,
                    think,
                    repeats=self.repeats,
                    limit=count,
                    sampling=self.sampling,
                    progress=progress,
                    batch_size=self.batch_size,
                    max_new_tokens=self.max_new_tokens,
                )
            self.results.append(result)
            self.details += details

    def settings(self) -> list[str]:
        """Sentences on how replies were made."""
        drawn = (
            f"Temperature {self.sampling.temperature:g}, top-p {self.sampling.top_p:g}, {self.repeats} replies to each "
            f"problem, seed {self.sampling.seed}."
        )
        return ["The most probable token is always taken." if self.sampling.greedy else drawn]

    @contextmanager
    def _progress(self, name: str, think: bool) -> Iterator[Any]:
        """Shows how far a task is, on standard error; yields what takes (done, all). Of a server, lm-eval's client
        shows it."""
        from rich.console import Console
        from rich.progress import Progress

        if _here(self.answers) is None:
            yield lambda done, all: None
            return
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"{name}, {'Think' if think else 'Non-Think'}", total=None)
            yield lambda done, all: progress.update(task, completed=done, total=all)

    def _drafts_are_measured(self, chat: Chat) -> bool:
        return bool(chat.model.config.num_nextn_predict_layers) and self.sampling.greedy


def _wanted(tasks: str, include: list[Path], run_code: bool) -> tuple[str | None, Tasks | None]:
    """The set of our own that is asked for, if one is, and tasks for lm-eval, loaded."""
    from axk1.evaluation.benchmarks import OURS, task_of

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("--tasks is empty; give names with commas between them, or leave it out.")
    own = [name for name in names if name in OURS or name.endswith(".jsonl")]
    if len(own) > 1:
        raise ValueError(f"--tasks has {' and '.join(own)}; a report has one set of our own problems or one file.")
    others = [task_of(name) for name in names if name not in own]
    if not others:
        return own[0], None
    with streams.status("Loading tasks"):
        from axk1.integrations.lm_eval.run import Tasks

        return (own[0] if own else None), Tasks(others, include, run_code)


def _answers(
    model: str | None,
    device: str | None,
    threads: int | None,
    expert_cache: str | None,
    batch_size: int,
    served_model: str | None,
) -> Answers:
    """The model in this process, or the server at an address."""
    if model is None or not model.startswith(("http://", "https://")):
        return options.load_chat(model, device, "auto", threads, expert_cache)
    from axk1.integrations.lm_eval.run import check_installed

    check_installed()
    from axk1.integrations.lm_eval.endpoint import Endpoint

    return Endpoint(model, served_model, batch_size)


def _here(answers: Answers) -> Chat | None:
    """The model of this process; None for a server."""
    from axk1.chat import Chat

    return answers if isinstance(answers, Chat) else None


def _store(answers: Answers) -> Any:
    from axk1.experts.store import store_of

    chat = _here(answers)
    return None if chat is None else store_of(chat.model)


def _write(run: Run, details: Path | None, page: Path | None, name: str) -> None:
    from axk1.evaluation import page as pages
    from axk1.files import write_text

    if details is not None:
        write_text(details, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in run.details))
    if page is not None:
        write_text(page, pages.page(name, run.results, run.settings()))
