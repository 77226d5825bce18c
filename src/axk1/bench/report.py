"""A run as plain data, as tables and as a page: one section a model and machine, newer ones in place of older."""

from __future__ import annotations

import re
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import axk1
from axk1.bench.cases import Case
from axk1.bench.models import stored_bytes
from axk1.bench.run import Measured
from axk1.bench.summary import summarise
from axk1.bench.turns import Entry
from axk1.files import write_text
from axk1.plan.bounds import decode_bound, latent_bytes, prefill_bound, weight_bytes
from axk1.plan.describe import describe
from axk1.plan.machine import describe as describe_machine

SCHEMA = 1
HEAD = """# Results

Written by `axk1 bench --write`; how to read and repeat it: [docs/benchmarks.md](../docs/benchmarks.md).
"""


class Table(NamedTuple):
    """Cells as text, the first two columns left-aligned."""

    title: str
    header: list[str]
    rows: list[list[str]]


def to_dict(measured: Measured) -> dict[str, Any]:
    """Everything of a run, for ``--json`` and for the tables below."""
    model, settings = measured.model, measured.settings
    info = describe(str(model.folder))
    itemsize = 4 if settings.dtype == "float32" else 2
    reference = next((entry for entry in measured.entries if entry.engine.base == "axk1"), measured.entries[0])
    return {
        "schema": SCHEMA,
        "date": today(),
        "commit": commit(),
        "machine": describe_machine(measured.limits.device_name),
        "settings": asdict(settings),
        "limits": {"bandwidth": measured.limits.bandwidth, "matmul": measured.limits.matmul},
        "model": {
            "name": model.name,
            "random": model.random,
            "parameters": info.total,
            "active_parameters": info.active_without_embedding,
            "weight_bytes_per_token": round(weight_bytes(stored_bytes(model.folder, itemsize), model.config)),
            "latent_bytes_per_token": latent_bytes(model.config, itemsize),
        },
        "reference": reference.engine.name,
        "engines": [_engine(entry, reference) for entry in measured.entries],
        "results": [
            _result(case, entry, reference, measured, info.active_without_embedding)
            for case in measured.cases
            for entry in measured.entries
            if case.kind in entry.engine.kinds
        ],
        "same_replies": _same_replies(measured, reference),
        **({"stopped": measured.stopped} if measured.stopped else {}),
    }


def file_name(model: str, dtype: str, instructions: str) -> str:
    """What a run's files are called, without an ending: processors of one instruction set compare with each other."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{model}-{dtype}-{instructions}".lower()).strip("-")


def _engine(entry: Entry, reference: Entry) -> dict[str, Any]:
    same = [ours == theirs for ours, theirs in zip(reference.answers, entry.answers, strict=False)]
    return {
        "name": entry.engine.name,
        "version": entry.version,
        "variant": entry.engine.variant,
        "load_seconds": entry.load_seconds,
        "peak_rss": entry.peak_rss,
        "device_peak": entry.device_peak,
        "cache_bytes_per_token": entry.cache_bytes_per_token,
        "experts": entry.experts,
        "same_answers": sum(same) if same else None,
        "answers": len(same),
        "note": entry.engine.note,
        "error": entry.error,
    }


def _same_replies(measured: Measured, reference: Entry) -> dict[str, dict[str, Any]]:
    """Of the replies that were measured, how many are the reference's token for token; the acceptance."""
    return {
        entry.engine.name: {
            "same": sum(ours == theirs for ours, theirs in zip(reference.replies, entry.replies, strict=True)),
            "acceptance": entry.acceptance,
        }
        for entry in measured.entries
        if entry.replies and entry is not reference and reference.replies
    }


def _result(case: Case, entry: Entry, reference: Entry, measured: Measured, active: int) -> dict[str, Any]:
    values = entry.values.get(case, [])
    row: dict[str, Any] = {
        "case": case.title,
        "kind": case.kind,
        "context": case.context,
        "batch": case.batch,
        "engine": entry.engine.name,
        "unit": "tokens/s",
        "values": values,
        "note": entry.notes.get(case, "") if not values else "",
    }
    if values:
        summary = summarise(values)
        bound = bound_of(case, entry, measured, active)
        ours = reference.values.get(case)
        row |= asdict(summary) | {"bound": bound, "share_of_bound": summary.median / bound}
        if case in entry.beside:
            best = measured.limits.rates.bandwidth
            row["beside"] = entry.beside[case]
            shares = (value * best / (bound * rate) for value, rate in zip(values, row["beside"], strict=True))
            row["share_at_the_time"] = statistics.median(shares)
        row["ratio"] = summarise(ours).median / summary.median if ours else None
    return row


def bound_of(case: Case, entry: Entry, measured: Measured, active: int) -> float:
    """Tokens per second that the measured rates allow an engine with weights of this size."""
    model, settings, rates = measured.model, measured.settings, measured.limits.rates
    if case.kind == "prefill":
        dtype = "float32" if settings.dtype == "float32" else "bfloat16"
        return prefill_bound(rates, dtype, model.config, active, case.context)
    itemsize = 4 if settings.dtype == "float32" else 2
    own = entry.engine.base == "axk1" and entry.weights != model.folder  # quantised: as stored
    sizes = stored_bytes(entry.weights) if own else stored_bytes(model.folder, itemsize)
    return decode_bound(rates, sizes, model.config, case.context, case.batch, entry.engine.scale, itemsize)


def tables(data: dict[str, Any]) -> list[Table]:
    """Speeds, and what loading and memory took."""
    header = ["", "engine", "tokens/s", "range", "of bound", f"{data['reference']} speed-up"]
    rows, previous = [], None
    for row in data["results"]:
        rows.append([row["case"] if row["case"] != previous else "", row["engine"], *_speed(row, data["reference"])])
        previous = row["case"]
    found = [Table("Speed: medians and ranges", header, rows)]
    header = ["engine", "version", "loads in", "peak memory", "cache per token", "same answers"]
    return [*found, Table("Loading and memory", header, [_engine_row(engine) for engine in data["engines"]])]


def _speed(row: dict[str, Any], reference: str) -> list[str]:
    if not row["values"]:
        return ["-"] * 4
    ratio = row["ratio"] if row["engine"] != reference else None
    then = f" ({100 * row['share_at_the_time']:.0f}%)" if "share_at_the_time" in row else ""
    return [
        number(row["median"]),
        f"{number(row['low'])}-{number(row['high'])}",
        f"{100 * row['share_of_bound']:.0f}%{then}",
        f"{ratio:.2f}x" if ratio else "",
    ]


def number(value: float) -> str:
    """Three digits that mean something: 0.91, 44.1, 990, 1,340."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _engine_row(engine: dict[str, Any]) -> list[str]:
    def size(value: float | None, unit: str, by: float) -> str:
        return "-" if not value else f"{value / by:,.2f} {unit}" if unit == "GB" else f"{value / by:,.0f} {unit}"

    memory = size(engine["peak_rss"], "GB", 1e9)
    if engine["device_peak"]:
        memory += f" + {size(engine['device_peak'], 'GB', 1e9)} GPU"
    same = "-" if engine["same_answers"] is None else f"{engine['same_answers']} of {engine['answers']}"
    loaded = f"{engine['load_seconds']:.1f} s"
    return [engine["name"], engine["version"], loaded, memory, size(engine["cache_bytes_per_token"], "B", 1), same]


def _rounds(data: dict[str, Any]) -> str:
    """How many rounds were taken, of whatever was measured."""
    counts = [len(row["values"]) for row in data["results"] if row["values"]] or [0]
    least = f"{min(counts)} to " if min(counts) < max(counts) else ""
    return f"{least}{max(counts)} rounds"


def _drafts(count: int) -> str:
    return "as many as pay" if count < 0 else str(count)


def notes(data: dict[str, Any]) -> list[str]:
    """Sentences below the tables: the bounds, what differs, what failed."""
    limits, model, settings = data["limits"], data["model"], data["settings"]
    which, bandwidth = max(limits["bandwidth"].items(), key=lambda item: item[1])
    rates = ", ".join(f"{dtype} {rate / 1e12:.2f} TFLOP/s" for dtype, rate in limits["matmul"].items())
    sentences = [
        f"Limits measured in this run: {bandwidth / 1e9:.1f} GB/s ({which}), {rates}. The bound of decoding is that "
        f"bandwidth over the bytes of active weights ({model['weight_bytes_per_token'] / 1e6:,.1f} MB per token in "
        f"{settings['dtype']}) and of latents ({model['latent_bytes_per_token']:,} B per token of context); the bound "
        "of prefilling is the better matrix rate over the operations. In brackets: of what the bandwidth just before "
        "each turn allowed.",
        f"{'Random weights, fixed seed' if model['random'] else 'Real weights'}: {model['parameters']:,} parameters, "
        f"{model['active_parameters']:,} active per token. {_rounds(data)}, engines in turns, "
        f"{settings['threads']} threads, {settings['device']}.",
    ]
    if settings["budget"] is not None:
        sentences.append(f"A quick run of {settings['budget']:.0f} s at most; --full takes as long as it needs.")
    if "stopped" in data:
        sentences.append(f"Not complete: {data['stopped']}.")
    sentences += [
        f"{name}: {found['same']} of {settings['replies']} replies of up to {settings['reply_tokens']} tokens are "
        f"{data['reference']}'s, token for token; drafts a step: {_drafts(settings['drafts'])}, "
        f"accepted: {100 * (found['acceptance'] or 0):.1f}%."
        for name, found in data["same_replies"].items()
    ]
    sentences += [
        f"{engine['name']}: routed experts from disk through a cache of {settings['expert_cache']}: {found['asked']:,} "
        f"asked for, {found['hit_rate']:.1%} in the cache, {found['bytes'] / 1e9:.2f} GB read, steps waited "
        f"{found['stall_seconds']:.1f} s."
        for engine in data["engines"]
        if (found := engine.get("experts"))
    ]
    texts = dict.fromkeys(engine["note"] for engine in data["engines"] if engine["note"])
    texts |= dict.fromkeys(f"{row['engine']}: {row['note']}" for row in data["results"] if row["note"])
    texts |= dict.fromkeys(f"Failed: {engine['error']}" for engine in data["engines"] if engine["error"])
    return [*sentences, *(text.rstrip(".") + "." for text in texts)]


def markdown(data: dict[str, Any]) -> str:
    """One section of the results page."""
    at = data["machine"]
    place = at["gpu"] or at["processor"]
    gpu = f", {at['gpu']}" if at["gpu"] else ""
    lines = [
        f"## {data['model']['name']} on {place} ({at['instruction_set']})",
        "",
        _wrapped(
            f"{data['date']}, commit {data['commit']}. {at['processor']}{gpu}, {at['cores']} cores "
            f"({', '.join(at['features'])}), {at['memory_gib']} GiB, {at['system']}, Python {at['python']}, "
            f"torch {at['torch']}."
        ),
        "",
    ]
    for table in tables(data):
        lines += [f"**{table.title}**", "", _row(table.header)]
        lines += [_row(["---", "---"] + ["---:"] * (len(table.header) - 2)), *map(_row, table.rows), ""]
    return "\n".join([*lines, *(_wrapped(f"* {note}", "  ") for note in notes(data))])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_results(file: Path, data: dict[str, Any]) -> None:
    """Puts the run's section into the page, in place of an older one of the same model, dtype, device or processor, and
    instruction set."""
    at = data["machine"]
    place = at["gpu"] or at["processor"]
    key = f"{data['model']['name']} | {data['settings']['dtype']} | {place} | {at['instruction_set']}"
    section = f"<!-- {key} -->\n{markdown(data)}\n<!-- end of {key} -->\n"
    page = file.read_text(encoding="utf-8") if file.is_file() else HEAD
    pattern = re.compile(rf"<!-- {re.escape(key)} -->\n.*?<!-- end of {re.escape(key)} -->\n", re.DOTALL)
    page = pattern.sub(lambda _: section, page, count=1) if pattern.search(page) else f"{page.rstrip()}\n\n{section}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page)


def commit() -> str:
    """The commit that axk1 runs from, marked when files differ from it; its version where there is no repository."""
    command = ["git", "-C", str(Path(axk1.__file__).parent)]
    try:
        head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*command, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"axk1 {axk1.__version__}"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


def today() -> str:
    """The date and time, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
