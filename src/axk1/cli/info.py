"""`axk1 info`: what a checkpoint or a preset consists of."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from axk1.plan.describe import Info


def info(
    name: Annotated[
        str | None, typer.Argument(help="Checkpoint folder, or a preset: nano, mini, k1.", metavar="PATH|PRESET")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Which instructions this machine computes by, and why.")
    ] = False,
) -> None:
    """Parameters by part, total and active, bytes by dtype, KV cache by context; no weight is read."""
    if paths:
        _show_paths(as_json)
        return
    if name is None:
        raise ValueError("Name a checkpoint folder or a preset (nano, mini, k1), or ask for --paths.")
    from axk1.plan.describe import describe

    found = describe(name)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.console import Console

    console = Console()
    source = f"{found.files} files" if found.files else "preset, nothing stored"
    mtp = f"{found.mtp_layers} MTP layer(s)" if found.mtp_layers else "no MTP layer"
    mtp += f", quantised: {found.quantization}" if found.quantization else ""
    console.print(
        f"[bold]{found.name}[/bold]: {source}, {found.tensors:,} tensors, {found.layout.replace('_', '-')} layout, "
        f"{', '.join(found.dtypes)}, {mtp}",
        highlight=False,
    )
    for table in (_parts(found), *_formats(found), _bytes(found), _cache(found)):
        console.print(table)


def _show_paths(as_json: bool) -> None:
    """What computes on this machine, of steps and prompts; kernels are compiled for that if they are not yet."""
    from axk1.kernels.dispatch import describe

    found = describe()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for what, how in found.items():
        typer.echo(f"{what}: {how}")


def _parts(found: "Info") -> "Table":
    table = _table("Parameters", "number", "share")
    for part, size in found.parts.items():
        table.add_row(part, f"{size:,}", f"{size / found.total:.2%}")
    table.add_section()
    table.add_row("total", f"{found.total:,}", "")
    for label, size in (
        ("active per token", found.active),
        ("  without input embedding", found.active_without_embedding),
    ):
        table.add_row(label, f"{size:,}", f"{size / found.total:.2%}")
    return table


def _formats(found: "Info") -> "list[Table]":
    if not found.formats:
        return []
    table = _table("Formats", "of", "in layers")
    for each in found.formats:
        table.add_row(each.format, each.part, each.layers)
    return [table]


def _bytes(found: "Info") -> "Table":
    table = _table("Weights", "whole model", "read per token")
    for dtype, size in found.bytes.items():
        table.add_row(
            "as stored" if dtype == "stored" else dtype, size_text(size), size_text(found.bytes_per_token[dtype])
        )
    return table


def _cache(found: "Info") -> "Table":
    table = _table("KV cache, bf16", "latent", "expanded K and V")
    for cache in (found.cache_bytes_per_token, *found.cache):
        label = f"{cache.context:,} token{'s' if cache.context > 1 else ''}"
        table.add_row(label, size_text(cache.latent), size_text(cache.expanded))
    return table


def _table(*titles: str) -> "Table":
    from rich.table import Table

    table = Table(titles[0])
    for title in titles[1:]:
        table.add_column(title, justify="right")
    return table


def size_text(size: int) -> str:
    """``70272`` as "70,272 B", larger sizes as "9.2 GB" (powers of ten)."""
    if size < 10**6:
        return f"{size:,} B"
    unit, factor = next(
        (unit, factor) for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)) if size >= factor
    )
    return f"{size / factor:,.2f} {unit}"
