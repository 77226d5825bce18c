"""`axk1 eval --tasks`: benchmarks of lm-eval in both modes, beside the scores of A.X K1's model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from axk1.cli import chat_options as options
from axk1.cli import streams

if TYPE_CHECKING:
    from rich.table import Table


def evaluate_tasks(
    model: str | None,
    tasks: str,
    limit: int | None,
    include: Path | None,
    batch_size: int,
    max_new_tokens: int | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Runs the tasks and prints a table, or JSON."""
    names = [name for name in map(str.strip, tasks.split(",")) if name]
    if not names:
        raise ValueError("--tasks is empty: name a task of lm-eval, such as aime25, or several with commas between.")
    for option, value in (("--limit", limit), ("--batch-size", batch_size), ("--max-new-tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}; it must be at least 1.")
    if include is not None and not include.is_dir():
        raise ValueError(f"--include {include} is no folder.")
    try:
        from axk1.integrations.lm_eval.scorer import evaluate_tasks
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("lm_eval"):
            raise
        raise ValueError("--tasks needs lm-eval, which is not installed: pip install 'axk1[eval]'.") from None
    chat = options.load_chat(model, where["device"], "auto", where["threads"], where["expert_cache"])
    report = evaluate_tasks(
        chat,
        names,
        limit=limit,
        include=include,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=lambda words: typer.echo(words, err=True),
    )
    if as_json:
        typer.echo(streams.json_text(report))
        return
    from rich.console import Console

    Console().print(_table(report))


def _table(report: dict[str, dict[str, Any]]) -> Table:
    """A row for each metric of a task, and one for length and obedience."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from axk1.integrations.lm_eval.published import MODELS, of_task

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"Card: {' / '.join(MODELS)}, in percent")
    for name in ("Task", "Metric", "Think", "Non-Think", "Card, Think", "Card, Non-Think"):
        table.add_column(name, justify="left" if name in ("Task", "Metric") else "right")
    for task, modes in report.items():
        found = [modes[mode] or {} for mode in ("think", "non_think")]
        card = of_task(task)
        scores = [_scores(card.think if card else None), _scores(card.non_think if card else None)]
        for place, metric in enumerate(dict.fromkeys(name for each in found for name in each.get("metrics", ()))):
            cells = [_value(each.get("metrics", {}).get(metric)) for each in found]
            table.add_row("" if place else task, metric, *cells, *([""] * 2 if place else scores))
        for name in ("samples", "mean_tokens", "mode_obeyed"):
            cells = ["-" if name not in each else _plain(name, each[name]) for each in found]
            table.add_row("", name.replace("_", " "), *cells, "", "")
        table.add_section()
    return table


def _value(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "-"
    value, error = found
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {1.96 * error:.3f}"


def _plain(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "mode_obeyed" else f"{value:,.0f}"


def _scores(scores: tuple[float, ...] | None) -> str:
    return "" if scores is None else " / ".join(f"{score:.1f}" for score in scores)
