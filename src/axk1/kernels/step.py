"""Runs steps on the compiled kernels: all layers in one call, on the model's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from axk1.kernels import native
from axk1.kernels.batch import Batch, Step
from axk1.kernels.native import DTYPES, Layers, StepFields, numbers
from axk1.kernels.weights import read_layers, read_model

if TYPE_CHECKING:
    from axk1.modeling.cache import LatentCache
    from axk1.modeling.causal_lm import AXK1ForCausalLM
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.mtp import AXK1MTPLayer
    from axk1.modeling.norm import AXK1RMSNorm
    from axk1.modeling.rope import AXK1RotaryEmbedding
    from axk1.modeling.trunk import AXK1Model

PAGE = 64
"""Tokens per page of latents (``kPage`` in ``cpu/tokens.h``)."""
_SEEN: WeakKeyDictionary[LatentCache, dict[int, Any]] = WeakKeyDictionary()
_FP32 = torch.empty(0)  # the rotary embedding answers in the dtype of what it is given


def run_layers(
    model: AXK1Model,
    layers: Sequence[AXK1DecoderLayer],
    norm: AXK1RMSNorm,
    hidden_states: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    cache: LatentCache,
    *,
    prompt: bool,
    piece: int,
) -> Tensor | None:
    """Runs ``layers`` and ``norm`` over new tokens after ``cache``, as :meth:`AXK1Model.whole_step` says.

    Weights are looked up once for a cache, so that those replaced between generations are seen.

    Args:
        attention_mask: ``[B, S]`` of any dtype, 0 where a column is not attended to; None for all.
        prompt: whether the tokens are read as a prompt.
        piece: how many tokens of each sequence are run at once.

    Returns:
        ``[B, T, D]``, or None: there are no kernels, or none for these weights.

    Raises:
        ValueError: states, positions, mask and cache do not fit each other.
    """
    batch, tokens, _ = hidden_states.shape
    dtype = hidden_states.dtype
    if not native.available():
        return None
    first, seen = layers[0].self_attn.layer_idx, _SEEN.setdefault(cache, {})  # of the trunk or of an MTP module
    if first not in seen:
        seen[first] = read_layers(model, layers, norm, dtype)
    part, past = seen[first], cache.layers[first].get_seq_length()
    if part is None:
        return None
    held = cache.layers[first : first + len(layers)]
    if hidden_states.shape[2] != part.sizes["hidden"] or position_ids.shape[1] != tokens:
        raise ValueError(
            f"States {list(hidden_states.shape)} at positions {list(position_ids.shape)} do not fit a model of "
            f"hidden_size {model.config.hidden_size}: give as many positions as states, of that width."
        )
    for layer in held:
        layer.append_space(batch, tokens, dtype, _FP32.device)
    keep, out = _kept(attention_mask), hidden_states.new_empty(hidden_states.shape)
    for start in range(0, tokens, piece):
        stop = min(start + piece, tokens)
        positions = position_ids[:, start:stop].expand(batch, -1)
        states = hidden_states[:, start:stop].contiguous()
        made = states.new_empty(states.shape)
        step = _LatentStep(part, model.rotary_emb, held, states, positions, past + start, keep, prompt)
        step.run(made)
        out[:, start:stop] = made
    return out


class _LatentStep:
    """A step over sequences of equal length whose latents are in one buffer per layer, ``[B, 1, capacity, C + R]``."""

    def __init__(
        self,
        part: Layers,
        rotary: AXK1RotaryEmbedding,
        held: Sequence[Any],
        states: Tensor,
        positions: Tensor,
        past: int,
        keep: Tensor | None,
        prompt: bool,
    ) -> None:
        batch, tokens, _ = states.shape
        buffers = [layer.buffer for layer in held]
        width = part.sizes["latent"] + part.sizes["rope"]
        if any(buffer.shape[0] != batch or buffer.shape[3] != width for buffer in buffers):
            raise ValueError("This is a cache of another configuration: make one of this model's.")
        row, capacity = width * buffers[0].element_size(), buffers[0].shape[2]
        if any(buffer.shape[2] != capacity for buffer in buffers):
            raise ValueError("The layers of the cache have room for different numbers of tokens.")
        if keep is not None and keep.shape != (batch, past + tokens):
            raise ValueError(f"The mask has the shape {list(keep.shape)} for {past + tokens} cached tokens.")
        count = -(-(past + tokens) // PAGE)
        pages = torch.arange(batch)[:, None] * (capacity * row) + torch.arange(count) * (PAGE * row)
        self._part = part
        self._step = step = StepFields(sequences=batch, prompts=batch if prompt else 0, threads=torch.get_num_threads())
        every, frequencies = numbers([tokens] * batch), _frequencies(rotary, positions)
        fields: dict[str, Any] = {
            "starts": numbers(range(0, batch * tokens + 1, tokens)),
            "cached": numbers([past] * batch),
            "positions": positions.contiguous(),
            "pages": pages,
            "layers": numbers([buffer.data_ptr() for buffer in buffers]),
            "frequencies": frequencies,
            "keep": keep,
            "hidden": states,
            "wanted": every,
            "scored": numbers([0] * batch),
        }
        self._held = fields, buffers
        _point(step, fields, part)
        step.most_pages, step.keep_stride = count, past + tokens
        step.cache_format, step.hidden_format = DTYPES[buffers[0].dtype], DTYPES[states.dtype]

    def run(self, out: Tensor) -> None:
        """Writes the states ``[B, T, D]`` after the norm."""
        self._step.states, self._step.states_format = out.data_ptr(), DTYPES[out.dtype]
        self._part.run(self._step)


def _point(step: StepFields, fields: dict[str, Any], part: Layers) -> None:
    """Sets the addresses of ``fields``: tensors and arrays of numbers."""
    for name, value in fields.items():
        if isinstance(value, Tensor):
            setattr(step, name, value.data_ptr())
        elif value is not None:
            setattr(step, name, native.ctypes.addressof(value))
    frequencies = fields.get("frequencies")
    if frequencies is not None and 2 * frequencies.numel() != part.sizes["rope"]:
        raise ValueError("There are frequencies for another width than the rotated one (qk_rope_head_dim).")


def _frequencies(rotary: AXK1RotaryEmbedding, positions: Tensor) -> Tensor:
    """``[R / 2]`` fp32, as they are for ``positions``."""
    if rotary.changes_with_length:
        rotary(_FP32, positions.reshape(1, -1))
    return rotary.inv_freq.float().contiguous()


def _kept(mask: Tensor | None) -> Tensor | None:
    """The mask as bool; None where it hides nothing."""
    return None if mask is None or bool(mask.all()) else mask.bool().contiguous()


class CPUExecutor:
    """Steps over paged batches: a token's bits depend on its own sequence alone.

    Weights and hooks are looked at when it is made.
    """

    exact = True

    def __init__(self, model: AXK1ForCausalLM, dtype: torch.dtype, trunk: Layers) -> None:
        config = model.config
        self._model, self._trunk, self._rotary = model, trunk, model.model.rotary_emb
        self._dtype, self._vocabulary = model.model.embed_tokens.weight.dtype, config.vocab_size
        self._cache_format = DTYPES[dtype]
        size = (config.kv_lora_rank + config.qk_rope_head_dim) * dtype.itemsize * PAGE
        depth = config.num_hidden_layers
        self._layers, self._module_layers = numbers([i * size for i in range(depth)]), numbers([depth * size])
        self._fixed = None if self._rotary.changes_with_length else _frequencies(self._rotary, _FP32)

    @cached_property
    def _module(self) -> Layers | None:
        modules = self._model.model.mtp_layers
        return read_model(self._model, cast("AXK1MTPLayer", modules[0])) if modules else None

    def step(self, batch: Batch) -> Step:
        """The trunk over the batch's tokens."""
        fields, outputs, _held = self._fields(batch, None)
        self._trunk.run(fields)
        return outputs

    def draft(self, batch: Batch, hidden: Tensor) -> Step:
        """The first MTP module over the states ``[N, D]`` and the tokens after them.

        Raises:
            ValueError: there is no module, or it is none that kernels stand in for.
        """
        if self._module is None:
            raise ValueError("The model has no MTP module that the kernels can run.")
        fields, outputs, _held = self._fields(batch, hidden)
        self._module.run(fields)
        return outputs

    def speculate(self, module: Batch, hidden: Tensor, trunk: Batch, count: int) -> tuple[Tensor, Step] | None:
        """Greedy drafts of the module over what waits for it, then the trunk over each sequence's newest token, the
        first of its ``count + 1`` in ``trunk``, and its drafts, which are written after it."""
        if self._module is None:
            return None
        mine, _, _held = self._fields(module, hidden)
        step, outputs, _also = self._fields(trunk, None)
        self._trunk.speculate(self._module, mine, step, count)
        return trunk.ids.view(-1, count + 1), outputs

    def _fields(self, batch: Batch, hidden: Tensor | None) -> tuple[StepFields, Step, Any]:
        """A step of the trunk, or with ``hidden`` of the module; what it returns; and what it points to."""
        count, scored = sum(batch.states), sum(batch.wanted)
        states = torch.empty(count, self._trunk.sizes["hidden"], dtype=self._dtype)  # pyright: ignore
        logits = torch.empty(scored, self._vocabulary)
        best = torch.empty(scored, dtype=torch.int64)
        frequencies = self._fixed if self._fixed is not None else _frequencies(self._rotary, batch.positions)
        fields: dict[str, Any] = {
            "starts": numbers(batch.starts),
            "cached": numbers(batch.cached),
            "positions": batch.positions,
            "pages": batch.pages,
            "layers": self._layers if hidden is None else self._module_layers,
            "frequencies": frequencies,
            "ids": batch.ids,
            "hidden": None if hidden is None else hidden.contiguous(),
            "wanted": numbers(batch.states),
            "scored": numbers(batch.wanted),
            "states": states,
        }
        if scored:
            fields |= {"logits": logits, "best": best}
        step = StepFields(sequences=len(batch.cached), prompts=batch.prompts, threads=torch.get_num_threads())
        _point(step, fields, self._trunk)
        step.most_pages, step.cache_format = batch.pages.shape[1], self._cache_format
        step.states_format = step.hidden_format = DTYPES[self._dtype]
        return step, Step(states, logits, best), fields
