"""Layer runners: when they are asked, with what, and that a step is the same whether they take it or not."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny import PAD, pad_rows, positions_of, small_model, tokens
from transformers import DynamicCache, StaticCache

from axk1.modeling.cache import LatentCache
from axk1.modeling.context import attention_context
from axk1.modeling.layer import AXK1DecoderLayer
from axk1.modeling.runners import RUNNERS


class Runner:
    """A runner in plain PyTorch: the layers' own decoder blocks. Notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.declines = False

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Declines."""

    def decoder(self, model: Any, cache: LatentCache) -> None:
        """Declines."""

    def layers(
        self, model: Any, layers: Any, norm: Any, hidden_states: Any, position_ids: Any, attention_mask: Any, cache: Any
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
def runner() -> Iterator[Runner]:
    made = Runner()
    with patch.dict(RUNNERS, {"cpu": made}):
        yield made


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_steps_are_the_same_with_a_runner(runner: Runner, side: str) -> None:
    """Trunk and MTP module, padded rows; once taken, once declined, once without a runner."""
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
    assert [call["layers"] for call in runner.asked] == [[0, 1, 2], [3]] * 3
    runner.declines = True
    declined = steps()
    with patch.dict(RUNNERS, clear=True):
        plain = steps()
    assert torch.equal(taken, plain) and torch.equal(declined, plain)


@torch.no_grad()
def test_generate_uses_the_runner(runner: Runner) -> None:
    model, ids = small_model(), tokens(2, 6)
    settings: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    found = model.generate(ids, **settings)
    assert len(runner.asked) == 5
    with patch.dict(RUNNERS, clear=True):
        assert torch.equal(found, model.generate(ids, **settings))
        beams = model.generate(ids, num_beams=3, **settings)
    assert torch.equal(model.generate(ids, num_beams=3, **settings), beams)


@torch.no_grad()
def test_mtp_logits_behind_a_runner(runner: Runner) -> None:
    """A short prompt with an empty cache may be the runner's: the modules then make the mask they need."""
    model = small_model(num_nextn_predict_layers=2)
    ids, mask = pad_rows([tokens(1, 9)[0], tokens(1, 5)[0]], "left")
    cache = LatentCache(model.config)
    found = model(ids, attention_mask=mask, past_key_values=cache, output_mtp_logits=True).mtp_logits
    assert len(runner.asked) == 1
    expected = model(ids, attention_mask=mask, use_cache=False, output_mtp_logits=True).mtp_logits
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference)[mask.bool()].abs().max() < 1e-4


@torch.no_grad()
def test_who_is_not_asked(runner: Runner) -> None:
    model, ids = small_model(), tokens(2, 128)

    def asked(count: int = 128, cache: Any = None, **extra: Any) -> int:
        runner.asked.clear()
        cache = LatentCache(model.config) if cache is None else cache
        model.model(ids[:, :count], past_key_values=cache, **extra)
        return len(runner.asked)

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
    with patch.dict(RUNNERS, {"cuda": runner}, clear=True):
        assert asked() == 0
