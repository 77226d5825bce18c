"""`axk1 bench`: speed against other engines and against the machine's limits."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli.chat_options import ExpertCache

if TYPE_CHECKING:
    from rich.console import Console

    from axk1.bench.cases import Settings
    from axk1.bench.engines import Engine

SWEEP = (512, 2_048, 8_192, 32_768, 131_072)


def bench(
    model: Annotated[
        str, typer.Argument(help="bench-440m, bench-7b (random weights), ..., or a checkpoint folder.", metavar="MODEL")
    ] = "bench-440m",
    engines: Annotated[
        str | None,
        typer.Option(
            help="Of axk1[:packed|int8|int4|int3|fp8|fp8-block], axk1@FOLDER, "
            "transformers[:grouped_mm|batched_mm|eager], vllm[:eager|compiled], llamacpp[:f16|q8_0|q4_0], "
            "mlx[:fp32|8bit|4bit]. "
            "Default: axk1 and what is installed of the others."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="All that there is to measure, or what fits into three minutes.")
    ] = False,
    contexts: Annotated[
        str | None, typer.Option(help="Decode after this many tokens, batch 1. Default: 264; --full: 264,2048.")
    ] = None,
    prefill: Annotated[str | None, typer.Option(help="Prompt lengths; 0: none. Default: 512; --full: 2048.")] = None,
    batch: Annotated[str, typer.Option(help="Decode this many sequences at 264 tokens each; 1: not.")] = "8",
    sweep: Annotated[bool, typer.Option("--sweep", help="Also decode at 512 ... 131,072 tokens, with --full.")] = False,
    mtp: Annotated[
        int, typer.Option(help="Also measure replies with this many MTP drafts per step (-1: what pays), and without.")
    ] = 0,
    rounds: Annotated[
        int | None, typer.Option(help="Turns that every engine takes at every measurement. Default: 3; --full: 5.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens decoded in a turn at most. Default: 16; --full: 32.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="A turn stops here, before all tokens if need be. Default: 1.5; --full: 5."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of every engine. Default: one per core.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    expert_cache: ExpertCache = None,
    prefilled_to: Annotated[
        int, typer.Option(help="Longest context for engines that have to compute it (vllm, llamacpp).")
    ] = 8_192,
    cache: Annotated[Path | None, typer.Option(help="Keeps weights here. Default: AXK1_BENCH_CACHE, else ~.")] = None,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Everything that was measured goes to this file or folder. Default: the cache."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write tokens/s against context as SVG.")] = None,
    write: Annotated[Path | None, typer.Option(help="Put the tables into this Markdown page.")] = None,
) -> None:
    """Measure decoding, prefilling, batches, loading and memory beside other engines, in turns; bounds included.

    Takes less than three minutes; --full takes as long as it needs. Ctrl-C ends it with what is measured by then. The
    results, and beside them a line on each finished measurement, are in files named by the processor's instruction set.
    """
    from rich.console import Console

    from axk1.bench import engines as room
    from axk1.bench.cases import FULL, QUICK

    chosen = room.parse_engines(engines)
    if _at_least("--mtp", mtp, -1) and not any(engine.variant == "mtp" for engine in chosen):
        chosen += room.parse_engines("axk1:mtp")
    if sweep and not full:
        raise ValueError("--sweep measures long contexts, which do not fit into a quick run; add --full.")
    if dtype not in room.DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; use {', '.join(room.DTYPES)}.")
    settings = replace(
        _timed(FULL if full else QUICK, rounds, tokens, seconds),
        batches=_numbers("--batch", batch, 1),
        threads=_at_least("--threads", threads or _cores(), 1),
        expert_cache=expert_cache,
        device=device,
        dtype=dtype,
        drafts=mtp,
        prefilled_to=_at_least("--prefilled-to", prefilled_to, 1),
    )
    settings = _with_lengths(settings, contexts, prefill, SWEEP if sweep else ())
    data, results = _measure(model, chosen, settings, cache, as_json)
    _show(data, Console())
    _write(data, results, plot, write)
    typer.echo(f"Results: {results}", err=True)
    if "stopped" in data:
        raise typer.Exit(130)


def _timed(base: "Settings", rounds: int | None, tokens: int | None, seconds: float | None) -> "Settings":
    """``base``, with as many turns as the options ask for, and as long ones."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"--seconds is {seconds}; it must be a number above 0.")
    return replace(
        base,
        rounds=base.rounds if rounds is None else _at_least("--rounds", rounds, 1),
        tokens=base.tokens if tokens is None else _at_least("--tokens", tokens, 2),
        seconds=base.seconds if seconds is None else seconds,
    )


def _with_lengths(base: "Settings", contexts: str | None, prefill: str | None, more: tuple[int, ...]) -> "Settings":
    """``base``, with the contexts and the prompts of the options, and ``more`` contexts."""
    lengths = base.contexts if contexts is None else _numbers("--contexts", contexts, 1)
    prompts = base.prefills if prefill is None else _numbers("--prefill", prefill, 0)
    return replace(base, contexts=tuple(sorted({*lengths, *more})), prefills=tuple(n for n in prompts if n))


def _measure(
    model: str, engines: "list[Engine]", settings: "Settings", cache: Path | None, as_json: Path | None
) -> tuple[dict[str, Any], Path]:
    """What was measured, and the file that it belongs in; beside that lies one of the finished measurements."""
    from axk1.bench import models, report
    from axk1.bench.cases import Clock
    from axk1.bench.run import run

    clock = Clock(settings.budget)
    with _Watch() as watch:
        watch("weights", 0, 1)
        found = models.find_model(model, models.cache_root(cache), lambda share: watch("weights", share, 1))
        for engine in engines:
            if engine.checkpoint is not None:
                models.check_weights(engine.checkpoint)
        kept = _results_file(models.cache_root(cache) / "results", found.name, settings.dtype)
        results = kept if as_json is None else as_json / kept.name if as_json.is_dir() else as_json
        watch.open((kept if results.exists() and not results.is_file() else results).with_suffix(".progress"))
        return report.to_dict(run(found, engines, settings, watch, watch.finished, clock)), results


def _write(data: dict[str, Any], results: Path, plot: Path | None, page: Path | None) -> None:
    """Writes what was measured: as JSON, as a picture, into a page."""
    from axk1.bench import plot as picture
    from axk1.bench import report
    from axk1.files import write_text

    outputs: list[tuple[Path | None, Callable[[Path], object]]] = [
        (results, lambda file: write_text(file, json.dumps(data, indent=2) + "\n")),
        (plot, lambda file: write_text(file, picture.draw(data))),
        (page, lambda file: report.write_results(file, data)),
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


def _results_file(folder: Path, model: str, dtype: str) -> Path:
    """The file of ``folder`` for this model and number format on this machine's instruction set."""
    from axk1.bench.report import file_name
    from axk1.plan.machine import asked_for, instruction_set, processor_and_features

    instructions = asked_for() or instruction_set(processor_and_features()[1])
    return folder / f"{file_name(model, dtype, instructions)}.json"


class _Watch:
    """What is measured now and how much is left, on standard error: a bar, or lines where that is no terminal. The
    lines of finished measurements also go to a file."""

    def __enter__(self) -> "_Watch":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._lines, self._start, self._file = not console.is_terminal, time.monotonic(), None
        self._progress = Progress(*columns, console=console, transient=True, disable=self._lines)
        self._progress.start()
        self._task = self._progress.add_task("")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._file is not None:
            self._file.close()

    def __call__(self, text: str, done: float, total: float) -> None:
        self._progress.update(self._task, description=text, completed=done, total=total)

    def open(self, file: Path) -> None:
        """Begins the file of finished measurements."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # a link is not followed
        self._file = file.open("x", encoding="utf-8", buffering=1)

    def finished(self, text: str) -> None:
        """One line on a measurement that is finished."""
        line = f"{time.monotonic() - self._start:6.1f} s  {text}"
        if self._file is not None:
            self._file.write(line + "\n")
        if self._lines:
            typer.echo(line, err=True)


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
