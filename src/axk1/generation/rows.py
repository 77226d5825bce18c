"""The rows of a batch on their way through the model: cache columns, padding, holes, rows that leave.

Shapes: B rows, S columns of the cache, T new columns, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from axk1.generation.history import History
from axk1.modeling import AXK1ForCausalLM
from axk1.modeling.cache import LatentCache, LatentLayer
from axk1.modeling.runners import Decoder

Columns = tuple[Tensor | None, Tensor, Tensor | None]
"""What the model made of T new columns, as in :class:`axk1.modeling.runners.Step`: post-norm states ``[B, T, D]`` (None
of a model that is run whole), logits ``[B, keep, V]`` and, where they are known already, the most probable tokens."""
RESERVED_COLUMNS = 8_192
"""Columns of the cache that are allocated beforehand at most; beyond, it grows as the reply does."""
VIEWED = 64
"""Positions that a single row gets at once: one operator a step takes 50 µs where weights have filled the caches."""
LEAVE_SHARE = 0.75
"""Ended rows leave the batch once at most this share of it is still running: each leaving copies the others' cache."""
SPARE_SHARE, SPARE_COLUMNS = 0.25, 64
"""Columns that no running row needs are closed up once they are this share of all, and at least this many."""


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask``, both int64 [batch, longest prompt], padded on the left."""
    width = max(map(len, prompts))
    rows = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    mask = torch.arange(width) >= width - lengths
    return torch.tensor(rows, device=device), mask.long().to(device)


class Rows:
    """A batch being decoded. All rows fill the same columns of the cache; one that has nothing for a column masks it.

    A row's column is masked where it is padding, or a rejected draft beside which another row's was accepted (a hole).
    Positions count a row's own tokens, so neither changes what it sees.

    Args:
        model: a causal language model; anything but ``AXK1ForCausalLM`` is run whole, with transformers' own cache.
        prompts: token ids, none empty.
        pad_id: what padding is filled with.
        reserve: columns the batch will need, as far as known.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, reserve: int) -> None:
        self.model, self.device = model, model.device
        self.numbers = list(range(len(prompts)))
        """Which prompt each row continues."""
        self.history = History(prompts, self.device)
        self.prompt_ids, mask = pad_left(prompts, pad_id, self.device)
        self.prompt_positions = (mask.cumsum(1) - 1).clamp(min=0)
        self._mask = mask if len(set(self.history.lengths)) > 1 else None
        self._places: tuple[int, int, tuple[Tensor, ...]] = 0, 0, ()  # first position, width, one view for each
        self.columns = 0
        self.compiled = False
        """Whether the last columns were run by compiled kernels that are exact: to them rows are bit for bit the same
        however many they are."""
        self.cache: Cache
        self.decoder: Decoder | None = None
        if isinstance(model, AXK1ForCausalLM):
            self.cache = LatentCache(model.config, capacity=min(reserve, RESERVED_COLUMNS))
            self._trunk = self.cache.layers[: model.config.num_hidden_layers]
            self.decoder = model.step_decoder(self.cache)
        else:
            self.cache = DynamicCache(config=model.config)
            self._trunk = self.cache.layers

    @property
    def running(self) -> int:
        """How many rows have not ended."""
        return sum(self.history.running)

    def extend(self, ids: Tensor, positions: Tensor, keep: int, whole: bool = True) -> Columns:
        """Runs the model over new columns, which join the cache.

        Args:
            ids: ``[B, T]`` tokens.
            positions: ``[B, T]`` of these.
            keep: for how many of the last columns logits are wanted; 0 gives those of one.
            whole: states of all columns are wanted, not of these only.
        """
        self.columns += ids.shape[1]
        mask = self.mask(self.columns)
        if self.decoder is not None:
            found = self.decoder.step(ids, positions, mask, max(keep, 1), whole)
            self.compiled = found is not None and self.decoder.exact
            if found is not None:
                return found
        shared: dict[str, Any] = {"attention_mask": mask, "position_ids": positions, "past_key_values": self.cache}
        if not isinstance(self.model, AXK1ForCausalLM):
            output = self.model(input_ids=ids, use_cache=True, logits_to_keep=max(keep, 1), **shared)
            return None, output.logits.to(self.device), None
        states = cast(Tensor, self.model.model(input_ids=ids, use_cache=True, **shared).last_hidden_state)
        return states, self.model.logits(states[:, -max(keep, 1) :], self.cache).to(self.device), None

    def speculate(
        self, waiting: tuple[Tensor, Tensor, Tensor], positions: Tensor, count: int
    ) -> tuple[Tensor, Columns] | None:
        """``count`` greedy drafts, made by the MTP module behind ``waiting``, and ``extend`` over each row's newest
        token and these, in one compiled step: ids ``[B, count + 1]`` and what came of them. None where there is none.
        """
        if self.decoder is None or self.masked:
            return None
        found = self.decoder.speculate(waiting, self.history.newest, positions, count)
        if found is not None:
            self.columns += count + 1
            self.compiled = True
        return found

    def next_positions(self, count: int) -> Tensor:
        """Positions ``[B, count]`` of each row's newest token and the drafts behind it."""
        first = [length - 1 for length in self.history.lengths]
        if len(first) == 1:
            start, width, views = self._places
            if width != count or not 0 <= first[0] - start < len(views):
                start = first[0]
                ahead = torch.arange(start, start + VIEWED + count, device=self.device)
                views = ahead.unfold(0, count, 1)[:, None].unbind()
                self._places = start, count, views
            return views[first[0] - start]
        return torch.tensor([range(start, start + count) for start in first], device=self.device)

    def mask(self, columns: int) -> Tensor | None:
        """``[B, columns]`` int64, 0 at padding and holes; None where there are none. New columns are 1."""
        if self._mask is None:
            return None
        have = self._mask.shape[1]
        if columns > have:
            grown = self._mask.new_ones(self._mask.shape[0], max(columns, min(2 * have, have + RESERVED_COLUMNS)))
            grown[:, :have] = self._mask
            self._mask = grown
        return self._mask[:, :columns]

    @property
    def masked(self) -> bool:
        """Whether some row has padding or holes."""
        return self._mask is not None

    def drop(self, count: int) -> None:
        """Forgets the trunk's last ``count`` columns (an MTP module keeps its own)."""
        if count:
            self.columns -= count
            for layer in self._trunk:
                cast(DynamicLayer, layer).crop(-count)

    def settle(self, counts: Sequence[int], width: int) -> int:
        """After a step: of the last ``width`` columns, keeps each running row's first ``counts[row]``.

        Columns that no running row keeps are dropped; the others become holes of the rows that do not.

        Returns:
            How many of the columns are left.
        """
        kept = [count for count, running in zip(counts, self.history.running, strict=True) if running]
        left = max(kept)
        self.drop(width - left)
        if self._mask is None and min(kept) < left:
            self._mask = torch.ones(len(counts), self.columns, dtype=torch.int64, device=self.device)
        if self._mask is not None:
            mask = self.mask(self.columns)
            assert mask is not None
            start = self.columns - left
            new = torch.arange(left, device=self.device) < torch.tensor(counts, device=self.device)[:, None]
            mask[:, start:] = new
            self._mask[:, self.columns :] = 1
        return left

    def leaving(self) -> list[int] | None:
        """The rows to keep, when enough have ended for a smaller batch to pay; else None."""
        if self.running > LEAVE_SHARE * len(self.history.running):
            return None
        return [row for row, running in enumerate(self.history.running) if running]

    def select(self, rows: Sequence[int]) -> None:
        """Keeps ``rows``, in their order."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.history.select(rows)
        self.numbers = [self.numbers[row] for row in rows]
        if self._mask is not None:
            self._mask = self._mask[index]

    def close_up(self, also: Sequence[LatentLayer] = ()) -> None:
        """Moves each row's columns together at the end, if enough are spare; ``also`` in the caches of MTP modules that
        hold the trunk's columns."""
        lengths = [n for n, running in zip(self.history.lengths, self.history.running, strict=True) if running]
        needed = max(lengths) - 1
        spare = self.columns - needed
        mask, alone = self.mask(self.columns), len(lengths) == len(self.numbers) == 1
        enough = spare >= max(SPARE_COLUMNS, SPARE_SHARE * self.columns) or alone
        if mask is None or not enough or not isinstance(self.cache, LatentCache):
            return
        order = mask.argsort(dim=1, stable=True)[:, spare:]
        for layer in [*cast(list[LatentLayer], self._trunk), *also]:
            joint = layer.joint
            joint[:, :needed] = joint.gather(1, order[..., None].expand(-1, -1, joint.shape[-1]))
            layer.crop(-spare)
        self._mask = mask.gather(1, order)
        self.columns = needed
        if len(set(lengths)) == 1 and all(self.history.running):
            self._mask = None
