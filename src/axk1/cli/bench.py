"""`axk1 bench`: speed against other engines and against the machine's limits."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

SWEEP = (512, 2_048, 8_192, 32_768, 131_072)


def bench(
    model: Annotated[
        str, typer.Argument(help="bench-440m, bench-7b (random weights), ..., or a checkpoint folder.", metavar="MODEL")
    ] = "bench-440m",
    engines: Annotated[
        str | None,
        typer.Option(
            help="Of axk1[:packed|int8|int4|fp8], axk1@FOLDER, transformers[:grouped_mm|batched_mm|eager], "
            "vllm[:eager|compiled], llamacpp[:f16|q8_0|q4_0]. Default: axk1 and what is installed of the others."
        ),
    ] = None,
    contexts: Annotated[str, typer.Option(help="Decode behind this many tokens, batch 1.")] = "264,2048",
    prefill: Annotated[str, typer.Option(help="Prompt lengths; 0: none.")] = "2048",
    batch: Annotated[str, typer.Option(help="Decode this many rows at 264 tokens each; 1: not.")] = "8",
    sweep: Annotated[bool, typer.Option("--sweep", help="Also decode at 512 ... 131,072 tokens.")] = False,
    mtp: Annotated[
        int, typer.Option(help="Also measure replies with this many MTP drafts a step (-1: what pays), and without.")
    ] = 0,
    rounds: Annotated[int, typer.Option(help="Turns that every engine takes at every measurement.")] = 5,
    tokens: Annotated[int, typer.Option(help="Tokens decoded in a turn at most.")] = 32,
    seconds: Annotated[float, typer.Option(help="A turn stops here, before all tokens if need be.")] = 5.0,
    threads: Annotated[int | None, typer.Option(help="Threads of every engine. Default: one a core.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    prefilled_to: Annotated[
        int, typer.Option(help="Longest context for engines that have to compute it (vllm, llamacpp).")
    ] = 8_192,
    cache: Annotated[Path | None, typer.Option(help="Keeps weights here. Default: AXK1_BENCH_CACHE, else ~.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write everything that was measured.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write tokens/s against context as SVG.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the tables into this Markdown page.")] = None,
) -> None:
    """Measure decoding, prefilling, batches, loading and memory beside other engines, in turns; bounds included."""
    from rich.console import Console

    from axk1.bench import engines as room
    from axk1.bench import models, report
    from axk1.bench import plot as picture
    from axk1.bench.run import Settings, run

    chosen = room.parse_engines(engines)
    if _at_least("--mtp", mtp, -1) and not any(engine.variant == "mtp" for engine in chosen):
        chosen += room.parse_engines("axk1:mtp")
    lengths = _numbers("--contexts", contexts, 1)
    settings = Settings(
        contexts=tuple(sorted({*lengths, *(SWEEP if sweep else ())})),
        prefills=tuple(n for n in _numbers("--prefill", prefill, 0) if n),
        batches=_numbers("--batch", batch, 1),
        rounds=_at_least("--rounds", rounds, 1),
        tokens=_at_least("--tokens", tokens, 2),
        seconds=seconds,
        threads=_at_least("--threads", threads or _cores(), 1),
        device=device,
        dtype=dtype,
        drafts=mtp,
        prefilled_to=_at_least("--prefilled-to", prefilled_to, 1),
    )
    if dtype not in room.DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; use {', '.join(room.DTYPES)}.")
    with _Bar() as bar:
        bar("weights", 0, 1)
        found = models.find_model(model, models.cache_root(cache), lambda share: bar("weights", share, 1))
        for engine in chosen:
            if engine.checkpoint is not None:
                models.check_weights(engine.checkpoint)
        data = report.to_dict(run(found, chosen, settings, bar))
    _show(data, Console())
    outputs: list[tuple[Path | None, Callable[[Path], object]]] = [
        (as_json, lambda file: file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")),
        (plot, lambda file: file.write_text(picture.draw(data), encoding="utf-8")),
        (write, lambda file: report.write_results(file, data)),
    ]
    for file, save in outputs:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save(file)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{option} is {value}; it must be at least {least}.")
    return value


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """``"264, 2048"`` as numbers."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{option} is {text!r}; give whole numbers, separated by commas.") from None
    return tuple(_at_least(option, value, least) for value in dict.fromkeys(values))


class _Bar:
    """The progress bar on standard error: what is measured now, and how much is left."""

    def __enter__(self) -> "_Bar":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._progress.start()
        self._task = self._progress.add_task("")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, text: str, done: float, total: float) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)


def _show(data: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    from axk1.bench import report

    for table in report.tables(data):
        shown = Table(title=table.title, title_justify="left")
        for index, title in enumerate(table.header):
            shown.add_column(title, justify="left" if index < 2 else "right", no_wrap=index == 1)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in report.notes(data):
        console.print(note, style="dim", markup=False, highlight=False)
