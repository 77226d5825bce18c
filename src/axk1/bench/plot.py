"""The curve of a run: tokens per second against context, both logarithmic, as an SVG whose text is text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from axk1.bench.report import number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 60, 180, 40, 50
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
Point = tuple[float, float]


def decode_curves(data: dict[str, Any]) -> dict[str, list[Point]]:
    """(context, tokens/s) of every engine at batch 1, and the reference's bound."""
    curves: dict[str, list[Point]] = {}
    for row in sorted(data["results"], key=lambda row: row["context"]):
        if row["kind"] == "decode" and row["batch"] == 1 and row["values"]:
            curves.setdefault(row["engine"], []).append((row["context"], row["median"]))
            if row["engine"] == data["reference"]:
                curves.setdefault("bound", []).append((row["context"], row["bound"]))
    return curves


def draw(data: dict[str, Any]) -> str:
    """The SVG.

    Raises:
        ValueError: the run decoded nothing at batch 1.
    """
    curves = decode_curves(data)
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("--plot: the run has no decoding at batch 1 to draw.")
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(LEFT, 20, f"Decoding, {data['model']['name']}, batch 1, tokens/s", weight="bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "tokens of context", anchor="middle"),
        *_grid(across, up, sorted({x for x, _ in points})),
    ]
    for index, (name, curve) in enumerate(curves.items()):
        parts += _curve(name, [(across(x), up(y)) for x, y in curve], index)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """A logarithmic scale over values, with a little room at both ends."""

    def __init__(self, values: Sequence[float], start: float, stop: float) -> None:
        self.low, self.high = min(values) / 1.15, max(values) * 1.15
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [
            step * 10.0**power for power in powers for step in (1, 2, 5) if self.low <= step * 10.0**power <= self.high
        ]


def _grid(across: _Axis, up: _Axis, contexts: Sequence[float]) -> list[str]:
    parts = []
    for value in up.ticks():
        parts.append(_line([(LEFT, up(value)), (WIDTH - RIGHT, up(value))], "#dddddd"))
        parts.append(_text(LEFT - 6, up(value) + 4, number(value), anchor="end"))
    for value in contexts:
        parts.append(_line([(across(value), TOP), (across(value), HEIGHT - BOTTOM)], "#dddddd"))
        parts.append(_text(across(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}", anchor="middle"))
    return parts


def _curve(name: str, points: list[Point], index: int) -> list[str]:
    colour = "#888888" if name == "bound" else COLOURS[index % len(COLOURS)]
    height = TOP + 10 + 20 * index
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points if name != "bound"]
    key = _line([(WIDTH - RIGHT + 15, height), (WIDTH - RIGHT + 40, height)], colour, 2, name == "bound")
    label = _text(WIDTH - RIGHT + 46, height + 4, "bandwidth bound" if name == "bound" else name)
    return [_line(points, colour, 2, name == "bound"), *dots, key, label]


def _line(points: Sequence[Point], colour: str, width: float = 1, dashed: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
