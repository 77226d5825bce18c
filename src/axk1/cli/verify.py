"""`axk1 verify`: whether a checkpoint is complete and sound."""

import json
from pathlib import Path
from typing import Annotated

import typer


def verify(
    path: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    headers_only: Annotated[bool, typer.Option(help="Do not read values: no check for NaN and infinity.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a fault is in 'error'.")] = False,
) -> None:
    """Check names, shapes, dtypes, file sizes and the index, then every value for NaN and infinity."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from axk1.checkpoint.errors import CheckpointError
    from axk1.checkpoint.verify import verify_checkpoint
    from axk1.load import resolve_hub_name

    path = resolve_hub_name(path)
    columns = ("reading values", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=None)
            report = verify_checkpoint(
                path, not headers_only, lambda n, total: bar.update(task, completed=n, total=total)
            )
    except CheckpointError as error:
        if not as_json:
            raise
        fault = {"ok": False, "path": str(path), "file": error.file, "key": error.key, "error": str(error)}
        typer.echo(json.dumps(fault, indent=2))
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, **report.to_dict()}, indent=2))
        return
    checked = "all values finite" if report.finite else "values not read"
    typer.echo(
        f"{path}: sound. {report.files} file(s), {report.tensors:,} tensors, {report.parameters:,} values, "
        f"{report.layout.replace('_', '-')} layout, {', '.join(report.dtypes)}, {checked}."
    )
