"""Whole steps: when kernels are asked for one, with what, and that it is the same whether they take it or not."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny import PAD, pad_rows, positions_of, small_model, tokens
from transformers import DynamicCache, StaticCache

from axk1 import modeling
from axk1.kernels import dispatch
from axk1.modeling.attention import STAND_INS
from axk1.modeling.cache import LatentCache
from axk1.modeling.context import attention_context
from axk1.modeling.layer import AXK1DecoderLayer

ALONE = patch.object(modeling.AXK1Model, "whole_step", lambda *args, **kwargs: None)
"""The modules run by themselves."""


class Kernels:
    """In the place of ``run_layers``, in plain PyTorch: the layers' own decoder blocks. Notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.declines = False

    def __call__(
        self,
        model: Any,
        layers: Any,
        norm: Any,
        hidden_states: Any,
        position_ids: Any,
        attention_mask: Any,
        cache: Any,
        **how: Any,
    ) -> torch.Tensor | None:
        index = layers[0].self_attn.layer_idx
        self.asked.append({"layers": [layer.self_attn.layer_idx for layer in layers], "mask": attention_mask})
        assert hidden_states.shape[-1] == model.config.hidden_size and position_ids.shape[1] == hidden_states.shape[1]
        if self.declines:
            return None
        context = attention_context(
            model.config, model.rotary_emb, hidden_states, attention_mask, position_ids, cache, index
        )
        for layer in layers:
            hidden_states = AXK1DecoderLayer.forward(layer, hidden_states, past_key_values=cache, **context)
        return norm(hidden_states)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    made = Kernels()
    with patch.object(dispatch, "run_layers", made):
        yield made


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_steps_are_the_same_with_kernels(kernels: Kernels, side: str) -> None:
    """Trunk and MTP module, padded rows; once taken, once declined, once not asked for."""
    model = small_model(num_nextn_predict_layers=1)
    ids, mask = pad_rows([tokens(1, n, seed=n)[0] for n in (130, 64)], side)
    ids = torch.cat([ids, tokens(2, 4)], dim=1)
    mask = torch.cat([mask, torch.ones(2, 4, dtype=torch.long)], dim=1)
    positions = positions_of(mask)

    def steps() -> torch.Tensor:
        cache, found = LatentCache(model.config), []
        for start, end in ((0, 130), (130, 133), (133, 134)):
            where = {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
            hidden = model.model(ids[:, start:end], past_key_values=cache, **where).last_hidden_state
            found += [hidden, model.model.draft(hidden, ids[:, start:end], cache, **where)]
        return torch.cat(found, dim=1)

    taken = steps()
    assert [call["layers"] for call in kernels.asked] == [[0, 1, 2], [3]] * 3
    kernels.declines = True
    declined = steps()
    with ALONE:
        plain = steps()
    assert torch.equal(taken, plain) and torch.equal(declined, plain)


@torch.no_grad()
def test_generate_uses_kernels(kernels: Kernels) -> None:
    model, ids = small_model(), tokens(2, 6)
    settings: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    found = model.generate(ids, **settings)
    assert len(kernels.asked) == 5
    with ALONE:
        assert torch.equal(found, model.generate(ids, **settings))
        beams = model.generate(ids, num_beams=3, **settings)
    assert torch.equal(model.generate(ids, num_beams=3, **settings), beams)


@torch.no_grad()
def test_mtp_logits_after_a_whole_step(kernels: Kernels) -> None:
    """A short prompt with an empty cache may be a whole step: the modules then make the mask they need."""
    model = small_model(num_nextn_predict_layers=2)
    ids, mask = pad_rows([tokens(1, 9)[0], tokens(1, 5)[0]], "left")
    cache = LatentCache(model.config)
    found = model(ids, attention_mask=mask, past_key_values=cache, output_mtp_logits=True).mtp_logits
    assert len(kernels.asked) == 1
    expected = model(ids, attention_mask=mask, use_cache=False, output_mtp_logits=True).mtp_logits
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference)[mask.bool()].abs().max() < 1e-4


@torch.no_grad()
def test_who_is_not_asked(kernels: Kernels) -> None:
    model, ids = small_model(), tokens(2, 128)

    def asked(count: int = 128, cache: Any = None, **extra: Any) -> int:
        kernels.asked.clear()
        cache = LatentCache(model.config) if cache is None else cache
        model.model(ids[:, :count], past_key_values=cache, **extra)
        return len(kernels.asked)

    assert asked() == asked(1) == asked(attention_mask=torch.ones(2, 128)) == 1
    assert asked(cache=DynamicCache(config=model.config)) == 0
    assert asked(cache=StaticCache(config=model.config, max_cache_len=128)) == 0
    for flag in ("output_hidden_states", "output_attentions", "output_router_logits", "output_router_indices"):
        assert asked(**{flag: True}) == 0
    assert asked(is_causal=False) == 0
    assert asked(attention_mask=torch.ones(2, 128 + 3)) == 0, "a mask that is not of the cache's columns"
    assert asked(attention_mask=torch.ones(2, 1, 128, 128).bool()) == 0
    with torch.enable_grad():
        assert asked() == 0
    model.train()
    assert asked() == 0
    model.eval()
    model.set_attn_implementation("eager")
    assert asked() == 0, "chosen as the reference"
    model.set_attn_implementation("sdpa")
    assert asked() == 1
    there = torch.zeros(2, 3, model.config.hidden_size, device="meta")
    cache, positions = LatentCache(model.config), torch.arange(3)[None]
    kernels.asked.clear()
    assert model.model.whole_step(model.model.decoder_layers, model.model.norm, there, None, positions, cache) is None
    assert not kernels.asked, "on another device"


@torch.no_grad()
def test_modeling_stands_alone() -> None:
    """Without anything of the kernels: transformers' functions, the same tokens, and logits up to rounding."""
    ours, ids = small_model(num_nextn_predict_layers=1), tokens(2, 9)
    settings: dict[str, Any] = dict(max_new_tokens=12, do_sample=False, pad_token_id=PAD)
    expected, reply = ours(ids).logits, ours.generate(ids, **settings)
    with ALONE, patch.dict(STAND_INS, clear=True):
        alone = small_model(cls=modeling.AXK1ForCausalLM, num_nextn_predict_layers=1)
        assert alone.config._experts_implementation == "grouped_mm" and type(alone).logits is not type(ours).logits
        assert torch.equal(alone(ids, use_cache=False).logits, ours(ids, use_cache=False).logits)
        assert torch.equal(alone.generate(ids, **settings), reply)
        torch.testing.assert_close(alone(ids).logits, expected, atol=1e-4, rtol=1e-4)
