"""Generation as it runs: sequences join, each gets its next tokens, and leave, one step of the model at a time."""

from math import isfinite

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axk1.generation.batch import Assembler, Sequence
from axk1.generation.executors import executor_for
from axk1.generation.gate import Gate
from axk1.generation.pages import Pool, pages_of
from axk1.generation.prompts import Prompts
from axk1.generation.sampling import choose, margins
from axk1.generation.speculate import (
    AUTO,
    NO_DRAFTS,
    WAITING_STEPS,
    Drafter,
    Drafts,
    DraftStatistics,
    accept,
    agreeing,
    can_draft,
    tie_gap,
)
from axk1.kernels.batch import Batch, Executor, Step
from axk1.modeling import AXK1ForCausalLM
from axk1.modeling.finite import check_chosen

PREFILL_TOKENS = 4_096
"""Tokens of prompts run in a step, over all sequences: what bounds the memory of a long prompt's activations."""


class Loop:
    """Sequences being continued by one model.

    A step reads pieces of prompts, beside single tokens of the sequences that reply already; or where none is read, it
    makes one token of each reply, or several with drafts. Where a prompt is cut depends on itself alone, unless
    ``prompts.piece`` is set to None.

    Args:
        model: a causal language model in eval mode; anything but ``AXK1ForCausalLM`` is run whole.
        drafts: MTP speculation; none by default. ``exact`` counts while a sequence is the only one.
        prefill_tokens: tokens of prompts in a step at most.
        pages: in the pool, at most; None: as many as memory holds. A sequence waits until its prompt and its longest
            reply have room.
        poison: as in :class:`axk1.generation.pages.Pool`.
        statistics: filled in, all sequences together. Steps that read prompts do not count.

    Raises:
        ValueError: drafts from a model that has no MTP module.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafts: Drafts = NO_DRAFTS,
        *,
        prefill_tokens: int = PREFILL_TOKENS,
        pages: int | None = None,
        poison: bool = False,
        statistics: DraftStatistics | None = None,
    ) -> None:
        self.drafts = drafts
        if drafts.count > 0 and not can_draft(model):
            raise ValueError("The model has no MTP module to draft with; drafts must be 0 or auto.")
        self.pool: Pool | None = None
        if isinstance(model, AXK1ForCausalLM):
            self.pool = Pool(model.config, model.model.embed_tokens.weight.dtype, model.device, pages, poison)
        with torch.no_grad():
            self.executor: Executor = executor_for(model, self.pool)
        self.gate = drafts.gate or Gate()
        self.statistics = statistics if statistics is not None else DraftStatistics()
        self._assembler = Assembler(model.device)
        self._drafter = Drafter(self.executor, self._assembler) if drafts.count and can_draft(model) else None
        self._failures, self._undrafted = 0, 0  # steps with drafts that failed in a row; steps to come without any
        self._gap = tie_gap(drafts, model.dtype) if drafts.exact and not self.executor.exact else 0.0
        self.prompts = Prompts(self.pool, max(1, prefill_tokens))
        self.replying: list[Sequence] = []
        self.in_turns = False
        """Whether prompts and replies take turns while drafts are made; else replies get a token beside prompts."""
        self.read_tokens = 0
        """Tokens of prompts that the last step has read."""
        self.replied = 0
        """Sequences that got tokens of a reply in the last step, or should have."""

    def __len__(self) -> int:
        """Sequences that have joined and neither left nor been parked."""
        return len(self.prompts) + len(self.replying)

    def add(self, sequence: Sequence) -> None:
        """Lets ``sequence`` join; it gets pages after those that joined before.

        Raises:
            ValueError: the pool could never hold it.
        """
        limit = None if self.pool is None else self.pool.limit
        if limit is not None and pages_of(sequence.end) > limit:
            raise ValueError(
                f"A prompt and reply of {sequence.end} tokens need {pages_of(sequence.end)} pages, and the pool has "
                f"{limit}; shorten one of them, or raise the limit."
            )
        self.prompts.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Takes ``sequence`` out at once, with its pages; nothing happens where it has left already."""
        sequence.running = False
        if not self.prompts.remove(sequence) and sequence in self.replying:
            self.replying.remove(sequence)
        self._free(sequence)

    def park(self, sequence: Sequence) -> None:
        """Takes ``sequence`` out of the steps; it keeps its pages, and can resume."""
        if not self.prompts.remove(sequence):
            self.replying.remove(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Lets a parked ``sequence`` go on."""
        if sequence.reading:
            self.prompts.add(sequence)
        else:
            self.replying.append(sequence)

    def admit(self) -> None:
        """Gives pages to those that wait, as far as there is room; a step begins with it."""
        self._leave()  # whom a step that failed left here
        self.prompts.admit(len(self.replying), self._may_draft)

    @torch.no_grad()
    def step(self) -> dict[Sequence, list[int]]:
        """One step of the model.

        Returns:
            The new tokens of each sequence that has any. Those whose ``running`` is then False have left; one whose
            tokens could not be chosen has none, and an ``error``. Where the model raises, all sequences stay what they
            were, and the step can be tried again.
        """
        self.admit()
        number = self._next_drafts()
        turns = self.in_turns and number > 0
        pieces = [] if turns and self.read_tokens else self.prompts.pieces(len(self.replying))
        self.read_tokens = sum(size for _, size in pieces)
        self.replied = 0 if turns and pieces else len(self.replying)
        if pieces:
            return self._read(pieces, self.replying[: self.replied])
        return self._reply_timed(number) if self.replying else {}

    def _reply_timed(self, number: int) -> dict[Sequence, list[int]]:
        """Tokens of all replies, with so many drafts, for the gate and the statistics to know."""
        clock = self.drafts.clock
        start, running = clock(), len(self.replying)
        counts = [min(number, s.left - 1) if s.drafting else 0 for s in self.replying] if number else [0] * running
        before = [(s, s.module, [*s.waiting]) for s in self.replying] if number else []
        try:
            found = self._reply(self.replying, counts)
        except BaseException:  # of the model
            self._forget(before)
            raise
        seconds, made = clock() - start, sum(map(len, found.values()))
        self._failures = 0 if number else self._failures
        self.gate.record(running, number, made, seconds)
        self.statistics.record(counts, [max(len(new) - 1, 0) for new in found.values()], made, seconds)
        self._leave()
        return found

    def _forget(self, before: list[tuple[Sequence, int, list[Tensor]]]) -> None:
        """Makes sequences what they were ``before`` a step with drafts that failed: module and waiting states. It is
        tried again without drafts, and the longer without, the more often it fails with them."""
        for s, module, waiting in before:
            s.history.drafts, s.module, s.waiting[:] = [], module, waiting
        if before:
            self._failures += 1
            self._undrafted = min(1 << self._failures - 1, WAITING_STEPS // 2)

    def _may_draft(self) -> bool:
        """Whether drafts are likely to be made for a sequence that begins now."""
        wanted = self.gate.may_draft(len(self)) if self.drafts.count == AUTO else self.drafts.count
        return self._drafter is not None and wanted > 0

    def _read(self, pieces: list[tuple[Sequence, int]], replying: list[Sequence]) -> dict[Sequence, list[int]]:
        """Pieces of prompts, and a token of each of ``replying``."""
        reading = [sequence for sequence, _ in pieces]
        ids = [s.tokens[s.cached : s.cached + size] for s, size in pieces]
        last = [s.cached + size == s.history.prompt for s, size in pieces]
        wanted = [int(whole) if s.prompt_top is None else size for (s, size), whole in zip(pieces, last, strict=True)]
        held = [size if s.drafting else count for (s, size), count in zip(pieces, wanted, strict=True)]
        ones = [1] * len(replying)
        step, batch = self._run(
            [*reading, *replying],
            [*ids, *([s.tokens[-1]] for s in replying)],
            [*wanted, *ones],
            [*held, *ones],
            len(pieces),
        )
        for s, size in pieces:
            s.cached += size
            s.clean = s.cached
        found = self._take(batch, step, [*reading, *replying], {})
        for s in reading:
            if not (s.reading and s.running):
                self.prompts.remove(s)
                self.replying.append(s)
        if self._drafter is not None:
            self._drafter.read([s for s in reading if s.running])
        if self.prompts.prefixes is not None:
            for s in reading:
                if s.error is None:
                    self.prompts.prefixes.store(s)
        self._leave()
        return found

    def _reply(self, sequences: list[Sequence], counts: list[int]) -> dict[Sequence, list[int]]:
        """A token of each reply, and so many drafts after it."""
        for s in sequences:
            s.history.drafts = []
        asked: dict[Sequence, Tensor] = {}
        if any(counts):
            assert self._drafter is not None
            self._grow(sequences, counts)
            together = self._drafter.speculate(sequences, counts)
            if together is not None:
                ids, batch, step = together
                for s, some in zip(sequences, ids, strict=True):
                    s.history.drafts = some[1:]
                return self._take(batch, step, sequences, {})
            asked = self._drafter.propose(sequences, counts)
        ids = [[s.tokens[-1], *s.history.drafts] for s in sequences]
        step, batch = self._run(sequences, ids, [len(some) for some in ids])
        return self._take(batch, step, sequences, asked)

    def _run(
        self,
        sequences: list[Sequence],
        ids: list[list[int]],
        wanted: list[int],
        states: list[int] | None = None,
        prompts: int = 0,
    ) -> tuple[Step, Batch]:
        """The trunk over ``ids`` after what each sequence has cached."""
        self._grow(sequences, [len(new) - 1 for new in ids])
        tables: list = [s.table for s in sequences]
        batch = self._assembler.batch(tables, ids, [s.cached for s in sequences], wanted, states, prompts)
        return self.executor.step(batch), batch

    def _grow(self, sequences: list[Sequence], counts: list[int]) -> None:
        """Pages for one new token of each sequence and so many more."""
        if self.pool is not None:
            for s, count in zip(sequences, counts, strict=True):
                assert s.table is not None
                self.pool.grow(s.table, s.cached + count + 1)

    def _next_drafts(self) -> int:
        """How many drafts the next step makes: no more than may still be yielded."""
        if self._undrafted:
            self._undrafted -= 1
            return 0
        if not any(s.drafting for s in self.replying):
            return 0
        wanted = self.gate.choose(len(self.replying)) if self.drafts.count == AUTO else self.drafts.count
        return min(wanted, max(s.left for s in self.replying if s.drafting) - 1)

    def _take(
        self, batch: Batch, step: Step, sequences: list[Sequence], asked: dict[Sequence, Tensor]
    ) -> dict[Sequence, list[int]]:
        """Each sequence's new tokens, of what the trunk made; and its state brought up to them."""
        found: dict[Sequence, list[int]] = {}
        best = step.best.tolist() if any(s.plain for s in sequences) else []
        alone, scored, stated = len(sequences) == 1, 0, 0
        for at, (s, wanted, held) in enumerate(zip(sequences, batch.wanted, batch.states, strict=True)):
            logits = step.logits if alone else step.logits[scored : scored + wanted]
            states = step.states if alone else step.states[stated : stated + held]
            if wanted:
                read = 0 if at >= batch.prompts else wanted - (not s.reading)  # logits of tokens of the prompt
                try:
                    if read:
                        s.note(logits[:read])
                    if wanted > read:
                        chosen = best[scored + read : scored + wanted]
                        found[s] = self._continue(s, logits[read:], chosen, asked.get(s))
                except Exception as error:  # of its processors or scores: no matter of the others
                    found[s], s.error, s.running = [], error, False
                states = states if at < batch.prompts else states[: len(found[s])]
            if s.drafting and s.running and self._drafter is not None:
                self._drafter.follow(s, states)
            scored, stated = scored + wanted, stated + held
        return found

    def _continue(self, s: Sequence, logits: Tensor, best: list[int], asked: Tensor | None) -> list[int]:
        """Takes the tokens of one sequence, at logits ``[k + 1, V]`` after its newest token and its k drafts."""
        made = len(s.history.drafts)
        tokens, accepted, scores, noise = self._choose(s, logits, best, asked)
        clean = s.clean == s.cached and not made
        if self._gap and not clean and (at := self._near_tie(s, scores, noise, accepted)) is not None:
            tokens, accepted, logits = self._replay(s, at, tokens, logits)
        s.drafted, s.history.drafts = s.drafted + made, []
        new = s.take(tokens[: accepted + 1], logits)
        s.accepted += len(new) - 1
        s.cached = len(s.tokens) - 1
        if clean and len(self) == 1:
            s.clean = s.cached
        return new

    def _choose(
        self, s: Sequence, logits: Tensor, best: list[int], asked: Tensor | None
    ) -> tuple[list[int], int, Tensor, Tensor | None]:
        """A token at each of the logits, the number of drafts that hold, and the scores and noise of the choice."""
        drafts = s.history.drafts
        if s.plain:
            for at, token in enumerate(best):
                if not isfinite(logits[at, token]):
                    check_chosen(logits[at, token])
            return best, agreeing(drafts, best), logits, None
        scores = s.scorer(logits, s.history)
        if asked is not None:
            tokens, kept = accept(scores[None], torch.tensor([drafts], device=scores.device), asked[None])
            return tokens[0].tolist(), int(kept), scores, None
        noise = None if s.draws is None else s.draws.noise(*scores.shape)
        chosen = choose(scores, noise).tolist()
        return chosen, agreeing(drafts, chosen), scores, noise

    def _near_tie(self, s: Sequence, scores: Tensor, noise: Tensor | None, accepted: int) -> int | None:
        """The first position whose token another was so near to that plain decoding might have taken that."""
        if (s.draws is not None and not s.seeded) or len(self) > 1:
            return None
        gap = self._gap / (s.sampling.temperature or 1.0)
        near = (margins(scores, noise) < gap).tolist()
        return next((at for at in range(accepted + 1) if near[at]), None)

    def _replay(self, s: Sequence, at: int, tokens: list[int], logits: Tensor) -> tuple[list[int], int, Tensor]:
        """Decides position ``at`` of the step as plain decoding does: runs again, one by one, every token since the
        pages last held its bits."""
        ids = s.tokens + s.history.drafts[:at]
        for place in range(s.clean, len(ids)):
            s.cached = place
            step, _ = self._run([s], [ids[place : place + 1]], [1])
        s.clean = len(ids)
        self.statistics.replays += 1
        scores = s.scorer(step.logits, s.history, at)
        noise = None if s.draws is None else s.draws.noise(1, scores.shape[-1], at)
        return [*tokens[:at], int(choose(scores, noise))], at, torch.cat([logits[:at], step.logits])

    def _leave(self) -> None:
        """Lets the sequences go whose replies have ended."""
        if all(s.running for s in self.replying):
            return
        for s in self.replying:
            if not s.running:
                self._free(s)
        self.replying = [s for s in self.replying if s.running]

    def _free(self, sequence: Sequence) -> None:
        """Takes back the pages of ``sequence``."""
        if sequence.table is not None and self.pool is not None:
            self.pool.close(sequence.table)
        sequence.table = None
        sequence.drafting = False
        sequence.waiting.clear()
