"""`axk1 quantize`: weights in eight, four or three bits."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from axk1.cli.texts import RowTokens


class Kind(str, Enum):  # noqa: UP042 - typer shows the values as choices
    """The formats of weights."""

    int8 = "int8"
    int4 = "int4"
    int3 = "int3"
    fp8 = "fp8"
    fp8_block = "fp8-block"


class Activations(str, Enum):  # noqa: UP042
    """What becomes of activations."""

    none = "none"
    int8 = "int8"
    fp8 = "fp8"


def quantize(
    source: Annotated[str, typer.Argument(help="Checkpoint to read: folder, name on the hub, or HTTP address.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished run.")],
    scheme: Annotated[Kind | None, typer.Option(help="Format of the weights of attention, MLPs and experts.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Instead: a file, TOML or JSON, that says which layers and parts have which.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Instead: bytes of all tensors, such as 230GB, within which layers get three to eight bits."),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Of int4 and int3: weights that share a scale, 128, 64 or 32; by itself 128 and 64."),
    ] = None,
    activations: Annotated[
        Activations, typer.Option(help="Round activations too; vLLM reads int8 and fp8 experts only with it.")
    ] = Activations.none,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Fit the matrices to these texts (JSONL, plain text, Parquet): better, and takes hours."),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=64, help="Tokens of them, from the first on.")] = 32768,
    row_tokens: RowTokens = 2048,
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
    each: Annotated[
        str | None, typer.Option(help="Command that gets each finished file as its last argument, and may remove it.")
    ] = None,
) -> None:
    """Quantise a checkpoint matrix by matrix in little memory; the same command continues after an interruption.

    What is not on this machine is read in ranges, and nothing of it is kept. With --calibrate one layer and one expert
    are in memory at a time, beside the states of all texts twice: 4 bytes x hidden size x tokens.
    """
    from axk1.checkpoint.journal import MANIFEST
    from axk1.checkpoint.quantize import quantize_checkpoint
    from axk1.checkpoint.reading import read_json
    from axk1.cli.info import size_text
    from axk1.cli.progress import progress_of
    from axk1.cli.texts import read_rows
    from axk1.kernels.rounding import rounded
    from axk1.layerwise.calibrate import quantize_calibrated

    wanted, formats = _wanted(scheme, recipe, budget)
    options: dict[str, Any] = {
        "group_size": group_size,
        "activations": None if activations is Activations.none else activations.name,
        "max_shard_size": max_shard_size,
        "finished": None if each is None else lambda file: _hand_on(each, file),
        "rounder": rounded,
    }
    with progress_of("fitting" if calibrate else "quantising", counted=calibrate is not None) as progress:
        if calibrate is None:
            files = quantize_checkpoint(source, target, wanted, progress=progress, **options)
        else:
            rows = read_rows(source, calibrate, calibration_tokens, row_tokens)
            files = quantize_calibrated(source, target, wanted, rows, progress, **options)
    size = sum(noted["bytes"] for noted in read_json(target / MANIFEST)["files"].values())
    typer.echo(f"{target}: {len(files)} weight file(s), {size_text(size)}, {formats}")


def _wanted(scheme: Kind | None, recipe: Path | None, budget: str | None) -> tuple[Any, str]:
    """What ``quantize_checkpoint`` takes as its scheme, and its name."""
    from axk1.checkpoint.budget import Budget
    from axk1.checkpoint.recipe import read_recipe
    from axk1.load import parse_size

    if sum(given is not None for given in (scheme, recipe, budget)) != 1:
        raise ValueError("Give one of --scheme, --recipe and --budget.")
    if scheme is not None:
        return scheme.value, scheme.value
    if recipe is not None:
        return read_recipe(recipe), f"by {recipe}"
    return Budget(parse_size(budget or "", "--budget")), f"within {budget}"


def _hand_on(command: str, file: Path) -> None:
    """Runs ``command`` with ``file``.

    Raises:
        ValueError: it fails: the run stops, and the same command goes on with this file.
    """
    import shlex
    import subprocess

    words = shlex.split(command)
    try:
        code = subprocess.run([*words, str(file)], check=False).returncode
    except (OSError, IndexError) as error:
        raise ValueError(f"--each {command!r} cannot be run ({error}).") from error
    if code:
        raise ValueError(f"--each {command!r} failed with {code} for {file}: the same command goes on with this file.")
