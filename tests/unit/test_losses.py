"""Targets and token losses against plain loops."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axk1.modeling import objectives
from axk1.modeling.objectives import IGNORE, shifted_labels, token_loss


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    start=st.integers(0, 5),
    shift=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_targets_stay_inside_their_document(lengths: list[int], start: int, shift: int, seed: int) -> None:
    """Documents of any length, one token too; the first may go on from an earlier row (its positions start later)."""
    total = sum(lengths)
    labels = torch.randint(0, 9, (1, total), generator=torch.Generator().manual_seed(seed))
    labels[labels == 0] = IGNORE
    positions, owner = [], []
    for number, length in enumerate(lengths):
        first = start if number == 0 else 0
        positions += range(first, first + length)
        owner += [number] * length
    found = shifted_labels(labels, torch.tensor([positions]), shift)[0].tolist()
    for i in range(total):
        j = i + shift
        inside = j < total and owner[j] == owner[i]
        assert found[i] == (labels[0, j].item() if inside else IGNORE)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), length=st.integers(1, 6), shift=st.integers(1, 8))
def test_rows_without_positions_are_one_document_each(batch: int, length: int, shift: int) -> None:
    labels = torch.arange(batch * length).view(batch, length)
    expected = [[row[i + shift] if i + shift < length else IGNORE for i in range(length)] for row in labels.tolist()]
    assert shifted_labels(labels, None, shift).tolist() == expected
    shared = torch.arange(length)[None]  # one row of positions for the whole batch
    assert shifted_labels(labels, shared, shift).tolist() == expected


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)])
def test_token_loss_is_the_mean_surprise(items: int | torch.Tensor | None) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 4, 8), torch.nn.Linear(8, 5, bias=False)
    targets = torch.tensor([[1, IGNORE, 3, 0], [IGNORE, IGNORE, 4, IGNORE]])
    total = 0.0
    for row, position in ((0, 0), (0, 2), (0, 3), (1, 2)):
        total -= head(hidden[row, position]).log_softmax(-1)[targets[row, position]].item()
    assert token_loss(hidden, head, targets, items).item() == pytest.approx(total / (7 if items is not None else 4))


def test_nothing_to_learn_is_zero_and_has_a_gradient() -> None:
    hidden, head = torch.randn(1, 3, 8, requires_grad=True), torch.nn.Linear(8, 5, bias=False)
    loss = token_loss(hidden, head, torch.full((1, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0 and head.weight.grad is not None and not head.weight.grad.any()


def test_loss_is_computed_in_fp32() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(1, 64, 8).bfloat16(), torch.nn.Linear(8, 300, bias=False).bfloat16()
    targets = torch.randint(0, 300, (1, 64))
    loss = token_loss(hidden, head, targets)
    exact = torch.nn.functional.cross_entropy(head(hidden).float().flatten(0, 1), targets.flatten())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), abs=1e-6)


def test_head_runs_on_labelled_rows_only() -> None:
    seen: list[int] = []
    head = torch.nn.Linear(8, 5, bias=False)
    head.register_forward_hook(lambda module, args, output: seen.append(args[0].numel() // 8))
    targets = torch.full((2, 10), IGNORE)
    targets[1, 3:5] = 1
    token_loss(torch.randn(2, 10, 8), head, targets)
    assert seen == [2]


class Scaled(torch.nn.Linear):
    """No plain linear layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", ["plain", "hooked", "subclass", "frozen", "bf16"])
def test_a_loss_in_chunks_is_the_whole_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, for heads that torch's chunks take and heads that they must not."""
    monkeypatch.setattr(objectives, "CHUNK_ROWS", 3)
    torch.manual_seed(0)
    head = (Scaled if kind == "subclass" else torch.nn.Linear)(8, 50, bias=False)
    hidden, targets = torch.randn(2, 7, 8), torch.randint(0, 50, (2, 7)).masked_fill(torch.rand(2, 7) < 0.2, IGNORE)
    if kind == "hooked":
        head.register_forward_hook(lambda module, args, output: 3 * output)  # pyright: ignore
    if kind == "bf16":
        head, hidden = head.bfloat16(), hidden.bfloat16()
    head.requires_grad_(kind != "frozen")
    found = []
    for limit in (2**26, 0):
        monkeypatch.setattr(objectives, "WHOLE_LOGITS", limit)
        head.weight.grad, states = None, hidden.clone().requires_grad_()
        loss = token_loss(states, head, targets, 5)
        (2 * loss).backward()
        found.append((loss.detach(), states.grad, None if head.weight.grad is None else head.weight.grad.clone()))
    tolerance: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2} if kind == "bf16" else {"rtol": 1e-5, "atol": 1e-6}
    for whole, chunked in zip(*found, strict=True):
        assert (whole is None) == (chunked is None)
        if whole is not None:
            torch.testing.assert_close(chunked, whole, **tolerance)
    assert (found[0][2] is None) == (kind == "frozen")


PEAK = """
import sys, torch
from axk1.bench.workers.protocol import peak_rss
from axk1.modeling import objectives
objectives.WHOLE_LOGITS = int(sys.argv[1])
torch.manual_seed(0)
head, states = torch.nn.Linear(16, 163_840, bias=False), torch.randn(1, 512, 16, requires_grad=True)
targets = torch.randint(0, 163_840, (1, 512))
objectives.token_loss(states[:, :1], head, targets[:, :1]).backward()
before = peak_rss()
objectives.token_loss(states, head, targets).backward()
print(peak_rss() - before)
"""


def test_logits_of_the_released_vocabulary_are_never_whole() -> None:
    """Rows of 163,840 logits whole, several times over, and in chunks: half of that at most."""

    def peak(limit: int) -> int:
        done = subprocess.run([sys.executable, "-c", PEAK, str(limit)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    whole = peak(2**40)
    assert whole > 0.25e9
    assert peak(objectives.WHOLE_LOGITS) < whole / 2
