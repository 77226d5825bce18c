"""`axk1 eval`: accuracy of a checkpoint on held-out problems."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="Checkpoint folder; the shipped nano when left out.")] = None,
    count: Annotated[int, typer.Option("--problems", help="How many held-out problems, each in both modes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other problems.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Problems answered at once.")] = 64,
    details: Annotated[Path | None, typer.Option(help="Write every reply to this JSONL file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Ask held-out problems in five languages, in Think and in Non-Think, and report what was right."""
    if count < 1:
        raise ValueError(f"--problems is {count}; it must be at least 1.")
    from rich.console import Console
    from rich.progress import Progress

    from axk1.chat import load
    from axk1.evaluation import held_out
    from axk1.evaluation.acceptance import reply_acceptance
    from axk1.files import write_text

    chat = load(model)
    problems = held_out.held_out_problems(count, seed)
    results: list[held_out.Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for think in (True, False):
            task = progress.add_task("Think" if think else "Non-Think", total=count)
            results += held_out.answer_problems(
                chat,
                problems,
                think,
                batch_size=batch_size,
                progress=lambda done, task=task: progress.update(task, completed=done),
            )
    report = held_out.summary(results)
    if chat.model.config.num_nextn_predict_layers:
        report["mtp_acceptance"] = round(reply_acceptance(chat, results), 4)
    if details is not None:
        lines = (json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
        write_text(details, "".join(lines))
    print(json.dumps(report, indent=2)) if as_json else _show(report, Console())  # noqa: T201


def _show(report: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    def percent(cell: dict[str, Any] | None) -> str:
        return f"{cell['share']:.1%}" if cell and cell["share"] is not None else "-"

    think, plain = report["think"], report["non_think"]
    tasks = list(think["by_task"])
    table = Table("Language", *tasks, "All", title="Think / Non-Think")
    for language in think["by_language"]:
        cells = [f"{language}/{task}" for task in tasks]
        row = [
            f"{percent(think['by_language_and_task'].get(c))} / {percent(plain['by_language_and_task'].get(c))}"
            for c in cells
        ]
        total = f"{percent(think['by_language'][language])} / {percent(plain['by_language'][language])}"
        table.add_row(language, *row, total)
    row = [f"{percent(think['by_task'][t])} / {percent(plain['by_task'][t])}" for t in tasks]
    table.add_row("all", *row, f"{percent(think['all'])} / {percent(plain['all'])}")
    console.print(table)
    console.print(f"Multi-step: Think {percent(think['multi_step'])}, Non-Think {percent(plain['multi_step'])}")
    console.print(f"Mode obeyed {percent(report['mode_obeyed'])}, language kept {percent(report['language_kept'])}")
    if "mtp_acceptance" in report:
        console.print(f"MTP second-token acceptance {report['mtp_acceptance']:.1%}")
