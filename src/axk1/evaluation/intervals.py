"""Means over problems, with the interval that they are sure of."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypedDict


class Share(TypedDict):
    """A mean between 0 and 1 (None of nothing), of how many values, and its 95% interval."""

    share: float | None
    count: int
    interval: tuple[float, float] | None


def wilson(share: float, problems: int) -> tuple[float, float]:
    """The 95% interval of a share over so many independent problems (Wilson, 1927).

    It holds for means of values between 0 and 1, too: their variance is at most that of a share. Repeats of a problem
    are not independent, so they make a share surer and do not count: the interval is too wide with them, never too
    narrow.
    """
    z = 1.959964
    centre, spread = (
        share + z * z / (2 * problems),
        z * (share * (1 - share) / problems + (z / (2 * problems)) ** 2) ** 0.5,
    )
    scale = 1 + z * z / problems
    return round(max(0.0, (centre - spread) / scale), 4), round(min(1.0, (centre + spread) / scale), 4)


def share_of(values: Iterable[tuple[Hashable, float]]) -> Share:
    """The mean of ``(problem, value)`` pairs; values are between 0 and 1, a problem may have several."""
    found = list(values)
    if not found:
        return {"share": None, "count": 0, "interval": None}
    mean = sum(value for _, value in found) / len(found)
    return {
        "share": round(mean, 4),
        "count": len(found),
        "interval": wilson(mean, len({problem for problem, _ in found})),
    }
