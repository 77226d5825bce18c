"""Writes the figures of ``docs/k1.md`` and ``docs/plan.md`` from ``axk1 plan``: ``python docs/k1.py``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.config import AXK1Config
from axk1.files import write_text
from axk1.plan.fit import Fit, Load, default_engine, fit
from axk1.plan.machines import PRESETS
from axk1.plan.memory import GB
from axk1.plan.speed import decode, prefill
from axk1.plan.weights import weights_as

HERE = Path(__file__).parent
PAGES = (HERE / "k1.md", HERE / "plan.md")
OUTPUT = re.compile(r"(<!-- output of: (?P<command>axk1 [^\n]+) -->\n```text\n).*?(```\n)", re.DOTALL)
TABLE = re.compile(r"(<!-- machines -->\n).*?(<!-- end of machines -->\n)", re.DOTALL)
COLUMNS = "100"
FORMATS = {"8xh200": "fp8", "4x8-h100": "bf16", "mac-128": "mlx-4", "mac-512": "mlx-4"}
"""Of the table; the others are int4 in groups of 64."""


def output(command: str) -> str:
    """What a command prints, lines without trailing spaces."""
    result = CliRunner().invoke(app, shlex.split(command)[1:], env={"COLUMNS": COLUMNS, "TERM": "dumb"})
    if result.exit_code:
        raise ValueError(f"{command}: {result.output}")
    return "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())


def plan_of(machine: str) -> Fit:
    """K1 on a preset, one request of 8,192 tokens."""
    at = PRESETS[machine]
    engine = default_engine(at)
    stored = FORMATS.get(machine, "int4-64")
    return fit(weights_as(AXK1Config.preset("k1"), stored), at, engine, Load(8192))


def table() -> str:
    """A row for each preset."""
    titles = ["machine", "engine, weights", "size", "in memory", "decoding, tokens/s", "a prompt of 2,048", "limit"]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in PRESETS:
        found = plan_of(name)
        size = f"{found.weights.sizes.total / GB:,.0f} GB"
        cells = [f"`{name}`", f"{found.engine}, {found.weights.stored}", size]
        if found.problem:
            rows.append(f"| {' | '.join([*cells, 'does not fit', '', '', 'memory'])} |")
            continue
        step, prompt = decode(found), prefill(found)
        limit = str(step.limit) if step.limit in ("disk", "products") else f"bandwidth of {step.limit}"
        speeds = [f"{speed.bound or 0:,.{0 if (speed.bound or 0) >= 10 else 2}f}" for speed in (step, prompt)]
        rows.append(f"| {' | '.join([*cells, f'{found.resident:.0%}', *speeds, limit])} |")
    return "\n".join(rows) + "\n"


def with_figures(page: str) -> str:
    """``page`` with its outputs and its table written anew."""
    page = TABLE.sub(lambda match: match[1] + table() + match[2], page)
    return OUTPUT.sub(lambda match: match[1] + output(match["command"]) + match[3], page)


if __name__ == "__main__":
    for path in PAGES:
        write_text(path, with_figures(path.read_text(encoding="utf-8")))
