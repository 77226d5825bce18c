"""`axk1 verify`: whether a checkpoint is complete and sound."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from axk1.cli import streams
from axk1.terminal import error_line


def verify(
    path: Annotated[Path, typer.Argument(help="Checkpoint folder, name on the hub, or one safetensors file.")],
    headers_only: Annotated[bool, typer.Option(help="Do not read values: no check for NaN and infinity.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a fault is in 'error'.")] = False,
) -> None:
    """Check names, shapes, dtypes, file sizes and the index, then every value for NaN and infinity, and known sums.

    A fault is exit code 1.
    """
    from axk1.load import resolve_hub_name

    path = resolve_hub_name(path)
    if not path.exists():  # a mistake in the command, no fault of a checkpoint
        raise ValueError(f"There is no checkpoint at {path}: a folder or a safetensors file is needed.")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from axk1.checkpoint.errors import CheckpointError
    from axk1.checkpoint.verify import verify_checkpoint

    console = Console(stderr=True)
    columns = ("reading values", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)
            report = verify_checkpoint(
                path, not headers_only, lambda n, total: bar.update(task, completed=n, total=total)
            )
    except CheckpointError as error:
        fault = {"ok": False, "path": str(path), "file": error.file, "key": error.key, "error": str(error)}
        if as_json:
            typer.echo(json.dumps(fault, indent=2))
        else:
            colour = typer.colors.RED if streams.coloured(sys.stderr) else None
            typer.secho(error_line(error), fg=colour, err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, **report.to_dict()}, indent=2))
        return
    if report.sums == 0:
        sums = "no sums compared: none are known" if report.finite else "no sums compared"
    else:
        sums = f"{report.sums} sum(s) as noted"
    checked = "all values finite" if report.finite else "values not read"
    count = f"{report.parameters:,} " + ("values of this file alone" if path.is_file() else "parameters")
    typer.echo(
        f"{path}: sound. {report.files} file(s), {report.tensors:,} tensors, {count}, "
        f"{report.layout.replace('_', '-')} layout, {', '.join(report.dtypes)}, {checked}, {sums}."
    )
