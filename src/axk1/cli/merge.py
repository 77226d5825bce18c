"""`axk1 merge`: a weighted sum of checkpoints."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    sources: Annotated[
        list[str], typer.Argument(help="Checkpoints of one shape: folders, names on the hub, or HTTP addresses.")
    ],
    weights: Annotated[str, typer.Option(metavar="W,W,...", help="A factor for each, which sum to 1: 0.8,0.2.")],
    out: Annotated[Path, typer.Option(help="Folder to write: new, empty, or an unfinished merge.")],
    layout: Annotated[str | None, typer.Option(help="released or per-expert. Default: as the first one's.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32. Default: as stored.")] = None,
) -> None:
    """Add up checkpoints piece by piece in little memory; the same command continues after an interruption.

    The result is read again and checked as `axk1 verify` does.
    """
    from axk1.checkpoint.merge import merge_checkpoints
    from axk1.checkpoint.verify import verify_checkpoint
    from axk1.cli.progress import progress_of

    try:
        factors = [float(part) for part in weights.split(",")]
    except ValueError:
        raise ValueError(f"--weights is {weights!r}; it must be numbers and commas, such as 0.8,0.2.") from None
    with progress_of("merging") as progress:
        merge_checkpoints(
            sources,
            factors,
            out,
            None if layout is None else layout.replace("-", "_"),  # pyright: ignore[reportArgumentType]
            max_shard_size,
            dtype,
            progress,
        )
    report = verify_checkpoint(out)
    typer.echo(f"{out}: {report.files} weight file(s), {report.parameters:,} parameters, all values finite")
