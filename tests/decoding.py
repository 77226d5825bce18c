"""Running the decode loop in tests."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from tiny import PAD

from axk1.generation.decode import decode
from axk1.generation.sampling import Sampling


def replies(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> list[list[int]]:
    """The tokens of each prompt's reply, all steps together."""
    rows: list[list[int]] = [[] for _ in prompts]
    for step in decode(model, prompts, sampling, **{"stop_ids": (), "pad_id": PAD, "max_new_tokens": 12, **options}):
        for row, new in zip(rows, step, strict=True):
            row += new
    return rows


def chi_square_fits(counts: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Whether ``counts`` of cells are draws from ``probabilities``, at a level of 1 in 10,000. Cells that expect fewer
    than five are taken together."""
    assert not counts[probabilities == 0].any(), "a token of no probability was drawn"
    expected = probabilities * counts.sum()
    rare = expected < 5
    cells = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    means = torch.cat([expected[~rare], expected[rare].sum()[None]]).double()
    cells, means = cells[means > 1e-9], means[means > 1e-9]
    if len(cells) == 1:
        return True
    statistic, freedom = float(((cells - means) ** 2 / means).sum()), len(cells) - 1
    # Wilson and Hilferty: the cube root of chi-square / freedom is close to normal
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 3.72
