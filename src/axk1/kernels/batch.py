"""What a step of the model reads and returns, and what runs it: tokens of many sequences, one after the other, without
padding.

Shapes: B sequences, N tokens of a step, P pages of the longest sequence, D hidden, V vocabulary, W tokens whose logits
are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor


@dataclass(slots=True)
class Batch:
    """The new tokens of a step. First come the sequences that read a piece of their prompt, then those that reply."""

    ids: Tensor
    """``[N]`` int64."""
    positions: Tensor
    """``[N]`` int64: each sequence counts its own tokens."""
    starts: list[int]
    """B + 1 places in ``ids``: sequence b has those from ``starts[b]`` to ``starts[b + 1]``."""
    cached: list[int]
    """Tokens that each sequence has in its pages before this step, in the layers that run."""
    prompts: int
    """How many of the first sequences read a piece of their prompt. What a token is computed by depends on this role
    and on nothing else of the batch."""
    wanted: list[int]
    """Of how many of its last tokens logits are wanted, for each sequence."""
    states: list[int]
    """Of how many of its last tokens states are wanted: no fewer."""
    pages: Tensor
    """``[B, P]`` int64, on the CPU: the addresses of each sequence's pages, 0 where there is none."""
    tables: list[Any]
    """The pages themselves (``axk1.generation.pages.Table``)."""


class Step(NamedTuple):
    """What the model made of a batch."""

    states: Tensor
    """``[sum(states), D]``, after the norm, in the order of the tokens."""
    logits: Tensor
    """``[W, V]`` float32, W = sum(wanted); rounded as the states' dtype is."""
    best: Tensor
    """``[W]`` int64: the most probable tokens, of equal ones the first."""


class Executor(Protocol):
    """Runs steps of one model on one pool. Every token of a batch is written to its sequence's pages."""

    exact: bool
    """Whether the bits that a sequence gets depend neither on its neighbours, nor on where its prompt is cut, nor on
    how many of a reply's tokens are run at once."""

    def step(self, batch: Batch) -> Step:
        """The trunk over ``batch``."""
        ...

    def draft(self, batch: Batch, hidden: Tensor) -> Step:
        """The first MTP module over states ``hidden`` ``[N, D]`` (post-norm: the trunk's, or its own) at the batch's
        positions and ``ids``, the tokens after them; logits by :func:`axk1.kernels.draft_head.draft_head` where the
        model has one."""
        ...

    def speculate(self, module: Batch, hidden: Tensor, trunk: Batch, count: int) -> tuple[Tensor, Step] | None:
        """A greedy step with ``count`` drafts for each sequence: ``draft`` of ``module`` and ``hidden``; its most
        probable token, and count - 1 more by the module on its own last state and draft, at the positions that follow;
        then ``step`` of ``trunk``, whose ids hold each sequence's newest token and, for the drafts after it, any.

        Returns:
            The trunk's ids ``[B, count + 1]``, and what it made of them; None where the step has to be taken in parts.
        """
        ...
