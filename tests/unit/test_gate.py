"""The gate: it finds the number of drafts that pays on a machine of given costs, and notices when that changes."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from axk1.generation.gate import Gate

Cost = Callable[[int], tuple[int, float]]


def run(gate: Gate, cost: Cost, steps: int, rows: int = 1) -> list[int]:
    """The numbers chosen; ``cost`` gives tokens and seconds of a step with so many drafts."""
    chosen = []
    for _ in range(steps):
        drafts = gate.choose(rows)
        gate.record(rows, drafts, *cost(drafts))
        chosen.append(drafts)
    return chosen


def machine(accepted: float, step: float, token: float, draft: float) -> Cost:
    """Drafts are accepted with a fixed share, which the tokens of successive steps add up to."""
    sums = {drafts: 0.0 for drafts in range(16)}

    def cost(drafts: int) -> tuple[int, float]:
        before = int(sums[drafts])
        sums[drafts] += 1 + sum(accepted**n for n in range(1, drafts + 1))
        return int(sums[drafts]) - before, step + token * drafts + draft * drafts

    return cost


@pytest.mark.parametrize(
    ("accepted", "token", "draft", "best"),
    [
        (0.9, 0.0, 0.05, 4),  # a memory-bound trunk: as many as allowed
        (0.6, 0.0, 0.2, 2),
        (0.7, 0.7, 0.1, 0),  # experts stream: a second token costs nearly as much as the first
        (0.6, 0.2, 0.15, 1),
        (0.0, 0.0, 0.05, 0),
    ],
)
def test_nearly_all_that_the_fastest_number_gives_is_had(accepted, token, draft, best):
    cost = machine(accepted, 1.0, token, draft)
    rates = {n: (1 + sum(accepted**i for i in range(1, n + 1))) / (1 + (token + draft) * n) for n in range(5)}
    assert max(rates, key=lambda n: rates[n]) == best
    done: list[tuple[int, float]] = []
    run(Gate(), lambda drafts: done.append(cost(drafts)) or done[-1], 2_000)
    assert sum(n for n, _ in done) / sum(s for _, s in done) > 0.97 * rates[best]


def test_drafts_that_do_not_pay_are_tried_less_and_less():
    chosen = run(Gate(), machine(0.5, 1.0, 1.0, 0.2), 20_000)
    trials = [at for at, drafts in enumerate(chosen) if drafts]
    assert len(trials) < 100
    assert max(b - a for a, b in pairwise(trials)) > 4_000


def test_a_change_is_noticed():
    """Text that is hard to guess: drafts are given up within a few steps, and come back when it is easy again."""
    gate = Gate()
    easy, hard = machine(0.9, 1.0, 0.0, 0.1), machine(0.05, 1.0, 0.0, 0.1)
    assert run(gate, easy, 300)[-1] == 4
    chosen = run(gate, hard, 200)
    assert chosen[-50:].count(0) + chosen[-50:].count(1) >= 40
    assert max(run(gate, easy, 3_000)[-200:]) == 4


def test_sizes_of_batches_are_measured_apart():
    gate = Gate()
    run(gate, machine(0.9, 1.0, 0.0, 0.1), 200, rows=1)
    run(gate, machine(0.9, 1.0, 1.0, 0.1), 200, rows=32)
    assert gate.choose(1) == 4 and gate.choose(32) == 0 and gate.choose(33) == 0
    assert gate.may_draft(1) and not gate.may_draft(40) and gate.may_draft(8)
    assert gate.rates(1)[4] > gate.rates(1)[0]


def test_other_steps_are_passed_over():
    """The last steps of a reply make fewer drafts than were chosen."""
    gate = Gate(trial=2)
    for _ in range(50):
        gate.record(1, 3, 1, 100.0)
    assert gate.choose(1) == 0 and gate.rates(1) == {}


def test_no_drafts_allowed():
    assert set(run(Gate(most=0), machine(1.0, 1.0, 0.0, 0.0), 300)) == {0}
