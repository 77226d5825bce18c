"""Writes the tables in ``docs/quantization.md``: ``python docs/quantization.py``, with ``--quality`` that of quality,
too, which takes some minutes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from axk1.checkpoint.compressed import make_plan
from axk1.cli.info import size_text
from axk1.config import AXK1Config
from axk1.files import write_text
from axk1.plan.weights import weight_sizes
from axk1.quantized import KINDS

PAGE = Path(__file__).with_suffix(".md")
SIZES = "| model | weights | size | of bfloat16 | read per token |\n|---|---|---|---|---|\n"
QUALITY = (
    "| weights | Think accuracy | perplexity | divergence, 1/1000 nat | same first choice | allowed by the test |\n"
    "|---|---|---|---|---|---|\n"
)
TEST = PAGE.parents[1] / "tests" / "integration" / "test_quantized_nano.py"


def size_table() -> str:
    """Sizes of the nano and of the released model in every format, from the table of tensors."""
    lines = []
    for preset in ("nano", "k1"):
        config = AXK1Config.preset(preset)
        full = weight_sizes(config)
        for kind in (None, *KINDS):
            sizes = weight_sizes(config, make_plan(config, kind)) if kind else full
            share = f"{sizes.total / full.total:.1%}"
            row = (preset, kind or "bfloat16", size_text(sizes.total), share, size_text(sizes.per_token))
            lines.append("| " + " | ".join(row) + " |\n")
    return SIZES + "".join(lines)


def quality_table() -> str:
    """What the nano loses in every format, measured by its test."""
    test = runpy.run_path(str(TEST))
    with TemporaryDirectory() as folder:
        found = test["measured"](Path(folder))
    lines = []
    for name, q in found.items():
        points, times = test["LOST_POINTS"].get(name), test["PERPLEXITY"].get(name)
        allowed = f"{points} point{'s' * (points > 1)} less; {times} times" if points else ""
        row = (name, f"{q.accuracy:.1f}%", f"{q.perplexity:.6f}", f"{q.divergence:.3f}", f"{q.top:.2f}%", allowed)
        lines.append("| " + " | ".join(row) + " |\n")
    return QUALITY + "".join(lines)


def with_table(page: str, name: str, table: str) -> str:
    """``page`` with the table between its two marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(begin)
    return before + begin + table + end + rest.split(end)[1]


def with_sizes(page: str) -> str:
    """``page`` with the table of sizes as it is now."""
    return with_table(page, "sizes", size_table())


if __name__ == "__main__":
    text = with_sizes(PAGE.read_text(encoding="utf-8"))
    if "--quality" in sys.argv[1:]:
        text = with_table(text, "quality", quality_table())
    write_text(PAGE, text)
