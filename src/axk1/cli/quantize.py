"""`axk1 quantize`: weights in eight or four bits."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Kind(str, Enum):  # noqa: UP042 - typer shows the values as choices
    """The formats of weights."""

    int8 = "int8"
    int4 = "int4"
    fp8 = "fp8"


class Activations(str, Enum):  # noqa: UP042
    """What becomes of activations."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"


def quantize(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder to read, in either layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished run.")],
    scheme: Annotated[Kind, typer.Option(help="Format of the weights of attention, MLPs and experts.")],
    group_size: Annotated[int, typer.Option(help="int4: weights that share a scale: 128, 64 or 32.")] = 128,
    activations: Annotated[
        Activations, typer.Option(help="Round activations too; vLLM reads int8 and fp8 experts only with it.")
    ] = Activations.none,
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
) -> None:
    """Quantise a checkpoint matrix by matrix in little memory; the same command continues after an interruption."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from axk1.checkpoint.quantize import quantize_checkpoint
    from axk1.cli.info import size_text
    from axk1.load import resolve_hub_name

    source = resolve_hub_name(source)
    console = Console(stderr=True)
    columns = ("quantising", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        files = quantize_checkpoint(
            source,
            target,
            scheme.name,
            group_size,
            None if activations is Activations.none else activations.name,
            max_shard_size,
            lambda written, total: bar.update(task, completed=written, total=total),
        )
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{target}: {len(files)} weight file(s), {size_text(size)}, {scheme.value}")
