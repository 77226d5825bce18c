"""`axk1 export`: a checkpoint in the form that another engine reads."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write a checkpoint in the form that another engine reads.", no_args_is_help=True)


class Mixed(str, Enum):  # noqa: UP042 - typer shows the values as choices
    """Recipes of mlx-lm for several bits in one model."""

    mixed_4_6 = "mixed_4_6"
    mixed_3_6 = "mixed_3_6"
    mixed_3_4 = "mixed_3_4"
    mixed_2_6 = "mixed_2_6"


@app.command("mlx")
def mlx(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder to read, in either layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished run.")],
    bits: Annotated[int, typer.Option(help="Bits of a weight: 4, 5, 6, 8, 3 or 2.")] = 4,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale and a bias: 64, 32 or 128.")] = 64,
    mixed: Annotated[Mixed | None, typer.Option(help="A recipe of mlx-lm in place of --bits.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
) -> None:
    """Quantise a checkpoint for mlx-lm in little memory; the same command continues after an interruption."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from axk1.cli.info import size_text
    from axk1.integrations.mlx.export import export_mlx
    from axk1.load import resolve_hub_name

    source = resolve_hub_name(source)
    console = Console(stderr=True)
    columns = ("exporting", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        files = export_mlx(
            source,
            target,
            bits,
            group_size,
            mixed and mixed.value,
            max_shard_size,
            lambda written, total: bar.update(task, completed=written, total=total),
        )
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{target}: {len(files)} weight file(s), {size_text(size)}, {mixed.value if mixed else f'{bits} bits'}")
