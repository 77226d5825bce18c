"""`axk1 export`: a checkpoint in the form that another engine reads."""

import json
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


class FileType(str, Enum):  # noqa: UP042
    """llama.cpp's names of what its quantiser writes."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q5_k_m = "q5_k_m"
    q5_k_s = "q5_k_s"
    q4_k_m = "q4_k_m"
    q4_k_s = "q4_k_s"
    iq4_xs = "iq4_xs"
    q3_k_m = "q3_k_m"
    q2_k = "q2_k"
    q4_0 = "q4_0"
    mxfp4_moe = "mxfp4_moe"


@app.command("gguf")
def gguf(
    source: Annotated[str, typer.Argument(help="Checkpoint to read: folder, name on the hub, or HTTP address.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished run.")],
    file_type: Annotated[FileType, typer.Option("--type", help="Format of the matrices.")] = FileType.q4_k_m,
    split_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "20GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and their bytes as JSON.")] = False,
) -> None:
    """Write a checkpoint for llama.cpp in little memory; the same command continues after an interruption."""
    from axk1.cli.info import size_text
    from axk1.cli.progress import progress_of
    from axk1.integrations.llamacpp import check_gguf

    check_gguf()
    from axk1.integrations.llamacpp.export import export_gguf

    with progress_of("exporting") as progress:
        files = export_gguf(source, target, file_type.value, split_size, progress)
    sizes = {str(file): file.stat().st_size for file in files}
    if as_json:
        typer.echo(json.dumps({"type": file_type.value, "files": sizes}))
        return
    typer.echo(f"{target}: {len(files)} file(s), {size_text(sum(sizes.values()))}, {file_type.value}: {files[0].name}")


@app.command("mlx")
def mlx(
    source: Annotated[str, typer.Argument(help="Checkpoint to read: folder, name on the hub, or HTTP address.")],
    target: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an unfinished run.")],
    bits: Annotated[int, typer.Option(help="Bits of a weight: 4, 5, 6, 8, 3 or 2.")] = 4,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale and a bias: 64, 32 or 128.")] = 64,
    mixed: Annotated[Mixed | None, typer.Option(help="A recipe of mlx-lm in place of --bits.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file; a larger tensor gets its own.")] = "5GB",
) -> None:
    """Quantise a checkpoint for mlx-lm in little memory; the same command continues after an interruption."""
    from axk1.cli.info import size_text
    from axk1.cli.progress import progress_of
    from axk1.integrations.mlx.export import export_mlx

    with progress_of("exporting") as progress:
        files = export_mlx(source, target, bits, group_size, mixed and mixed.value, max_shard_size, progress)
    size = sum(file.stat().st_size for file in files)
    typer.echo(f"{target}: {len(files)} weight file(s), {size_text(size)}, {mixed.value if mixed else f'{bits} bits'}")
