"""MTP speculation: the module drafts a few tokens, the trunk checks them all in one step, and none changes the output.

A draft is made by the MTP module from the trunk's last state and the newest token; further ones by applying the module
again to its own state and its own draft. The trunk then runs over the newest token and the drafts at once, and tokens
are taken as they would have been one by one. Each sequence keeps as many as held. What was written for the others is
written again by what comes next, so the pages hold what plain decoding would have left there: the module's layer is
computed from the trunk's states, never from guessed ones.

Shapes: B sequences, k drafts, N tokens, D hidden, V vocabulary.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from axk1.generation.batch import Assembler, Sequence
from axk1.generation.gate import Gate
from axk1.generation.pages import Table
from axk1.generation.sampling import choose
from axk1.kernels.batch import Batch, Executor, Step
from axk1.modeling import AXK1ForCausalLM

AUTO = -1
DRAFT_LIMIT = 15  # with the newest token 16: compiled kernels take them at once, with a few neighbours
TIE_GAPS = {torch.float32: 2e-4, torch.bfloat16: 0.5, torch.float16: 0.06}
"""The stated gap, in logits: what checking several tokens at once, or a batch, may move the difference of two by."""
WAITING_STEPS = 256
"""Steps without drafts that the module can catch up on; after more, the sequence goes on without it."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """How a call drafts.

    Args:
        count: drafts per step, 0 for none, ``AUTO`` for as many as measurably pay (none, if none do).
        exact: with one prompt, greedy or seeded: decide every near-tie as plain decoding does, by computing it again
            as plain decoding would. Compiled kernels need no second look: they give the same bits however many tokens
            they check at once, and whoever the neighbours are. Otherwise the output may differ where the best two are
            that close.
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
    """What a call did, filled in while it runs. Steps that read prompts are left out."""

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
        """Tokens per second of the whole batch, in steps without and in steps with drafts."""
        without, drafting = (n / s if s else None for n, s in zip(self.tokens, self.seconds, strict=True))
        return without, drafting

    def record(self, drafted: list[int], accepted: list[int], tokens: int, seconds: float) -> None:
        """A step: drafts made in each running sequence, how many of them were accepted, ``tokens`` yielded in all."""
        self.steps += 1
        self.drafts = most = max(drafted)
        if most:
            self.drafted += sum(drafted)
            self.accepted += sum(accepted)
            for at in range(most):
                if at == len(self.drafted_at):
                    self.drafted_at.append(0)
                    self.accepted_at.append(0)
                self.drafted_at[at] += sum(n > at for n in drafted)
                self.accepted_at[at] += sum(n > at for n in accepted)
        self.tokens[most > 0] += tokens
        self.seconds[most > 0] += seconds


def can_draft(model: object) -> bool:
    """Whether the model is ours and has an MTP module."""
    return isinstance(model, AXK1ForCausalLM) and model.config.num_nextn_predict_layers > 0


def tie_gap(drafts: Drafts, dtype: torch.dtype) -> float:
    """The gap of ``drafts`` for a model of ``dtype``."""
    return TIE_GAPS.get(dtype, TIE_GAPS[torch.bfloat16]) if drafts.tie_gap is None else drafts.tie_gap


class Drafter:
    """Makes drafts for the sequences of a loop, and keeps the MTP module's layer of their pages at the trunk's tokens.

    What the trunk has computed since the module last ran waits in the sequence until its next drafts, and is run
    through the module at once then.
    """

    def __init__(self, executor: Executor, assembler: Assembler) -> None:
        self._executor, self._assembler = executor, assembler

    def follow(self, sequence: Sequence, states: Tensor) -> None:
        """The trunk has states ``[n, D]`` of n new tokens of ``sequence``."""
        sequence.waiting.append(states)
        if len(sequence.waiting) > WAITING_STEPS:
            sequence.drafting = False
            sequence.waiting.clear()

    def read(self, sequences: list[Sequence]) -> None:
        """Runs the module over the pieces of prompts that the trunk has just read, but for the last token of a whole
        prompt: the first drafts are made there."""
        parts = [s for s in sequences if s.drafting]
        counts = [s.cached - s.module - (not s.reading) for s in parts]
        parts = [s for s, count in zip(parts, counts, strict=True) if count]
        counts = [count for count in counts if count]
        if not parts:
            return
        states = [_joined(s.waiting) for s in parts]
        hidden = [some[:count] for some, count in zip(states, counts, strict=True)]
        batch = self._module_batch(parts, counts, [0] * len(parts), len(parts))
        self._executor.draft(batch, _joined(hidden))
        for s, some, count in zip(parts, states, counts, strict=True):
            s.module += count
            s.waiting[:] = [some[count:].clone()] if count < len(some) else []  # a view would keep the whole piece

    def speculate(self, sequences: list[Sequence], counts: list[int]) -> tuple[list[list[int]], Batch, Step] | None:
        """Drafts and the trunk's step over them in one, where all sequences have as many and take the most probable
        tokens: what came of it, and the trunk's ids of each sequence. Else None."""
        count = counts[0]
        if not all(s.plain and other == count for s, other in zip(sequences, counts, strict=True)):
            return None
        module, hidden = self._waiting(sequences)
        ids = [[s.tokens[-1]] + [0] * count for s in sequences]
        cached, wanted = [s.cached for s in sequences], [count + 1] * len(ids)
        trunk = self._assembler.batch([_table(s) for s in sequences], ids, cached, wanted)
        found = self._executor.speculate(module, hidden, trunk, count)
        if found is None:
            return None
        for s in sequences:
            self._caught_up(s)
        return found[0].tolist(), trunk, found[1]

    def propose(self, sequences: list[Sequence], counts: list[int]) -> dict[Sequence, Tensor]:
        """Puts so many drafts after the tokens of each sequence.

        Returns:
            For ``accept``: the probabilities ``[k, V]`` that those of sequences without a seed were drawn by.
        """
        drafting = [(s, count) for s, count in zip(sequences, counts, strict=True) if count]
        asked: dict[Sequence, list[Tensor]] = {s: [] for s, _ in drafting if not (s.sampling.greedy or s.seeded)}
        module, hidden = self._waiting([s for s, _ in drafting])
        step = self._executor.draft(module, hidden)
        for s, _ in drafting:
            self._caught_up(s)
        for ahead in range(max(counts)):
            best = step.best.tolist()
            rows = [
                at
                for at, (s, count) in enumerate(drafting)
                if self._draft(s, step.logits[at : at + 1], best[at], ahead, asked.get(s)) and count > ahead + 1
            ]
            drafting = [drafting[at] for at in rows]
            if not drafting:
                break
            step = self._repeat([s for s, _ in drafting], ahead + 1, step.states[rows])
        return {s: torch.cat(some) for s, some in asked.items() if s.history.drafts}

    def _draft(self, s: Sequence, logits: Tensor, best: int, ahead: int, asked: list[Tensor] | None) -> bool:
        """Adds a draft of logits ``[1, V]``; seeded, with the very noise that the trunk's token will meet.

        Returns:
            Whether there can be another. There is none where its own processors leave no token that the module can
            name; and where they fail, none any more.
        """
        if s.plain:
            s.history.drafts.append(best)
            return True
        try:
            scores = s.scorer(logits, s.history, ahead)
        except Exception:  # of which the trunk's step may hear, too
            s.drafting, s.history.drafts = False, []
            return False
        if not scores.isfinite().any():
            return False
        noise = None if s.draws is None else s.draws.noise(1, scores.shape[-1], ahead)
        s.history.drafts.append(int(choose(scores, noise)))
        if asked is not None:
            asked.append(scores.softmax(-1))
        return True

    def _repeat(self, sequences: list[Sequence], ahead: int, states: Tensor) -> Step:
        """The module over its own states ``[B, D]`` and the drafts made of them. They leave no trace: what waits next
        is written in their place."""
        cached = [s.module + ahead - 1 for s in sequences]
        ids = [[s.history.drafts[-1]] for s in sequences]
        batch = self._assembler.batch([_table(s) for s in sequences], ids, cached, [1] * len(ids))
        return self._executor.draft(batch, states)

    def _waiting(self, sequences: list[Sequence]) -> tuple[Batch, Tensor]:
        """What waits in ``sequences``, as the module reads it."""
        counts = [s.cached - s.module for s in sequences]
        hidden = [state for s in sequences for state in s.waiting]
        return self._module_batch(sequences, counts, [1] * len(counts), 0), _joined(hidden)

    def _module_batch(self, sequences: list[Sequence], counts: list[int], wanted: list[int], prompts: int) -> Batch:
        """The next ``counts`` tokens that the module has not run: it reads the token after each."""
        cached = [s.module for s in sequences]
        ids = [s.tokens[s.module + 1 : s.module + count + 1] for s, count in zip(sequences, counts, strict=True)]
        return self._assembler.batch([_table(s) for s in sequences], ids, cached, wanted, prompts=prompts)

    def _caught_up(self, s: Sequence) -> None:
        s.module = s.cached
        s.waiting.clear()


def _joined(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)


def _table(sequence: Sequence) -> Table:
    assert sequence.table is not None, "not admitted"
    return sequence.table


def agreeing(drafts: list[int], tokens: list[int]) -> int:
    """How many of ``drafts`` equal the trunk's own ``tokens`` before the first that does not."""
    return next((at for at, draft in enumerate(drafts) if draft != tokens[at]), len(drafts))


def accept(scores: Tensor, drafts: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Rejection sampling (arXiv 2211.17192, 2302.01318): tokens distributed exactly as draws from ``scores``.

    Draft j, drawn by q, stays with probability min(1, p / q). The first that does not is replaced by a draw from
    max(p - q, 0); after the last, one more token is drawn from p.

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
