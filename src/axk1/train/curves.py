"""The curves of a stage as one SVG: losses, experts' load, router biases, acceptance and gradient norm, by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from axk1.svg import COLOURS, GRID, LinearAxis, LogAxis, Point, document, line, text

PANELS: dict[str, dict[str, str]] = {
    "Loss, nats a token": {"lm_loss": "next token", "mtp_loss": "MTP"},
    "Busiest expert over an equal share": {"expert_load": "mean of layers", "expert_load_max": "worst layer"},
    "Router bias": {"router_bias": "largest"},
    "Drafts accepted": {"acceptance": "first draft"},
    "Gradient norm": {"grad_norm": "before clipping"},
}
"""Title of each panel, and the logged values that are in it, by their names in ``log.jsonl``."""
WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM, BETWEEN = 720, 110, 70, 170, 40, 45, 34


def draw_curves(name: str, history: Sequence[Mapping[str, Any]]) -> str:
    """The SVG of what a stage logged; panels without values are left out.

    Args:
        history: lines of ``log.jsonl``; those with ``step`` count.

    Raises:
        ValueError: nothing was logged that is drawn.
    """
    panels = {title: found for title, keys in PANELS.items() if (found := _curves(history, keys))}
    if not panels:
        raise ValueError(f"Stage {name} logged nothing to draw.")
    height = TOP + len(panels) * (PANEL + BETWEEN) - BETWEEN + BOTTOM
    steps = [x for curves in panels.values() for curve in curves.values() for x, _ in curve]
    across = LinearAxis([min(steps), max(steps)], LEFT, WIDTH - RIGHT)
    parts = [text(LEFT, 16, f"{name}: {max(steps):,.0f} steps", weight="bold")]
    for number, (title, curves) in enumerate(panels.items()):
        parts += _panel(title, curves, across, TOP + number * (PANEL + BETWEEN))
    bottom = height - BOTTOM
    parts += [text(across(x), bottom + 16, f"{x:,.0f}", "middle") for x in across.ticks() if x == int(x)]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 8, "optimizer step", "middle"))
    return document(WIDTH, height, parts)


def _curves(history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, list[Point]]:
    found = {
        label: [(row["step"], row[key]) for row in history if "step" in row and math.isfinite(row.get(key, math.nan))]
        for key, label in keys.items()
    }
    return {label: points for label, points in found.items() if points}


def _panel(title: str, curves: Mapping[str, list[Point]], across: LinearAxis, top: float) -> list[str]:
    """Its grid, title, lines and key; logarithmic where all values are above 0 and span more than a factor of 3."""
    values = [y for points in curves.values() for _, y in points]
    spread = min(values) > 0 and max(values) > 3 * min(values)
    up = (LogAxis if spread else LinearAxis)(values, top + PANEL, top)
    parts = [text(LEFT, top - 6, title)]
    for value in up.ticks():
        parts.append(line([(LEFT, up(value)), (WIDTH - RIGHT, up(value))], GRID))
        parts.append(text(LEFT - 6, up(value) + 4, f"{value:.3g}", "end"))
    for number, (label, points) in enumerate(curves.items()):
        colour, height = COLOURS[number], top + 12 + 20 * number
        parts.append(line([(across(x), up(y)) for x, y in points], colour, 1.5))
        parts.append(line([(WIDTH - RIGHT + 15, height), (WIDTH - RIGHT + 40, height)], colour, 2))
        parts.append(text(WIDTH - RIGHT + 46, height + 4, label))
    return parts
