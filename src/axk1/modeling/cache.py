"""The cache of decoding: each layer's latents and rotary keys, in one buffer that grows in place.

Shapes: B batch, T new tokens, S cached tokens, C kv_lora_rank, R qk_rope_head_dim.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from axk1.config import AXK1Config

GROWTH = 4_096
"""Columns a full buffer grows by at most; while it has fewer it doubles. So the memory is that of the latents, plus at
most the smaller of as much again and this many columns."""


class LatentLayer(DynamicLayer):
    """One layer: ``[B, 1, capacity, C + R]``, of which ``length`` columns are filled; latents first, rotary key behind.

    ``keys`` ``[B, 1, S, C]`` and ``values`` ``[B, 1, S, R]`` are views, in transformers' terms. Tokens are appended
    without a copy of what is there, except where autograd records: then by concatenation, as ``DynamicLayer`` does.

    Args:
        latent_size: C.
        rope_size: R.
        capacity: columns to allocate at the first token; where more come, the buffer grows.
    """

    def __init__(self, latent_size: int, rope_size: int, capacity: int = 0) -> None:
        self.latent_size, self.rope_size, self.capacity = latent_size, rope_size, capacity
        self.buffer: torch.Tensor | None = None
        self.length = 0
        super().__init__()

    @property
    def keys(self) -> torch.Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Latents ``[B, 1, S, C]``, None before the first token."""
        return None if self.buffer is None else self.buffer[:, :, : self.length, : self.latent_size]

    @property
    def values(self) -> torch.Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Rotated keys ``[B, 1, S, R]``, None before the first token."""
        return None if self.buffer is None else self.buffer[:, :, : self.length, self.latent_size :]

    @keys.setter
    def keys(self, value: None) -> None:
        assert value is None, "written through update or append_space only"

    @values.setter
    def values(self, value: None) -> None:
        assert value is None, "written through update or append_space only"

    @property
    def joint(self) -> torch.Tensor:
        """Latents and rotary keys ``[B, S, C + R]``: a view, valid until the next change of the layer."""
        assert self.buffer is not None, "nothing cached yet"
        return self.buffer[:, 0, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 0 if self.buffer is None else self.buffer.nbytes

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates for the batch, dtype and device of ``key_states``; transformers calls it to prepare a cache."""
        self._make_room(key_states.shape[0], 0, key_states.dtype, key_states.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends latents ``[B, 1, T, C]`` and rotated keys ``[B, 1, T, R]``; returns all of both.

        Raises:
            ValueError: B is not the batch of the tokens already there.
        """
        buffer, tokens = self.buffer, key_states.shape[-2]
        recorded = key_states.requires_grad or (buffer is not None and buffer.requires_grad)
        if recorded and torch.is_grad_enabled():
            new = torch.cat([key_states, value_states.to(key_states.dtype)], dim=-1)
            self.buffer = torch.cat([buffer[:, :, : self.length], new], dim=2) if buffer is not None else new
            self.length, self.is_initialized = self.length + tokens, True
            self.dtype, self.device = new.dtype, new.device
        else:
            self._make_room(key_states.shape[0], tokens, key_states.dtype, key_states.device)
            self.length += tokens
            assert self.buffer is not None
            new = self.buffer[:, :, self.length - tokens : self.length]
            new[..., : self.latent_size] = key_states
            new[..., self.latent_size :] = value_states
        return self.keys, self.values  # pyright: ignore[reportReturnType]

    def append_space(self, batch: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Adds ``tokens`` columns that the caller fills: the last ones of ``joint``, or in ``buffer`` those before
        ``length``.

        Raises:
            ValueError: ``batch`` is not the batch of the tokens already there.
        """
        self._make_room(batch, tokens, dtype, device)
        self.length += tokens

    def _make_room(self, batch: int, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        """Lets ``tokens`` more columns be written in place."""
        old, needed = self.buffer, self.length + tokens
        if old is not None and self.length:
            if batch != old.shape[0]:
                raise ValueError(f"The cache holds a batch of {old.shape[0]}, the new tokens are a batch of {batch}.")
            dtype, device, fits = old.dtype, old.device, True
        else:
            fits = old is not None and (batch, dtype, device) == (old.shape[0], old.dtype, old.device)
        if old is not None and fits:
            # tensors of inference mode cannot be written outside it, nor those that a backward pass may need
            frozen = old.requires_grad or (not torch.compiler.is_compiling() and _is_foreign_to_this_mode(old))
            if needed <= old.shape[2] and not frozen:
                return
            capacity = max(needed, old.shape[2] + (min(old.shape[2], GROWTH) if needed > old.shape[2] else 0))
        else:
            capacity = max(needed, self.capacity)
        self.buffer = torch.empty(batch, 1, capacity, self.latent_size + self.rope_size, dtype=dtype, device=device)
        if old is not None and self.length:
            self.buffer[:, :, : self.length] = old[:, :, : self.length]
        self.dtype, self.device, self.is_initialized = dtype, device, True

    def get_seq_length(self) -> int:
        """S."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` tokens; their memory is written again by the next ones.

        Raises:
            ValueError: a positive number, which older versions of transformers took for the length to keep.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the number of tokens to remove, as a negative number.")
        self.length = max(0, self.length + int(tokens_to_remove))  # assisted generation counts in tensors

    def reset(self) -> None:
        """Forgets all tokens, keeps the memory."""
        self.length = 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row i becomes the old row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows ``indices``, in their order."""
        if self.buffer is not None:
            self._replace(self.buffer[:, :, : self.length][indices.to(self.buffer.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes ``repeats`` rows, next to each other."""
        if self.buffer is not None:
            self._replace(self.buffer[:, :, : self.length].repeat_interleave(repeats, dim=0))

    def _replace(self, filled: torch.Tensor) -> None:
        assert self.buffer is not None
        self.buffer = self.buffer.new_empty(filled.shape[0], *self.buffer.shape[1:])
        self.buffer[:, :, : self.length] = filled

    def offload(self) -> None:
        """Moves the layer to the CPU; ``prefetch`` brings it back."""
        if self.buffer is not None:
            self.buffer = self.buffer.to("cpu", non_blocking=True)

    def prefetch(self) -> None:
        """Undoes ``offload``."""
        if self.buffer is not None and self.buffer.device != self.device:
            self.buffer = self.buffer.to(self.device, non_blocking=True)


def check_fits(cache: Cache | None, config: AXK1Config) -> None:
    """Refuses a cache whose tokens are not latents of this configuration.

    Raises:
        ValueError: it holds keys a head, as prefix tuning makes them, or latents of another width.
    """
    first = cache.layers[0] if isinstance(cache, Cache) and cache.layers else None
    keys = getattr(first, "keys", None)
    if not isinstance(keys, torch.Tensor) or keys.dim() != 4:
        own = config.kv_lora_rank, config.qk_rope_head_dim
        if isinstance(first, LatentLayer) and (first.latent_size, first.rope_size) != own:
            raise ValueError(
                f"This is a cache of another configuration, for latents and rotated keys of {first.latent_size} and "
                f"{first.rope_size} values; this model's have {own[0]} (kv_lora_rank) and {own[1]} (qk_rope_head_dim): "
                "make a LatentCache of its configuration."
            )
        return  # empty, or of a kind that only transformers reads
    heads, width = keys.shape[1], keys.shape[3]
    if (heads, width) == (1, config.kv_lora_rank):
        return
    raise ValueError(
        f"The cache holds keys of {heads} heads and {width} values; multi-head latent attention caches one latent of "
        f"kv_lora_rank={config.kv_lora_rank} values for all heads. A cache of another model, or the keys and values of "
        "PEFT's prefix tuning, cannot stand in for it: use LoRA or prompt tuning."
    )


def _is_foreign_to_this_mode(tensor: torch.Tensor) -> bool:
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


class LatentCache(DynamicCache):
    """A :class:`LatentLayer` for each decoder layer, then one for each MTP module (``num_hidden_layers + k``).

    Usable wherever transformers takes a ``DynamicCache``. The modules' layers are filled by ``AXK1Model.draft`` only.

    Args:
        config: gives the number of layers and both widths.
        capacity: columns to allocate at the first token, where the final length is known.
    """

    layers: list[LatentLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: AXK1Config, capacity: int = 0) -> None:
        count = config.num_hidden_layers + config.num_nextn_predict_layers
        layers = [LatentLayer(config.kv_lora_rank, config.qk_rope_head_dim, capacity) for _ in range(count)]
        Cache.__init__(self, layers=layers)  # pyright: ignore[reportArgumentType]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, all layers."""
        return sum(layer.nbytes for layer in self.layers)
