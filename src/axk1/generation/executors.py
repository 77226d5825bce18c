"""What runs a batch: the model's modules here, compiled kernels in ``axk1.kernels``, models that are not ours as they
come.

Shapes: B sequences, G of a group, N tokens of a step, T of one sequence, S cached, C kv_lora_rank, R qk_rope_head_dim,
D hidden, V vocabulary.
"""

from collections import defaultdict
from functools import cached_property
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from axk1.config import AXK1Config
from axk1.generation.pages import PAGE, Pool, Table
from axk1.kernels.batch import Batch, Executor, Step
from axk1.kernels.dispatch import executor
from axk1.kernels.draft_head import DraftHead, draft_head
from axk1.modeling import AXK1ForCausalLM
from axk1.modeling.cache import LatentLayer
from axk1.modeling.compat import CACHE


def executor_for(model: PreTrainedModel, pool: Pool | None) -> Executor:
    """The fastest executor of this machine for ``model``, with the weights and hooks that it has now.

    Args:
        pool: where the pages come from; None for a model that is not ours.
    """
    if not isinstance(model, AXK1ForCausalLM) or pool is None:
        return WholeExecutor(model)
    return executor(model, pool.dtype) or ModuleExecutor(model)


class ModuleExecutor:
    """Plain PyTorch on any device: the reference for every other.

    Prompts are run one by one; replies with the same number of new tokens together, so that their results depend on
    each other by rounding.
    """

    exact = False

    def __init__(self, model: AXK1ForCausalLM) -> None:
        self._model, self._config = model, cast(AXK1Config, model.config)

    def step(self, batch: Batch) -> Step:
        """The trunk over ``batch``."""
        return self._score(batch, self._run(batch, None), self._model.lm_head)

    def draft(self, batch: Batch, hidden: Tensor) -> Step:
        """The first MTP module over ``hidden`` and ``batch``."""
        return self._score(batch, self._run(batch, hidden), self._head or self._model.lm_head)

    def speculate(self, module: Batch, hidden: Tensor, trunk: Batch, count: int) -> None:
        """Declines: the parts are as fast."""

    @cached_property
    def _head(self) -> DraftHead | None:
        return draft_head(self._model)

    def _run(self, batch: Batch, hidden: Tensor | None) -> list[Tensor]:
        """Each sequence's last wanted states."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for b in range(len(batch.cached)):
            length = batch.starts[b + 1] - batch.starts[b]
            groups[(b if b < batch.prompts else -1), length].append(b)
        states: dict[int, Tensor] = {}
        for group in groups.values():
            for b, made in zip(group, self._run_group(batch, group, hidden), strict=True):
                states[b] = made[len(made) - batch.states[b] :]
        return [states[b] for b in range(len(states))]

    def _run_group(self, batch: Batch, group: list[int], hidden: Tensor | None) -> Tensor:
        """``[G, T, D]`` of sequences with T new tokens each."""

        def stacked(flat: Tensor) -> Tensor:
            return torch.stack([flat[batch.starts[b] : batch.starts[b + 1]] for b in group])

        cached = [batch.cached[b] for b in group]
        view = PageView(self._config, [batch.tables[b] for b in group], cached)
        ids = stacked(batch.ids)
        where: dict[str, Any] = {
            "past_key_values": view,
            "position_ids": stacked(batch.positions),
            "attention_mask": _mask(cached, ids),
        }
        if hidden is None:
            return self._model.model(input_ids=ids, use_cache=True, **where).last_hidden_state
        return self._model.model.draft(stacked(hidden), ids, **where)

    def _score(self, batch: Batch, states: list[Tensor], head: Any) -> Step:
        held = states[0] if len(states) == 1 else torch.cat(states)
        if batch.wanted != batch.states:
            pairs = zip(states, batch.wanted, strict=True)
            scored = torch.cat([some[len(some) - count :] for some, count in pairs])
        else:
            scored = held
        if not len(scored):
            logits = torch.empty(0, self._config.vocab_size, device=batch.ids.device)
            return Step(held, logits, logits.argmax(-1))
        logits = head(scored).float().to(batch.ids.device)
        return Step(held, logits, logits.argmax(-1))


def _mask(cached: list[int], ids: Tensor) -> Tensor | None:
    """``[G, max(cached) + T]`` int64 for ids ``[G, T]``: 0 where a sequence has fewer; None: all have as many."""
    most = max(cached)
    if min(cached) == most:
        return None
    have = torch.tensor(cached, device=ids.device)[:, None]
    past = torch.arange(most, device=ids.device) < have
    return torch.cat([past, torch.ones_like(ids, dtype=torch.bool)], 1).long()


class PageView(Cache):
    """Pages of G sequences as the cache of one step that adds T tokens to each: a column for each cached token, up to
    the most of them, and then one for each new token. Columns that a sequence has no token for are to be masked."""

    def __init__(self, config: AXK1Config, tables: list[Table], cached: list[int]) -> None:
        count = config.num_hidden_layers + config.num_nextn_predict_layers
        super().__init__(layers=[PageLayer(config, index, tables, cached) for index in range(count)])


class PageLayer(LatentLayer):
    """One layer of it. What it gathers lives as long as the step.

    Kept until the next step it would spare a copy of all cached latents, and hold all of them twice; and every page
    that another group of sequences, a replay or a rejected draft has written since would have to be known.
    """

    def __init__(self, config: AXK1Config, index: int, tables: list[Table], cached: list[int]) -> None:
        super().__init__(config.kv_lora_rank, config.qk_rope_head_dim)
        self._index, self._tables, self._cached = index, tables, cached
        self.length = max(cached)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes latents ``[G, 1, T, C]`` and rotated keys ``[G, 1, T, R]`` to the pages; returns all of both."""
        new = torch.cat([key_states, value_states.to(key_states.dtype)], dim=-1)
        most, tokens = self.length, new.shape[2]
        buffer = new.new_zeros(len(new), 1, most + tokens, new.shape[3])
        buffer[:, :, most:] = new
        for row, table, cached, added in zip(buffer[:, 0], self._tables, self._cached, new[:, 0], strict=True):
            self._read(table, row[:cached])
            self._write(table, cached, added)
        self.buffer, self.length, self.is_initialized = buffer, most + tokens, True
        self.dtype, self.device = new.dtype, new.device
        return cast(Tensor, self.keys), cast(Tensor, self.values)

    def _read(self, table: Table, out: Tensor) -> None:
        """The first tokens of a sequence to ``out`` ``[S, C + R]``."""
        pages = [page[self._index] for page in table.pages[: -(-len(out) // PAGE)]]  # one operator, however many
        if pages:
            out.copy_(torch.cat(pages)[: len(out)])

    def _write(self, table: Table, first: int, new: Tensor) -> None:
        """``new`` ``[T, C + R]`` to the positions from ``first`` on."""
        done = 0
        while done < len(new):
            page, row = divmod(first + done, PAGE)
            count = min(PAGE - row, len(new) - done)
            table.pages[page][self._index, row : row + count] = new[done : done + count]
            done += count


class WholeExecutor:
    """Models that are not ours: each sequence by itself, with transformers' own cache. They have no MTP module."""

    exact = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._caches: WeakKeyDictionary[Table, DynamicCache] = WeakKeyDictionary()

    def step(self, batch: Batch) -> Step:
        """The model over ``batch``; no states."""
        logits = []
        for b, table in enumerate(batch.tables):
            if table not in self._caches:
                self._caches[table] = DynamicCache(config=self._model.config)
            here = slice(batch.starts[b], batch.starts[b + 1])
            output = self._model(
                input_ids=batch.ids[None, here],
                position_ids=batch.positions[None, here],
                use_cache=True,
                logits_to_keep=max(batch.wanted[b], 1),
                **{CACHE: self._caches[table]},
            )
            logits.append(output.logits[0, -max(batch.wanted[b], 1) :][: batch.wanted[b]])
        scores = torch.cat(logits).float().to(batch.ids.device)
        return Step(scores[:, :0], scores, scores.argmax(-1))

    def draft(self, batch: Batch, hidden: Tensor) -> Step:
        """Never called."""
        raise NotImplementedError("The model has no MTP module of ours.")

    def speculate(self, module: Batch, hidden: Tensor, trunk: Batch, count: int) -> None:
        """Declines."""
