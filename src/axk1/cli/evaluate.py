"""`axk1 eval`: accuracy of a checkpoint on held-out problems."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(
    model: options.Model = None,
    count: Annotated[int, typer.Option("--problems", help="How many held-out problems, each in both modes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other problems.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Problems answered at once.")] = 64,
    details: Annotated[Path | None, typer.Option(help="Write every reply to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    device: options.Device = None,
    threads: options.Threads = None,
    expert_cache: options.ExpertCache = None,
    problem_set: Annotated[
        str,
        typer.Option(
            "--set", help="templates, situations, probe (nobody generated it), or FILE.jsonl: prompt, answer."
        ),
    ] = "templates",
    repeats: Annotated[int, typer.Option(help="Replies to each problem, drawn anew; needs a temperature.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Of a reply.")] = 256,
) -> None:
    """Ask held-out problems in five languages, in Think and in Non-Think, and report what was right."""
    if count < 1:
        raise ValueError(f"--problems is {count}; it must be at least 1.")
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; it must be at least 1.")
    if repeats < 1 or (repeats > 1 and not temperature):
        raise ValueError(f"--repeats is {repeats}; it must be at least 1, and above 1 with a --temperature above 0.")
    streams.check_writable("--details", details)
    chat = options.load_chat(model, device, "auto", threads, expert_cache)
    from rich.console import Console
    from rich.progress import Progress

    from axk1.evaluation import held_out
    from axk1.evaluation.acceptance import reply_acceptance
    from axk1.experts.store import store_of
    from axk1.files import write_text
    from axk1.generation.sampling import Sampling

    problems = held_out.held_out_problems(count, seed, problem_set)
    results: list[held_out.Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for think in (True, False):
            task = progress.add_task("Think" if think else "Non-Think", total=len(problems) * repeats)
            for repeat in range(repeats):
                before = repeat * len(problems)
                results += held_out.answer_problems(
                    chat,
                    problems,
                    think,
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    sampling=Sampling(temperature=temperature, seed=seed * 1_000 + repeat),
                    progress=lambda done, task=task, before=before: progress.update(task, completed=before + done),
                )
    report = held_out.summary(results)
    if chat.model.config.num_nextn_predict_layers and not temperature:
        report["mtp_acceptance"] = round(reply_acceptance(chat, results), 4)
    if (store := store_of(chat.model)) is not None:
        report["experts"] = store.counters().to_dict()
    if details is not None:
        lines = (json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
        write_text(details, "".join(lines))
    print(json.dumps(report, indent=2)) if as_json else _show(report, Console())  # noqa: T201
    if store is not None and not as_json:
        typer.echo(str(store.counters()), err=True)


def _show(report: dict[str, Any], console: Any) -> None:
    console.print(_table(report["think"], report["non_think"]))
    for label, name in (("Multi-step, Think", "think"), ("Multi-step, Non-Think", "non_think")):
        console.print(f"{label}: {_share(report[name]['multi_step'])}", highlight=False)
    for label, name in (("Think", "think"), ("Non-Think", "non_think")):
        console.print(f"All in {label}: {_share(report[name]['all'])}{_tokens(report[name])}", highlight=False)
    console.print(f"Mode obeyed: {_share(report['mode_obeyed'])}", highlight=False)
    console.print(f"Language kept: {_share(report['language_kept'])}", highlight=False)
    if "mtp_acceptance" in report:
        console.print(f"MTP second-token acceptance: {report['mtp_acceptance']:.1%}", highlight=False)


def _table(think: dict[str, Any], plain: dict[str, Any]) -> Table:
    """A row a task, a column a language: narrow enough for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="Right answers in Think / Non-Think, and of how many problems", box=SIMPLE_HEAD, pad_edge=False, padding=0
    )
    table.add_column("Task", no_wrap=True)
    for language in (*think["by_language"], "all"):
        table.add_column(language, justify="right", no_wrap=True)
    for task in think["by_task"]:
        names = [f"{language}/{task}" for language in think["by_language"]]
        cells = [_cell(think["by_language_and_task"][name], plain["by_language_and_task"][name]) for name in names]
        table.add_row(task, *cells, _cell(think["by_task"][task], plain["by_task"][task]))
    table.add_section()
    totals = [
        _cell(think["by_language"][language], plain["by_language"][language]) for language in think["by_language"]
    ]
    table.add_row("all", *totals, _cell(think["all"], plain["all"]))
    return table


def _cell(think: dict[str, Any], plain: dict[str, Any]) -> str:
    if not think["count"]:
        return "-"
    return f"{think['share']:.0%}/{plain['share']:.0%}\nof {think['count']:,}"


def _share(part: dict[str, Any]) -> str:
    if not part["count"]:
        return "none asked"
    low, high = part.get("interval") or (None, None)
    between = "" if low is None else f" ({low:.1%} to {high:.1%})"
    return f"{part['share']:.1%} of {part['count']:,}{between}"


def _tokens(mode: dict[str, Any]) -> str:
    """How long replies are."""
    return f", {mode['mean_tokens']:,.0f} tokens" if "mean_tokens" in mode else ""
