"""What the two engines built on torch share: contexts that are filled, not computed, and steps that are timed."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from protocol import random_ids

FILL_STD = 0.5


class TorchEngine:
    """A causal language model of transformers' kind, and the operations on it. Greedy, one token a row and step."""

    def __init__(self, model: Any):
        self.model = model
        self.device = next(model.parameters()).device
        self.cache: Any = None
        self.key: tuple[int, int] | None = None

    def prefill(self, tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Any]:
        """Seconds for a prompt of ``tokens``, up to the logits of its last token."""
        self.forget()
        ids = self.prompt(batch, tokens, seed)
        start = self.now()
        with torch.inference_mode():
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return {"seconds": self.now() - start}

    def decode(self, context: int, tokens: int, batch: int = 1) -> dict[str, Any]:
        """Seconds for ``tokens`` steps after ``context`` cached tokens."""
        with torch.inference_mode():
            cache = self.context(context, batch)
            last = self.prompt(batch, 1, seed=1)
            start = self.now()
            for _ in range(tokens):
                out = self.model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
                last = out.logits[:, -1:].argmax(-1)
            seconds = self.now() - start
            cache.crop(-tokens)
        return {"seconds": seconds}

    def answers(self, prompts: int, tokens: int) -> dict[str, Any]:
        """The most probable token after each of some random prompts: engines that compute the same agree."""
        ids = self.prompt(prompts, tokens, seed=3)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return {"ids": logits[:, -1].argmax(-1).tolist()}

    def context(self, context: int, batch: int) -> Any:
        """A cache of ``context`` random tokens. Filling takes no time where prefilling takes quadratic time; how long a
        step takes does not depend on the values."""
        if self.key != (context, batch):
            self.forget()
            self.cache = self.fill(context, batch)
            self.key = (context, batch)
        return self.cache

    def fill(self, context: int, batch: int) -> Any:
        """transformers' own cache, of the shapes that a first token gives it."""
        cache = self.model(input_ids=self.prompt(batch, 1, seed=2), use_cache=True, logits_to_keep=1).past_key_values
        for layer in cache.layers:
            if context > 1 and layer.keys is not None:  # MTP modules keep a layer that only drafts fill
                more = [states.new_empty(batch, states.shape[1], context - 1, states.shape[3]).normal_(0, FILL_STD)
                        for states in (layer.keys, layer.values)]  # fmt: skip
                layer.update(*more)
        return cache

    def memory(self) -> dict[str, Any]:
        """Bytes that a cached token takes, of what is allocated for a thousand, and on a GPU torch's peak."""
        self.forget()
        with torch.inference_mode():
            cache = self.fill(1_000, 1)
        tensors = [states for layer in cache.layers for states in (layer.keys, layer.values) if states is not None]
        storages = {states.untyped_storage().data_ptr(): states.untyped_storage().nbytes() for states in tensors}
        gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {"cache_bytes_per_token": sum(storages.values()) / 1_000, "device_peak": gpu}

    def forget(self) -> None:
        """Frees the context."""
        self.cache = self.key = None
        gc.collect()

    def prompt(self, batch: int, tokens: int, seed: int) -> torch.Tensor:
        """Random token ids ``[batch, tokens]`` int64, another row for each of the batch."""
        vocabulary = self.model.config.vocab_size
        rows = [random_ids(tokens, vocabulary, seed * 1_000 + row) for row in range(batch)]
        return torch.tensor(rows, device=self.device)

    def now(self) -> float:
        """The time when the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
