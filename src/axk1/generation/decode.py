"""The one place where tokens are generated: chat, generate, benchmarks and servers all iterate over :func:`decode`."""

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from axk1.generation.gate import Gate
from axk1.generation.rows import Rows, pad_left
from axk1.generation.sampling import Draws, Logprobs, Sampling, Scorer, choose, margins, row_seeds
from axk1.generation.speculate import (
    AUTO,
    NO_DRAFTS,
    Drafter,
    Drafts,
    DraftStatistics,
    accept,
    agreeing,
    can_draft,
    tie_gap,
)

__all__ = ["Steps", "decode", "pad_left"]

Steps = Generator[list[list[int]], None, None]
PREFILL_TOKENS = 4_096
"""Tokens of the prompts run at once, all rows together: what bounds the memory of a long prompt's activations."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    processors: Sequence[Sequence[LogitsProcessor]] = (),
    drafts: Drafts = NO_DRAFTS,
    seeds: Sequence[int] | None = None,
    logprobs: Logprobs | None = None,
    statistics: DraftStatistics | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> Steps:
    """Generates for a batch of prompts, some tokens a row at each step.

    A row ends with one of ``stop_ids``, which it yields too, or after ``max_new_tokens``. The iterator ends when all
    rows have. Closing it stops at once, since the model runs only while the next step is waited for.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, any lengths, none empty; padded on the left here.
        sampling: how tokens are chosen.
        max_new_tokens: for each row.
        pad_id: what padding is filled with; attended to by nothing.
        processors: for each row, processors of its own (:class:`axk1.generation.sampling.Scorer`).
        drafts: MTP speculation; none by default.
        seeds: for each row, in place of ``row_seeds(sampling.seed, ...)``. With seeds the output depends on them alone,
            not on the global generator, on neighbours or on drafts.
        logprobs: collects the log-probabilities of the tokens, for whoever made it.
        statistics: filled in as the call goes.
        prefill_tokens: prompt tokens run at once.

    Yields:
        For each prompt, in order, its new token ids: none once it has ended, and in the steps of a long prompt before
        the first token; one a step without drafts; up to ``drafts + 1`` with them.

    Raises:
        ValueError: an empty prompt, no room for a token, lists of another length than ``prompts``, or drafts from a
            model that has no MTP module.
    """
    if not prompts:
        return
    _check(model, prompts, max_new_tokens, processors, seeds, drafts)
    if sampling.seed is not None and seeds is None:
        seeds = row_seeds(sampling.seed, len(prompts))
    rows = Rows(model, prompts, pad_id, max(map(len, prompts)) + max_new_tokens + max(drafts.count, 0))
    loop = _Loop(rows, sampling, Scorer(sampling, processors or [()] * len(prompts)), drafts)
    loop.draws = Draws(None if sampling.greedy else seeds, model.device)
    loop.ends = [len(prompt) + max_new_tokens for prompt in prompts]
    loop.stop_ids = frozenset(stop_ids)
    loop.statistics = statistics if statistics is not None else DraftStatistics()
    if logprobs is not None:
        logprobs.rows = [[] for _ in prompts]
        loop.logprobs = logprobs
    yield from loop.run(max(1, prefill_tokens // len(prompts)))


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    processors: Sequence[Any],
    seeds: Sequence[int] | None,
    drafts: Drafts,
) -> None:
    if not all(prompts):
        raise ValueError("A prompt is empty; there must be at least one token to continue.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    for name, given in (("processors", processors), ("seeds", seeds)):
        if given and len(given) != len(prompts):
            raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts.")
    if drafts.count > 0 and not can_draft(model):
        raise ValueError("The model has no MTP module to draft with; drafts must be 0 or auto.")


class _Loop:
    """A call of :func:`decode`: one step after the other, each choosing tokens and bringing all state up to them."""

    draws: Draws
    ends: list[int]
    stop_ids: frozenset[int]
    statistics: DraftStatistics
    logprobs: Logprobs | None = None

    def __init__(self, rows: Rows, sampling: Sampling, scorer: Scorer, drafts: Drafts) -> None:
        self.rows, self.sampling, self.scorer, self.drafts = rows, sampling, scorer, drafts
        self.gate = drafts.gate or Gate()
        self.drafter: Drafter | None = None
        self.gap = tie_gap(drafts, rows.model.dtype) if drafts.exact and len(rows.numbers) == 1 else 0.0
        self.clean = 0  # leading columns of the cache that hold the very bits plain decoding would have left there

    def run(self, piece: int) -> Steps:
        """The prompts, ``piece`` columns at a time, then step by step."""
        rows, clock = self.rows, self.drafts.clock
        count = len(rows.numbers)
        wanted = self.gate.may_draft(count) if self.drafts.count == AUTO else self.drafts.count
        if wanted and can_draft(rows.model):
            self.drafter = Drafter(rows, self.sampling, self.scorer, self.draws)
        for _ in self.prefill(piece):
            yield [[] for _ in range(count)]
        tokens = self.first
        while True:
            step: list[list[int]] = [[] for _ in range(count)]
            for number, new in zip(rows.numbers, tokens, strict=True):
                step[number] = new
            yield step
            if not rows.running:
                return
            self.shrink()
            start, running, number = clock(), rows.running, self.next_drafts()
            tokens = self.step(number)
            seconds, new = clock() - start, sum(map(len, tokens))
            self.gate.record(running, number, new, seconds)
            self.statistics.record(number, [len(some) - 1 for some in tokens if some], new, seconds)

    def prefill(self, piece: int) -> Iterator[None]:
        """Fills the cache with the prompts and takes the first tokens (``first``); pauses between pieces."""
        rows = self.rows
        ids, positions = rows.prompt_ids, rows.prompt_positions
        width = ids.shape[1]
        for start in range(0, width, piece):
            here, after = slice(start, start + piece), slice(start + 1, start + piece + 1)
            last = start + piece >= width
            states, logits, best = rows.extend(ids[:, here], positions[:, here], int(last), self.drafter is not None)
            if not last:
                if self.drafter is not None and states is not None:
                    self.drafter.follow(states, ids[:, after], positions[:, here])
                    self.drafter.catch_up()
                yield
                continue
            self.clean = rows.columns
            scores = self.scorer(logits, rows.history)
            tokens = self.choose(scores, best, self.noise(scores))
            self.first, _ = self.take(tokens, [0] * len(tokens), logits)
            if self.drafter is not None and states is not None:
                self.drafter.follow(states, torch.cat([ids[:, after], tokens], 1), positions[:, here])

    def noise(self, scores: Tensor) -> Tensor | None:
        """For each row's next tokens, of ``scores`` ``[B, T, V]``."""
        return None if self.sampling.greedy else self.draws.noise(*scores.shape)

    def choose(self, scores: Tensor, best: Tensor | None, noise: Tensor | None) -> Tensor:
        """Tokens ``[B, T]`` of ``scores`` ``[B, T, V]``; ``best`` are those of the highest logits, if known."""
        return choose(scores, noise) if best is None or noise is not None or not self.scorer.plain else best

    def next_drafts(self) -> int:
        """How many drafts the next step makes: no more than may still be yielded."""
        if self.drafter is not None and not self.drafter.usable:
            self.drafter = None
        if self.drafter is None:
            return 0
        wanted = self.gate.choose(self.rows.running) if self.drafts.count == AUTO else self.drafts.count
        room = max(self.left(row) for row, running in enumerate(self.rows.history.running) if running)
        return min(wanted, room - 1)

    def left(self, row: int) -> int:
        """Tokens that ``row`` may still yield."""
        return self.ends[self.rows.numbers[row]] - self.rows.history.lengths[row]

    def step(self, count: int) -> list[list[int]]:
        """The next tokens of each row (none of ended ones), with ``count`` drafts."""
        rows, history = self.rows, self.rows.history
        positions = rows.next_positions(count + 1)
        ids, probabilities, found = history.newest, None, None
        if count:
            assert self.drafter is not None
            if (together := self.drafter.speculate(positions, count)) is not None:
                ids, found = together
            else:
                proposed, probabilities = self.drafter.propose(count)
                ids = torch.cat([ids, proposed], 1)
        states, logits, best = rows.extend(ids, positions, count + 1) if found is None else found
        before = rows.columns - count - 1
        scores = self.scorer(logits, history)
        clean = self.clean == before and (rows.compiled or not count)
        if probabilities is not None:
            tokens, kept = accept(scores, ids[:, 1:], probabilities)
            accepted = kept.tolist()
        else:
            noise = self.noise(scores)
            tokens = self.choose(scores, best, noise)
            accepted = agreeing(ids, tokens) if count else [0] * len(rows.numbers)
            if not clean and (near := self.near_tie(scores, noise, accepted)) is not None:
                tokens, accepted, logits = self.replay(near, tokens, logits)
        new, counts = self.take(tokens, accepted, logits)
        if rows.running:
            left = rows.settle(counts, rows.columns - before)
            self.clean = rows.columns if clean else self.clean
            if self.drafter is not None and states is not None:
                new_columns = (states, tokens, positions)
                self.drafter.follow(*(part if left == part.shape[1] else part[:, :left] for part in new_columns))
        return new

    def near_tie(self, scores: Tensor, noise: Tensor | None, accepted: Sequence[int]) -> int | None:
        """The first position whose token another was so near to that plain decoding might have taken that."""
        if not self.gap or not (self.sampling.greedy or self.draws.seeded):
            return None
        gap = self.gap / (self.sampling.temperature or 1.0)
        near = (margins(scores, noise)[0] < gap).tolist()
        return next((at for at in range(accepted[0] + 1) if near[at]), None)

    def replay(self, at: int, tokens: Tensor, logits: Tensor) -> tuple[Tensor, list[int], Tensor]:
        """Decides position ``at`` of the step as plain decoding does: runs again, one by one, every token since the
        cache last held its bits."""
        rows, history = self.rows, self.rows.history
        end = history.lengths[0] + at
        rows.drop(rows.columns - self.clean)
        where = torch.arange(self.clean, end, device=rows.device)[None]
        for column in range(end - self.clean):
            one = slice(column, column + 1)
            _, exact, _ = rows.extend(history.ids[:, self.clean + column][:, None], where[:, one], 1)
        self.clean = end
        self.statistics.replays += 1
        scores = self.scorer(exact, history, at)
        noise = None if self.sampling.greedy else self.draws.noise(1, at + 1, scores.shape[-1])[:, -1:]
        tokens = torch.cat([tokens[:, :at], choose(scores, noise)], 1)
        return tokens, [at], torch.cat([logits[:, :at], exact], 1)

    def take(self, tokens: Tensor, accepted: Sequence[int], logits: Tensor) -> tuple[list[list[int]], list[int]]:
        """Adds the first ``accepted + 1`` of ``tokens`` ``[B, T]`` to each running row, up to its end.

        Returns:
            each row's new tokens, and how many of its columns stay in the cache (0 for rows that are not running).
        """
        rows, history = self.rows, self.rows.history
        new: list[list[int]] = []
        for row, some in enumerate(tokens.tolist()):
            most = self.left(row) if history.running[row] else 0
            some = some[: min(accepted[row] + 1, most)]
            stop = next((at for at, token in enumerate(some, 1) if token in self.stop_ids), None)
            new.append(some[:stop])
            if stop or len(some) == self.left(row):
                history.running[row] = False
        if self.logprobs is not None:
            self.logprobs.record(rows.numbers, logits, new)
        counts = [len(some) if running else 0 for some, running in zip(new, history.running, strict=True)]
        history.advance(tokens, counts)
        self.draws.advance(counts)
        return new, counts

    def shrink(self) -> None:
        """Lets ended rows leave the batch, and closes up the columns they leave spare, where that pays."""
        keep = self.rows.leaving()
        if keep is None:
            return
        for part in (self.rows, self.scorer, self.draws, self.drafter):
            if part is not None:
                part.select(keep)
        if self.drafter is None:
            self.rows.close_up()
