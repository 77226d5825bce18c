"""Writes the table of sizes in ``docs/quantization.md``: ``python docs/quantization.py``."""

from __future__ import annotations

from pathlib import Path

from axk1.checkpoint.compressed import make_plan
from axk1.cli.info import size_text
from axk1.config import AXK1Config
from axk1.files import write_text
from axk1.plan.weights import weight_sizes
from axk1.quantized import KINDS

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- sizes -->\n", "<!-- end of sizes -->"
HEADER = "| model | weights | size | of bfloat16 | read per token |\n|---|---|---|---|---|\n"


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
    return HEADER + "".join(lines)


def with_sizes(page: str) -> str:
    """``page`` with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + size_table() + END + rest.split(END)[1]


if __name__ == "__main__":
    write_text(PAGE, with_sizes(PAGE.read_text(encoding="utf-8")))
