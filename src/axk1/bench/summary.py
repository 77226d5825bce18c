"""Medians and spreads of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one thing: the median, and how far they lie apart."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Highest minus lowest, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary:
    """The summary of at least one value.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("There is nothing to summarise.")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def rotated(items: Sequence, by: int) -> list:
    """``items`` starting with number ``by``: who measures first changes from round to round."""
    start = by % len(items) if items else 0
    return [*items[start:], *items[:start]]
