"""Running the decode loop in tests."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import PAD, VOCAB
from transformers import LogitsProcessor

from axk1.generation import loop
from axk1.generation.decode import decode
from axk1.generation.executors import ModuleExecutor
from axk1.generation.loop import Loop
from axk1.generation.pages import Pool
from axk1.generation.sampling import Sampling
from axk1.kernels.batch import Batch, Executor, Step


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


class Watched:
    """An executor that tests look at, or change, while it works."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.exact = inner, inner.exact

    def step(self, batch: Batch) -> Step:
        return self.inner.step(batch)

    def draft(self, batch: Batch, hidden: torch.Tensor) -> Step:
        return self.inner.draft(batch, hidden)

    def speculate(
        self, module: Batch, hidden: torch.Tensor, trunk: Batch, count: int
    ) -> tuple[torch.Tensor, Step] | None:
        return self.inner.speculate(module, hidden, trunk, count)


class OneByOne:
    """The modules, a token of a reply at a time: slow, and exact where prompts are cut in the same places."""

    exact = True

    def __init__(self, model: Any) -> None:
        self.modules = ModuleExecutor(model)

    def step(self, batch: Batch) -> Step:
        return self.run(batch, lambda part, here: self.modules.step(part))

    def draft(self, batch: Batch, hidden: torch.Tensor) -> Step:
        return self.run(batch, lambda part, here: self.modules.draft(part, hidden[here]))

    def speculate(self, module: Batch, hidden: torch.Tensor, trunk: Batch, count: int) -> tuple[torch.Tensor, Step]:
        ids, made = trunk.ids.view(-1, count + 1), self.draft(module, hidden)
        ids[:, 1] = made.best
        for ahead in range(1, count):
            first = [cached + ahead - 1 for cached in trunk.cached]
            again = replace(
                module, ids=made.best, positions=torch.tensor(first), starts=list(range(len(ids) + 1)), cached=first
            )
            made = self.draft(again, made.states)
            ids[:, ahead + 1] = made.best
        return ids, self.step(trunk)

    def run(self, batch: Batch, run: Callable[[Batch, slice], Step]) -> Step:
        found = []
        for b, (first, last) in enumerate(pairwise(batch.starts)):
            width = last - first if b < batch.prompts else 1
            for at in range(first, last, width):
                here, left = slice(at, at + width), last - at - width
                wanted, states = ([max(min(n - left, width), 0)] for n in (batch.wanted[b], batch.states[b]))
                cached, prompts = [batch.cached[b] + at - first], int(b < batch.prompts)
                alone = batch.pages[b : b + 1], batch.tables[b : b + 1]
                part = batch.ids[here], batch.positions[here], [0, width], cached, prompts, wanted, states, *alone
                found.append(run(Batch(*part), here))
        return Step(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def use_executor(patch: pytest.MonkeyPatch, make: Callable[[Any, Pool], Executor]) -> None:
    """Loops ask ``make`` for their executor."""
    patch.setattr(loop, "executor_for", make)


def use_modules(patch: pytest.MonkeyPatch) -> None:
    """Loops run the modules themselves, as the reference does."""
    use_executor(patch, lambda model, pool: ModuleExecutor(model))


def is_compiled(model: Any) -> bool:
    """Whether loops have exact kernels for ``model`` here."""
    return Loop(model).executor.exact


class Forbid(LogitsProcessor):
    """Forbids what is ``distance`` tokens back: depends on the length and the tokens of the row alone."""

    def __init__(self, distance: int):
        self.distance = distance

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == scores.shape[0] == 1
        scores = scores.clone()
        if input_ids.shape[1] >= self.distance:
            scores[0, input_ids[0, -self.distance]] = float("-inf")
        scores[0, input_ids.shape[1] % VOCAB] += 1.0
        return scores
