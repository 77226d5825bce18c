"""How probable a text is to a model that need not fit into memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from axk1.checkpoint.source import open_source
from axk1.layerwise.states import DTYPE, TOKENS, Compute, Pass, Progress, Rows
from axk1.layerwise.weights import EMBEDDING, HEAD, Weights
from axk1.modeling.objectives import IGNORE, shifted_labels


@dataclass(frozen=True)
class Score:
    """What a model makes of a text."""

    tokens: int
    """Those that were predicted."""
    nats: float
    """The mean negative log-probability of one."""
    right: float
    """The share that was the most probable token."""

    @property
    def perplexity(self) -> float:
        """e to the power of ``nats``."""
        return math.exp(self.nats)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "perplexity": self.perplexity}


def score(source: Path | str, rows: Rows, folder: Path | None = None, progress: Progress | None = None) -> Score:
    """Scores the labels of ``rows``, each from the tokens before it in its document, in float32.

    Args:
        source: a folder, a name on the hub or an HTTP address; quantised checkpoints too.
        folder, progress: as of :class:`Pass`.

    Raises:
        CheckpointError: a faulty checkpoint.
        ValueError: no token is to be counted.
    """
    targets = shifted_labels(rows.labels, rows.positions, 1)
    wanted = targets != IGNORE
    if not wanted.any():
        raise ValueError("There is no token to score: a text needs two at least.")
    with open_source(source) as opened:
        weights = Weights(opened)
        states = Pass(weights, rows, Compute(), folder, progress).run()[wanted]
        nats, right = losses(weights, states, targets[wanted])
        opened.finish(set())  # compares sums
    return Score(len(nats), nats.double().mean().item(), right.double().mean().item())


@torch.no_grad()
def losses(weights: Weights, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the states ``[N, D]`` after the final norm: ``[N]`` negative log-probabilities of the ids ``[N]``, and whether
    each was the most probable; rows of the head are in memory some at a time."""
    tied = weights.config.tie_word_embeddings or not weights.has(HEAD)
    total = torch.full((len(states),), -math.inf)
    most, logit = total.clone(), total.clone()
    for first, head in weights.parts(EMBEDDING if tied else HEAD, DTYPE):
        for some in range(0, len(states), TOKENS):
            part = slice(some, some + TOKENS)
            logits = states[part] @ head.T
            total[part] = torch.logaddexp(total[part], logits.logsumexp(-1))
            most[part] = torch.maximum(most[part], logits.amax(-1))
            places = targets[part] - first
            here = (places >= 0) & (places < len(head))
            logit[part][here] = logits[here, places[here]]
    return total - logit, logit == most
