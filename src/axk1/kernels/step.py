"""Runs decode steps on the compiled operators: all layers in one call, on the model's own weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from axk1.kernels.build import available, is_fast
from axk1.kernels.weights import FORMATS, STEP_TOKENS, read_layers, read_model
from axk1.modeling.attention import products
from axk1.modeling.runners import Step

if TYPE_CHECKING:
    from axk1.config import AXK1Config
    from axk1.modeling.cache import LatentCache
    from axk1.modeling.causal_lm import AXK1ForCausalLM
    from axk1.modeling.layer import AXK1DecoderLayer
    from axk1.modeling.mtp import AXK1MTPLayer
    from axk1.modeling.norm import AXK1RMSNorm
    from axk1.modeling.rope import AXK1RotaryEmbedding
    from axk1.modeling.trunk import AXK1Model

MOST_ROWS = {torch.bfloat16: 128, torch.float32: 64}
"""Tokens of a step, over all sequences, by the states' dtype: with more, PyTorch's operators are faster. Its rows have
the same bits whatever runs beside them."""
PROMPT_ROWS = 4096
"""Tokens of a prompt that are run at once, over all sequences: what bounds the memory for activations."""
ABSORBED_COST = 1.5
"""A multiplication of a step's absorbed attention takes as long as this many of a prompt's expanded one."""
_SEEN: WeakKeyDictionary[LatentCache, dict[int, Any]] = WeakKeyDictionary()
_FP32 = torch.empty(0)  # the rotary embedding answers in the dtype of what it is given


class CPURunner:
    """:class:`axk1.modeling.runners.Runner` of CPUs."""

    def layers(
        self,
        model: AXK1Model,
        layers: Sequence[AXK1DecoderLayer],
        norm: AXK1RMSNorm,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: LatentCache,
    ) -> Tensor | None:
        """Runs ``layers`` and ``norm`` over ``[B, T, D]`` new tokens behind ``cache``; None: it cannot.

        Weights are looked up once for a cache, so that those replaced between generations are seen.
        """
        batch, tokens, _ = hidden_states.shape
        dtype = hidden_states.dtype
        if not _may_pay(batch, tokens, dtype) or not available():
            return None
        first, seen = layers[0].self_attn.layer_idx, _SEEN.setdefault(cache, {})  # of the trunk or of an MTP module
        if first not in seen:
            seen[first] = read_layers(model, layers, norm, dtype)
        part, past = seen[first], cache.layers[first].get_seq_length()
        if part is None:
            return None
        prompt = _is_prompt(part, model.config, batch, tokens, past + tokens, dtype)
        if prompt is None:
            return None
        buffers, _ = _space(cache, first, first + len(layers), batch, tokens, dtype)
        keep, piece, states = _kept(attention_mask), max(PROMPT_ROWS // batch, 1), []
        for start in range(0, tokens, piece):
            stop = min(start + piece, tokens)
            angles = _angles(model.rotary_emb, position_ids[:, start:stop])
            states.append(part.run(hidden_states[:, start:stop], buffers, past + stop, *angles, keep, prompt))
        return states[0] if len(states) == 1 else torch.cat(states, dim=1)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """``[..., I]`` times ``[O, I]`` for few rows, summed in fp32, to x's dtype; None: it cannot."""
        few = x.numel() <= MOST_ROWS.get(x.dtype, 0) * x.shape[-1]
        usable = few and x.dtype == weight.dtype and weight.dtype in FORMATS
        if not usable or not (weight.is_contiguous() and weight.is_cpu and available()):
            return None
        return torch.ops.axk1.linear(x, weight, None, x.dtype == torch.float32)

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """``axk1.quantized.lossless.Packed`` of a bfloat16 weight; None: steps cannot read it."""
        if not is_fast(torch.bfloat16):
            return None
        return torch.ops.axk1.pack_lossless(weight)

    def decoder(self, model: AXK1ForCausalLM, cache: LatentCache) -> CPUDecoder | None:
        """Whole steps of ``model`` behind ``cache``; None: it cannot."""
        trunk = read_model(model) if available() else None
        return None if trunk is None else CPUDecoder(model, cache, trunk)


class CPUDecoder:
    """:class:`axk1.modeling.runners.Decoder` of CPUs; ``trunk`` is what :func:`read_model` made of the model."""

    exact = True

    def __init__(self, model: AXK1ForCausalLM, cache: LatentCache, trunk: Any) -> None:
        self._model, self._cache, self._trunk = model, cache, trunk
        self._rotary, self._dtype = model.model.rotary_emb, model.model.embed_tokens.weight.dtype
        self._depth = model.config.num_hidden_layers

    @cached_property
    def _module(self) -> Any | None:
        modules = self._model.model.mtp_layers
        return read_model(self._model, cast("AXK1MTPLayer", modules[0])) if modules else None

    def step(self, ids: Tensor, positions: Tensor, mask: Tensor | None, keep: int, whole: bool = True) -> Step | None:
        """The trunk over ids ``[B, T]``, with the logits of the last ``keep`` columns."""
        return self._run(self._trunk, None, 0, self._depth, ids, positions, mask, keep, whole)

    def draft(
        self, hidden: Tensor, ids: Tensor, positions: Tensor, mask: Tensor | None, keep: int, whole: bool = True
    ) -> Step | None:
        """The first MTP module over the states of ``positions`` and the tokens after them."""
        return self._run(self._module, hidden, self._depth, self._depth + 1, ids, positions, mask, keep, whole)

    def speculate(
        self, waiting: tuple[Tensor, Tensor, Tensor], newest: Tensor, positions: Tensor, count: int
    ) -> tuple[Tensor, Step] | None:
        """Greedy drafts behind what waits for the module, and the trunk over ``newest`` and the drafts."""
        hidden, ids, places = waiting
        batch, tokens = ids.shape
        if self._module is None or batch * max(tokens, count + 1) > MOST_ROWS[self._dtype]:
            return None
        depth = self._depth
        mine, length = _space(self._cache, depth, depth + 1, batch, tokens + count - 1, self._dtype)
        self._cache.layers[depth].crop(1 - count)  # drafts leave no trace
        space = _space(self._cache, 0, depth, batch, count + 1, self._dtype)
        turns = _angles(self._rotary, positions)
        module = (self._module, hidden, ids, places, mine, length + 1 - count)
        drafted, *found = self._trunk.speculate(*module, newest, *space, *turns, count)
        return drafted, Step(*found)

    def _run(
        self,
        part: Any | None,
        hidden: Tensor | None,
        first: int,
        last: int,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        keep: int,
        whole: bool,
    ) -> Step | None:
        batch, tokens = ids.shape
        if part is None or batch * tokens > PROMPT_ROWS:
            return None
        cached = self._cache.layers[first].get_seq_length() + tokens
        prompt = _is_prompt(part, self._model.config, batch, tokens, cached, self._dtype)
        if prompt is None:
            return None
        space = _space(self._cache, first, last, batch, tokens, self._dtype)
        return Step(
            *part.decode(
                ids,
                hidden,
                *space,
                *_angles(self._rotary, positions),
                _kept(mask),
                keep,
                tokens if whole else keep,
                prompt,
            )
        )


def _may_pay(batch: int, tokens: int, dtype: torch.dtype) -> bool:
    """What can be said of a step before its weights have been looked up."""
    return batch * tokens <= MOST_ROWS.get(dtype, 0) or (tokens > STEP_TOKENS and dtype == torch.bfloat16)


def _is_prompt(part: Any, config: AXK1Config, batch: int, tokens: int, cached: int, dtype: torch.dtype) -> bool | None:
    """Whether T tokens a sequence, S cached ones with these, are read as a prompt and not as a step; None where
    PyTorch's operators are faster (beside AMX their products are, four times)."""
    few = batch * tokens <= MOST_ROWS[dtype]
    if tokens <= STEP_TOKENS or not part.reads_prompts():
        return False if few else None
    if not few:
        return None if torch.ops.axk1.has_amx() else True
    expanded, absorbed = products(config, tokens, cached)
    return expanded < ABSORBED_COST * absorbed


def _space(
    cache: LatentCache, first: int, last: int, batch: int, tokens: int, dtype: torch.dtype
) -> tuple[list[Tensor], int]:
    """Appends ``tokens`` columns to some layers of the cache; returns their buffers, and how long they are now."""
    held = cache.layers[first:last]
    for layer in held:
        layer.append_space(batch, tokens, dtype, _FP32.device)
    return [layer.buffer for layer in held], held[0].length  # pyright: ignore[reportReturnType]


def _angles(rotary: AXK1RotaryEmbedding, positions: Tensor) -> tuple[Tensor, Tensor]:
    """``positions``, and the frequencies ``[R / 2]`` fp32 for them."""
    if rotary.changes_with_length:
        rotary(_FP32, positions)
    frequencies = rotary.inv_freq
    return positions, frequencies if frequencies.dtype == torch.float32 else frequencies.float()


def _kept(mask: Tensor | None) -> Tensor | None:
    """The mask as bool; None where it hides nothing."""
    return None if mask is None or bool(mask.all()) else mask.bool().contiguous()
