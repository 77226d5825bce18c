"""What `axk1 eval` shows in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axk1.evaluation.task_results import TaskResult


def show_problems(report: dict[str, Any], console: Console) -> None:
    """Our own problems: a table by task and language, then totals."""
    modes = [(label, name) for label, name in (("Think", "think"), ("Non-Think", "non_think")) if _asked(report[name])]
    console.print(_table(report, modes))
    for label, name in modes:
        console.print(f"Multi-step, {label}: {_share(report[name]['multi_step'])}", highlight=False)
    for label, name in modes:
        console.print(f"All in {label}: {_share(report[name]['all'])}{_tokens(report[name])}", highlight=False)
    console.print(f"Mode obeyed: {_share(report['mode_obeyed'])}", highlight=False)
    console.print(f"Language kept: {_share(report['language_kept'])}", highlight=False)
    if "mtp_acceptance" in report:
        console.print(f"MTP second-token acceptance: {report['mtp_acceptance']:.1%}", highlight=False)


def show_tasks(results: Sequence[TaskResult], console: Console) -> None:
    """Tasks: a row for each metric in each mode, narrow enough for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from axk1.evaluation.benchmarks import MODELS, published

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("Task, metric", "Mode", "Score (95%)", "Problems", "Tokens", "Obeyed", MODELS[0]):
        table.add_column(title, justify="left" if title in ("Task, metric", "Mode") else "right", overflow="fold")
    for result in results:
        beside = published(result.task, result.think).get(MODELS[0])
        for number, (metric, share) in enumerate(result.scores.items()):
            counts = (f"{result.problems:,}", f"{result.mean_tokens:,.0f}", f"{result.mode_obeyed['share']:.0%}")
            low, high = share["interval"] or (0.0, 0.0)
            table.add_row(
                f"{result.task}\n {metric}" if not number else f" {metric}",
                "" if number else result.mode,
                f"{share['share']:.1%}\n{low:.1%}-{high:.1%}",
                *(("", "", "") if number else counts),
                f"{beside:.1f}" if beside is not None and metric == result.main else "",
            )
    console.print(table)


def show_benchmarks(console: Console) -> None:
    """The benchmarks of the card, and the commands of those that other packages run."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from axk1.evaluation.benchmarks import BENCHMARKS, MODELS, SOURCE

    table = Table(
        title=f"Percent in Think / Non-Think, from {SOURCE}", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for title in ("Benchmark", "Run by", *MODELS):
        table.add_column(title, justify="left" if title in ("Benchmark", "Run by") else "right")
    for each in BENCHMARKS:
        both = [each.published(True), each.published(False)]
        scores = [" / ".join(f"{scores[name]:.1f}" for scores in both if scores) for name in MODELS]
        table.add_row(each.name, each.package or "none found", *scores)
    console.print(table)
    for each in BENCHMARKS:
        if command := each.command():
            console.print(f"{each.name}: {command}", highlight=False, soft_wrap=True, markup=False)
        if each.note:
            console.print(f"  {each.name}: {each.note}.", highlight=False, soft_wrap=True, markup=False)


def _asked(mode: dict[str, Any]) -> bool:
    return bool(mode["all"]["count"])


def _table(report: dict[str, Any], modes: Sequence[tuple[str, str]]) -> Table:
    """A row a task, a column a language: narrow enough for 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"Right answers in {' / '.join(label for label, _ in modes)}, and of how many problems"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    parts = [report[name] for _, name in modes]
    languages, tasks = list(parts[0]["by_language"]), list(parts[0]["by_task"])
    table.add_column("Task", no_wrap=True)
    for language in (*languages, "all"):
        table.add_column(language, justify="right", no_wrap=True)
    for task in tasks:
        cells = [_cell([part["by_language_and_task"][f"{x}/{task}"] for part in parts]) for x in languages]
        table.add_row(task, *cells, _cell([part["by_task"][task] for part in parts]))
    table.add_section()
    totals = [_cell([part["by_language"][x] for part in parts]) for x in languages]
    table.add_row("all", *totals, _cell([part["all"] for part in parts]))
    return table


def _cell(parts: Sequence[dict[str, Any]]) -> str:
    if not parts[0]["count"]:
        return "-"
    return "/".join(f"{part['share']:.0%}" for part in parts) + f"\nof {parts[0]['count']:,}"


def _share(part: dict[str, Any]) -> str:
    if not part["count"]:
        return "none asked"
    low, high = part.get("interval") or (None, None)
    between = "" if low is None else f" ({low:.1%} to {high:.1%})"
    return f"{part['share']:.1%} of {part['count']:,}{between}"


def _tokens(mode: dict[str, Any]) -> str:
    """How long replies are, and whether the mode was kept."""
    told = f", {mode['mean_tokens']:,.0f} tokens" if "mean_tokens" in mode else ""
    return told + (f", {mode['mode_obeyed']['share']:.1%} obeyed" if "mode_obeyed" in mode else "")
