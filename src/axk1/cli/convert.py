"""`axk1 convert`: another layout, other shards, another dtype."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Layout(str, Enum):  # noqa: UP042 - typer shows the values as choices
    """The two layouts as spelled on the command line."""

    released = "released"
    per_expert = "per-expert"


def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint to read: folder, name on the hub, or HTTP address.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished conversion.")],
    layout: Annotated[Layout, typer.Option(help="Routed experts: fused as released, or one tensor an expert.")],
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: bit-exact.")] = None,
) -> None:
    """Rewrite a checkpoint piece by piece in little memory; the same command continues after an interruption."""
    from axk1.checkpoint.convert import convert_checkpoint
    from axk1.cli.progress import progress_of

    with progress_of("converting") as progress:
        files = convert_checkpoint(source, target, layout.name, max_shard_size, dtype, progress)
    typer.echo(f"{target}: {len(files)} weight file(s) in the {layout.value} layout")
