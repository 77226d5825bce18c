"""`axk1 verify`: whether a checkpoint is complete and sound."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from axk1.cli import streams
from axk1.terminal import error_line

if TYPE_CHECKING:
    from axk1.checkpoint.compare import Comparison


def verify(
    path: Annotated[Path, typer.Argument(help="Checkpoint folder, name on the hub, or one safetensors file.")],
    headers_only: Annotated[bool, typer.Option(help="Do not read values: no check for NaN and infinity.")] = False,
    source: Annotated[
        str | None,
        typer.Option(help="What a quantised checkpoint was made of: its matrices are rounded again and compared."),
    ] = None,
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
        beside = None if source is None else _compare(path, source)
    except CheckpointError as error:
        fault = {"ok": False, "path": str(path), "file": error.file, "key": error.key, "error": str(error)}
        if as_json:
            typer.echo(json.dumps(fault, indent=2))
        else:
            colour = typer.colors.RED if streams.coloured(sys.stderr) else None
            typer.secho(error_line(error), fg=colour, err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({"ok": True, **report.to_dict(), "source": beside and asdict(beside)}, indent=2))
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
    if beside is not None:
        others = f"{beside.otherwise:,} rounded otherwise, rows with up to {beside.worst:.2f} times the error"
        typer.echo(
            f"{beside.source}: this is a rounding of it. {beside.identical:,} tensors bit for bit what this version "
            f"writes, {others if beside.otherwise else 'none otherwise'}."
        )


def _compare(build: Path, source: str) -> "Comparison":
    from axk1.checkpoint.compare import compare_with_source
    from axk1.cli.progress import progress_of
    from axk1.kernels.rounding import rounded

    with progress_of("comparing") as progress:
        return compare_with_source(build, source, progress, rounded)
