"""The curve of a run: tokens per second against context, both logarithmic, as an SVG whose text is text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from axk1.bench.report import number
from axk1.svg import COLOURS, GRID, LogAxis, Point, document, line, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 60, 180, 40, 50


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
    across = LogAxis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = LogAxis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    parts = [
        text(LEFT, 20, f"Decoding, {data['model']['name']}, batch 1, tokens/s", weight="bold"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "tokens of context", anchor="middle"),
        *_grid(across, up, sorted({x for x, _ in points})),
    ]
    for index, (name, curve) in enumerate(curves.items()):
        parts += _curve(name, [(across(x), up(y)) for x, y in curve], index)
    return document(WIDTH, HEIGHT, parts)


def _grid(across: LogAxis, up: LogAxis, contexts: Sequence[float]) -> list[str]:
    parts = []
    for value in up.ticks():
        parts.append(line([(LEFT, up(value)), (WIDTH - RIGHT, up(value))], GRID))
        parts.append(text(LEFT - 6, up(value) + 4, number(value), anchor="end"))
    for value in contexts:
        parts.append(line([(across(value), TOP), (across(value), HEIGHT - BOTTOM)], GRID))
        parts.append(text(across(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}", anchor="middle"))
    return parts


def _curve(name: str, points: list[Point], index: int) -> list[str]:
    colour = "#888888" if name == "bound" else COLOURS[index % len(COLOURS)]
    height = TOP + 10 + 20 * index
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points if name != "bound"]
    key = line([(WIDTH - RIGHT + 15, height), (WIDTH - RIGHT + 40, height)], colour, 2, name == "bound")
    label = text(WIDTH - RIGHT + 46, height + 4, "bandwidth bound" if name == "bound" else name)
    return [line(points, colour, 2, name == "bound"), *dots, key, label]
