"""Sequences, and the batches that a step makes of them: tokens one after the other, without padding.

Shapes: B sequences, N tokens of a step, P pages of the longest sequence, D hidden, V vocabulary, W tokens whose logits
are wanted.
"""

import collections.abc
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor

from axk1.generation.history import History
from axk1.generation.pages import Table
from axk1.generation.sampling import Draws, Sampling, Scorer, TokenLogprobs, token_logprobs
from axk1.kernels.batch import Batch

PLACES = 4_096
"""Positions that are made at once, to be sliced: an operator for each step costs more than it computes."""


class Sequence:
    """A prompt and its reply, with everything that belongs to them alone.

    Args:
        prompt: token ids, at least one.
        sampling: how tokens are chosen.
        max_new_tokens: tokens of the reply at most.
        stop_ids: tokens that end it; the one that does is part of it.
        processors: applied to its scores (:class:`axk1.generation.sampling.Scorer`).
        seed: in place of ``sampling.seed``. With a seed the reply depends on it alone, not on the global generator, on
            neighbours or on drafts.
        top_logprobs: how many of the most probable tokens to note in each place; None: no log-probabilities at all.
        prompt_logprobs: the same for the prompt's tokens, but the first.
        may_draft: whether its loop may draft for it.
        tenant: whose prompts' pages it may share (:class:`axk1.generation.prompts.Prefixes`); None: nobody's.
        device: the model's.

    Raises:
        ValueError: an empty prompt, or no room for a token.
    """

    def __init__(
        self,
        prompt: collections.abc.Sequence[int],
        sampling: Sampling,
        *,
        max_new_tokens: int,
        stop_ids: collections.abc.Collection[int] = (),
        processors: collections.abc.Sequence[LogitsProcessor] = (),
        seed: int | None = None,
        top_logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        may_draft: bool = True,
        tenant: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not prompt:
            raise ValueError("A prompt is empty; there must be at least one token to continue.")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        device = device or torch.device("cpu")
        self.history = History(prompt, device)
        self.sampling, self.scorer = sampling, Scorer(sampling, processors)
        self._processors = list(processors)
        self.draws = None if sampling.greedy else Draws(sampling.seed if seed is None else seed, device)
        self.plain = sampling.greedy and self.scorer.plain
        """Whether the most probable token is always taken."""
        self.end = self.history.prompt + max_new_tokens
        """Tokens at most, prompt and reply."""
        self.stop_ids = frozenset(stop_ids)
        self.top_logprobs = top_logprobs
        self.logprobs: list[TokenLogprobs] = []
        """Of each token of the reply, if they are wanted."""
        self.prompt_top = prompt_logprobs
        self.prompt_logprobs: list[TokenLogprobs] = []
        """Of each token of the prompt from the second on, if they are wanted."""
        self.may_draft, self.tenant = may_draft, tenant
        self.running = True
        """Whether the reply has not ended."""
        self.error: Exception | None = None
        """What ended it, where its tokens could not be chosen; its neighbours go on."""
        self.drafted, self.accepted = 0, 0
        """Drafts that were made for it, and how many of them held."""
        self.table: Table | None = None
        """Its pages; None before it is admitted and after it has left."""
        self.found = 0
        """Tokens of its prompt that were in pages already."""
        self.cached = 0
        """Tokens in its pages, in the trunk's layers."""
        self.clean = 0
        """The first of these, which hold the very bits that plain decoding would have left there."""
        self.drafting = False
        """Whether the MTP module follows."""
        self.module = 0
        """Tokens in its pages, in the module's layer."""
        self.waiting: list[Tensor] = []
        """The trunk's states ``[n, D]`` of the tokens since."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and reply."""
        return self.history.tokens

    @property
    def reply(self) -> list[int]:
        """The reply so far."""
        return self.history.tokens[self.history.prompt :]

    @property
    def reading(self) -> bool:
        """Whether some of the prompt has not been run."""
        return self.cached < self.history.prompt

    @property
    def left(self) -> int:
        """Tokens that the reply may still have."""
        return self.end - len(self.history.tokens)

    @property
    def seeded(self) -> bool:
        """Whether each token's noise is fixed beforehand."""
        return self.draws is not None and self.draws.seeded

    def add_processor(self, processor: LogitsProcessor) -> None:
        """Applies ``processor``, after those that there are, from the next token on."""
        self._processors.append(processor)
        self.scorer, self.plain = Scorer(self.sampling, self._processors), False

    def note(self, logits: Tensor) -> None:
        """Notes the log-probabilities of the prompt's next tokens at logits ``[T, V]``."""
        if self.prompt_top is not None:
            first = len(self.prompt_logprobs) + 1
            self.prompt_logprobs += token_logprobs(logits, self.tokens[first : first + len(logits)], self.prompt_top)

    def take(self, tokens: list[int], logits: Tensor) -> list[int]:
        """Adds ``tokens`` to the reply, up to its end.

        Args:
            logits: ``[T, V]`` that the tokens were taken at, of as many or more.

        Returns:
            Those that were added.
        """
        new = tokens[: self.left]
        if self.stop_ids:
            stop = next((at for at, token in enumerate(new, 1) if token in self.stop_ids), None)
            if stop is not None:
                new, self.running = new[:stop], False
        if self.top_logprobs is not None:
            self.logprobs += token_logprobs(logits, new, self.top_logprobs)
        self.history.tokens += new
        if self.draws is not None:
            self.draws.advance(len(new))
        if not self.left:
            self.running = False
        return new


@dataclass(slots=True)
class Assembler:
    """Makes batches. What it made last is used again where it is the same."""

    device: torch.device
    _key: list[tuple[Table, int]] = field(default_factory=list)
    _pages: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    _places: Tensor | None = None

    def batch(
        self,
        tables: list[Table],
        ids: list[list[int]],
        cached: list[int],
        wanted: list[int],
        states: list[int] | None = None,
        prompts: int = 0,
    ) -> Batch:
        """The batch of the new tokens ``ids`` of sequences that have so many ``cached``; the rest as in ``Batch``."""
        if len(ids) == 1:
            (flat,), (first,) = ids, cached
            starts, positions = [0, len(flat)], self.places(first, len(flat))
        else:
            flat, starts = [], [0]
            for new in ids:
                flat += new
                starts.append(len(flat))
            where = [place for at, new in zip(cached, ids, strict=True) for place in range(at, at + len(new))]
            positions = torch.tensor(where, dtype=torch.int64, device=self.device)
        tokens = torch.tensor(flat, dtype=torch.int64, device=self.device)
        held = wanted if states is None else states
        return Batch(tokens, positions, starts, cached, prompts, wanted, held, self.pages(tables), tables)

    def places(self, first: int, count: int) -> Tensor:
        """``[first, ..., first + count - 1]``: a view."""
        last = first + count
        if self._places is None or last > len(self._places):
            self._places = torch.arange(max(PLACES, 1 << last.bit_length()), device=self.device)
        return self._places[first:last]

    def pages(self, tables: list[Table]) -> Tensor:
        """``Batch.pages``."""
        if len(tables) == 1:
            return tables[0].tensor
        key = [(table, table.changes) for table in tables]
        if key != self._key:
            most = max(len(table.pages) for table in tables)
            rows = [table.addresses + [0] * (most - len(table.pages)) for table in tables]
            self._key, self._pages = key, torch.tensor(rows, dtype=torch.int64)
        return self._pages
