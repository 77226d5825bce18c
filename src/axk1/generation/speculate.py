"""MTP speculation: the module drafts a few tokens, the trunk checks them all in one step, and none changes the output.

A draft is made by the MTP module from the trunk's last state and the newest token; further ones by applying the module
again to its own state and its own draft. The trunk then runs over the newest token and the drafts at once, and tokens
are taken as they would have been one by one. With the drafts' columns that were wrong forgotten, both caches hold what
plain decoding would have left there: the module's columns are made from the trunk's states, never from guessed ones.

Shapes: B rows, k drafts, T columns, D hidden, V vocabulary.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from axk1.generation.gate import Gate
from axk1.generation.rows import Columns, Rows
from axk1.generation.sampling import Draws, Sampling, Scorer, choose
from axk1.modeling import AXK1ForCausalLM
from axk1.modeling.cache import LatentCache
from axk1.modeling.mtp import DraftHead

AUTO = -1
DRAFT_LIMIT = 15  # with the newest token 16 columns: compiled kernels take them at once, with a few neighbours
TIE_GAPS = {torch.float32: 2e-4, torch.bfloat16: 0.5, torch.float16: 0.06}
"""The stated gap, in logits: what checking several tokens at once, or a batch, may move the difference of two by."""
WAITING_COLUMNS = 256
"""Columns decoded without drafts that the module can catch up on; after more, this call goes on without it."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """How a call drafts.

    Args:
        count: drafts a step, 0 for none, ``AUTO`` for as many as measurably pay (none, if none do).
        exact: with one prompt, greedy or seeded: decide every near-tie as plain decoding does, by computing it again
            as plain decoding would. Compiled kernels need no second look: they give the same bits however many tokens
            they check at once. Otherwise (``fast``) the output may differ where the best two are that close.
        tie_gap: what is near, in logits; ``TIE_GAPS`` of the model's dtype if None.
        gate: the measurements ``AUTO`` goes by and adds to; the call's own if None.
        clock: seconds, for these measurements.

    Raises:
        ValueError: ``count`` is out of range.
    """

    count: int = AUTO
    exact: bool = True
    tie_gap: float | None = None
    gate: Gate | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if not AUTO <= self.count <= DRAFT_LIMIT:
            raise ValueError(f"drafts is {self.count}; it must be auto, or between 0 (none) and {DRAFT_LIMIT}.")


NO_DRAFTS = Drafts(0)


@dataclass(slots=True)
class DraftStatistics:
    """What a call did, filled in while it runs. Drafts are counted in rows that had not ended."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_at: list[int] = field(default_factory=list)
    """Drafts made at each place: first, second, ..."""
    accepted_at: list[int] = field(default_factory=list)
    replays: int = 0
    """Near-ties that were computed again (``Drafts.exact``)."""
    drafts: int = 0
    """Drafts in the last step: the state of the gate."""
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    """Tokens of steps without, and with drafts."""
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Seconds these took."""

    @property
    def acceptance(self) -> float | None:
        """Accepted drafts, as a share; None without drafts."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def acceptance_at(self) -> list[float]:
        """The same for the first draft of a step, the second, ..."""
        return [accepted / drafted for accepted, drafted in zip(self.accepted_at, self.drafted_at, strict=True)]

    @property
    def rates(self) -> tuple[float | None, float | None]:
        """Tokens a second of the whole batch, in steps without and in steps with drafts."""
        without, drafting = (n / s if s else None for n, s in zip(self.tokens, self.seconds, strict=True))
        return without, drafting

    def record(self, drafts: int, accepted: Sequence[int], tokens: int, seconds: float) -> None:
        """A step: ``drafts`` made in each running row, ``accepted`` of them in each, ``tokens`` yielded in all."""
        self.steps += 1
        self.drafts = drafts
        self.drafted += drafts * len(accepted)
        self.accepted += sum(accepted)
        for at in range(drafts):
            if at == len(self.drafted_at):
                self.drafted_at.append(0)
                self.accepted_at.append(0)
            self.drafted_at[at] += len(accepted)
            self.accepted_at[at] += sum(n > at for n in accepted)
        self.tokens[drafts > 0] += tokens
        self.seconds[drafts > 0] += seconds


def can_draft(model: object) -> bool:
    """Whether the model is ours and has an MTP module."""
    return isinstance(model, AXK1ForCausalLM) and model.config.num_nextn_predict_layers > 0


def tie_gap(drafts: Drafts, dtype: torch.dtype) -> float:
    """The gap of ``drafts`` for a model of ``dtype``."""
    return TIE_GAPS.get(dtype, TIE_GAPS[torch.bfloat16]) if drafts.tie_gap is None else drafts.tie_gap


class Drafter:
    """Makes drafts for a batch, and keeps the MTP module's cache at the trunk's columns.

    What the trunk has computed since the module last ran waits here until the next drafts, and is run through the
    module at once then.
    """

    def __init__(self, rows: Rows, sampling: Sampling, scorer: Scorer, draws: Draws) -> None:
        assert can_draft(rows.model)
        self._rows, self._scorer, self._draws, self._greedy = rows, scorer, draws, sampling.greedy
        self._model = cast(AXK1ForCausalLM, rows.model)
        self._cache = cast(LatentCache, rows.cache)
        self._layer = self._cache.layers[self._model.config.num_hidden_layers]
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waited = 0
        self.usable = True
        """False once too much has waited."""

    def follow(self, states: Tensor, following: Tensor, positions: Tensor) -> None:
        """The trunk has new columns: its post-norm states ``[B, T, D]``; the tokens after them and their positions,
        both ``[B, T]``."""
        if not self.usable:
            return
        self._waiting.append((states, following, positions))
        if states.shape[1] == 1:
            self._waited += 1
        if self._waited > WAITING_COLUMNS:
            self._waiting.clear()
            self._layer.reset()
            self.usable = False

    def _take_waiting(self) -> tuple[Tensor, Tensor, Tensor]:
        """What waits, in one piece."""
        states, following, positions = (
            self._waiting[0]
            if len(self._waiting) == 1
            else (torch.cat(parts, 1) for parts in zip(*self._waiting, strict=True))
        )
        self._waiting.clear()
        self._waited = 0
        return states, following, positions

    def catch_up(self) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the module over what waits; returns its states ``[B, T, D]``, or the last ones where nothing is masked,
        the last one's logits ``[B, 1, V]``, and the positions ``[B, T]``."""
        states, following, positions = self._take_waiting()
        return *self._run(states, following, positions), positions

    def _run(self, states: Tensor, following: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The module over the trunk's states, or its own, and the tokens after them: states, and the last's logits."""
        rows = self._rows
        mask = rows.mask(self._layer.get_seq_length() + states.shape[1])
        found = None
        if rows.decoder is not None:
            found = rows.decoder.draft(states, following, positions, mask, 1, rows.masked)
        if found is not None:
            return found.states, found.logits
        where = {"attention_mask": mask, "position_ids": cast(torch.LongTensor, positions)}
        drafted = self._model.model.draft(states, following, self._cache, **where)
        return drafted, self._logits(drafted[:, -1:])

    @cached_property
    def _head(self) -> DraftHead | None:
        return self._model.draft_head()

    def _logits(self, states: Tensor) -> Tensor:
        """``[B, T, V]`` of the module's states ``[B, T, D]``."""
        logits = self._head(states) if self._head else self._model.logits(states, self._cache)
        return logits.to(self._rows.device)

    def speculate(self, positions: Tensor, count: int) -> tuple[Tensor, Columns] | None:
        """:meth:`Rows.speculate` behind what waits here; None where the step has to be taken in parts."""
        if not self._greedy or not self._scorer.plain:
            return None
        waiting = self._take_waiting()
        found = self._rows.speculate(waiting, positions, count)
        if found is None:
            self._waiting.append(waiting)
        else:
            self._rows.history.write(found[0][:, 1:])
        return found

    def propose(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Drafts ``[B, count]``, written behind each row's tokens; and for ``accept`` the probabilities
        ``[B, count, V]`` they were drawn by, where they were."""
        rows = self._rows
        states, logits, positions = self.catch_up()
        state, logits = states[:, -1:], logits[:, -1:]
        if rows.masked:
            # a row's newest column is the last at its highest position: holes before it may have had the same
            here = (positions == rows.history.counts[:, None] - 2).int()
            newest = (here * torch.arange(1, here.shape[1] + 1, device=here.device)).argmax(1)
            state = states[torch.arange(len(newest), device=newest.device), newest][:, None]
            logits = self._logits(state)
            rows.close_up([self._layer])
        drafts, probabilities = [], []
        for ahead in range(count):
            if ahead:
                where = rows.history.counts[:, None] + (ahead - 2)
                state, logits = self._run(state, drafts[-1], where)
            scores = self._scorer(logits, rows.history, ahead)
            drafts.append(self._draw(scores, ahead))
            rows.history.write(drafts[-1], ahead)
            if not self._greedy and not self._draws.seeded:
                probabilities.append(scores.softmax(-1))
        self._layer.crop(1 - count)
        return torch.cat(drafts, 1), torch.cat(probabilities, 1) if probabilities else None

    def _draw(self, scores: Tensor, ahead: int) -> Tensor:
        """A token ``[B, 1]`` of ``scores`` ``[B, 1, V]``; seeded, with the very noise the trunk's token will meet."""
        if self._greedy:
            return choose(scores, None)
        noise = self._draws.noise(scores.shape[0], ahead + 1 if self._draws.seeded else 1, scores.shape[-1])
        return choose(scores, noise[:, -1:])

    def select(self, rows: Sequence[int]) -> None:
        """Keeps ``rows``, in their order; their cache is the batch's."""
        index = torch.tensor(rows, device=self._rows.device)
        self._waiting = [(a[index], b[index], c[index]) for a, b, c in self._waiting]


def agreeing(ids: Tensor, tokens: Tensor) -> list[int]:
    """For each row, how many drafts, ``ids`` ``[B, k + 1]`` but the first, equal the trunk's own ``tokens``
    ``[B, k + 1]`` before the first that does not."""
    count = ids.shape[1] - 1
    pairs = zip(ids.tolist(), tokens.tolist(), strict=True)  # a few numbers are quicker compared here
    return [next((at for at in range(count) if mine[at + 1] != own[at]), count) for mine, own in pairs]


def accept(scores: Tensor, drafts: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Rejection sampling (arXiv 2211.17192, 2302.01318): tokens distributed exactly as draws from ``scores``.

    Draft j, drawn by q, stays with probability min(1, p / q). The first that does not is replaced by a draw from
    max(p - q, 0); behind the last, one more token is drawn from p.

    Args:
        scores: the trunk's ``[B, k + 1, V]``; p is their softmax.
        drafts: ``[B, k]``.
        probabilities: q, ``[B, k, V]``.

    Returns:
        tokens ``[B, k + 1]``, of which the first ``accepted + 1`` count; and ``accepted`` ``[B]``.
    """
    target, count = scores.softmax(-1), drafts.shape[1]
    p = target[:, :count].gather(2, drafts[..., None])[..., 0]
    q = probabilities.gather(2, drafts[..., None])[..., 0]
    kept = torch.rand_like(p) * q < p
    accepted = kept.long().cumprod(1).sum(1)
    batch = torch.arange(len(drafts), device=drafts.device)
    here = target[batch, accepted]
    at = accepted.clamp(max=count - 1)
    rest = (here - probabilities[batch, at]).clamp(min=0)
    # nothing is left of p - q where the two differ by rounding only: then either will do
    use_rest = (accepted < count) & (rest.sum(-1) > 0)
    weights = torch.where(use_rest[:, None], rest, here)
    token = (weights / torch.empty_like(weights).exponential_()).argmax(-1)
    tokens = torch.cat([drafts, drafts[:, -1:]], 1).scatter(1, accepted[:, None], token[:, None])
    return tokens, accepted
