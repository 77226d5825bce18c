"""``AXK1Model.draft``: an MTP module behind its own cache gives what it gives over the whole sequence."""

from typing import Any

import pytest
import torch
from tiny import ROPES, VOCAB, build, pad_rows, positions_of, random_fields, small_model, tokens

from axk1.kernels.draft_head import draft_head
from axk1.modeling.cache import LatentCache

CLOSE = 1e-5


@pytest.fixture(autouse=True)
def no_kernels(modules_only: None) -> None:
    """The modules themselves; kernels are compared with them in tests of their own."""


def ahead_of(ids: torch.Tensor, depth: int) -> torch.Tensor:
    """The ``depth``-th token after each; pad tokens where there is none."""
    return torch.nn.functional.pad(ids[:, depth:], (0, depth))


def drafted(model: Any, hidden: torch.Tensor, ids: torch.Tensor, sizes: list[int], **kwargs: Any) -> list[torch.Tensor]:
    """States of every depth, computed in chunks of ``sizes`` columns."""
    cache, states = LatentCache(model.config), []
    for depth in range(1, model.config.num_nextn_predict_layers + 1):
        chunks = zip(hidden.split(sizes, dim=1), ahead_of(ids, depth).split(sizes, dim=1), strict=True)
        parts, start = [], 0
        for state, following in chunks:
            columns = {name: value[:, : start + state.shape[1]] for name, value in kwargs.items()}
            if "position_ids" in columns:
                columns["position_ids"] = columns["position_ids"][:, start:]
            parts.append(model.model.draft(state, following, cache, depth=depth, **columns))
            start += state.shape[1]
        hidden = torch.cat(parts, dim=1)
        states.append(hidden)
        assert cache.get_seq_length(model.config.num_hidden_layers + depth - 1) == sum(sizes)
    assert cache.get_seq_length() == 0, "the trunk's layers are not the modules'"
    return states


@pytest.mark.parametrize("sizes", [[1] * 12, [12], [7, 1, 1, 3], [5, 6, 1]], ids=str)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_equals_the_whole_sequence(seed: int, sizes: list[int]) -> None:
    """Depths 1 and 2, one by one and in chunks; the last ``depth`` positions lack their token and are left out."""
    model = build(random_fields(seed, rope_parameters=dict(ROPES[seed % 4])), seed, num_nextn_predict_layers=2)
    ids = tokens(2, 12, seed)
    trunk = model.model(ids, use_cache=False)
    whole = model.model.forward_mtp(trunk.last_hidden_state, model.model.embed_tokens(ids))
    for depth, state in enumerate(drafted(model, trunk.last_hidden_state, ids, sizes), start=1):
        assert (state - whole.mtp_states[depth - 1])[:, :-depth].abs().max() < CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows(side: str) -> None:
    model = small_model(num_nextn_predict_layers=1)
    ids, mask = pad_rows([tokens(1, n, seed=n)[0] for n in (4, 11, 7)], side)
    positions = positions_of(mask)
    trunk = model.model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    embeddings = model.model.embed_tokens(ids)
    whole = model.model.forward_mtp(trunk.last_hidden_state, embeddings, mask, positions).mtp_states[0]
    found = drafted(model, trunk.last_hidden_state, ids, [6, 1, 4], attention_mask=mask, position_ids=positions)[0]
    known = (mask * ahead_of(mask, 1)).bool()
    assert (found - whole)[known].abs().max() < CLOSE


@torch.no_grad()
def test_rejected_drafts_leave_no_trace() -> None:
    """Draft, draft from the draft, drop both, go on with what the trunk found: the same states as never drafted."""
    model, ids = small_model(num_nextn_predict_layers=1), tokens(2, 12)
    hidden = model.model(ids, use_cache=False).last_hidden_state
    expected = drafted(model, hidden, ids, [12])[0]
    cache = LatentCache(model.config)
    module: Any = cache.layers[model.config.num_hidden_layers]
    for start in range(0, 11, 2):
        following = ids[:, start + 1 : start + 3]
        state = model.model.draft(hidden[:, start : start + following.shape[1]], following, cache)
        assert (state - expected[:, start : start + 2])[:, : following.shape[1]].abs().max() < CLOSE
        for _ in range(3):
            state = model.model.draft(state[:, -1:], model.lm_head(state[:, -1]).argmax(-1, keepdim=True), cache)
        module.crop(-3)


@torch.no_grad()
def test_draft_follows_the_trunks_cache() -> None:
    """As a decoder runs it: the prompt through both caches, then a token a step through both."""
    model, ids = small_model(num_nextn_predict_layers=1), tokens(2, 10)
    cache = LatentCache(model.config)
    whole = model(ids, output_mtp_logits=True, use_cache=False)
    hidden = model.model(ids[:, :6], past_key_values=cache).last_hidden_state
    logits = [model.lm_head(model.model.draft(hidden[:, :5], ids[:, 1:6], cache))]
    for step in range(6, 10):
        logits.append(model.lm_head(model.model.draft(hidden[:, -1:], ids[:, step : step + 1], cache)))
        hidden = model.model(ids[:, step : step + 1], past_key_values=cache).last_hidden_state
    assert (torch.cat(logits, dim=1) - whole.mtp_logits[0][:, :9]).abs().max() < 1e-4
    assert [layer.get_seq_length() for layer in cache.layers] == [10, 10, 10, 9]


def test_no_such_module() -> None:
    model = small_model(num_nextn_predict_layers=1)
    for depth in (0, 2):
        with pytest.raises(ValueError, match="the model has 1 MTP modules"):
            model.model.draft(torch.zeros(1, 1, 32), tokens(1, 1), LatentCache(model.config), depth=depth)


@pytest.mark.parametrize("ids", [[], [3, 3], [-1, 2], [VOCAB]])
def test_draft_tokens_that_are_none(ids: list[int]) -> None:
    model: Any = small_model(num_nextn_predict_layers=1)
    model.generation_config.draft_token_ids = ids
    with pytest.raises(ValueError, match="draft_token_ids must be different ids below the vocabulary's"):
        draft_head(model)


def test_the_draft_head_follows_the_head() -> None:
    """Made once; again when the head has changed in place, was replaced, or other tokens are asked for."""
    model: Any = small_model(num_nextn_predict_layers=1)
    assert draft_head(model) is None
    model.generation_config.draft_token_ids = [4, 2]
    first = draft_head(model)
    assert first is not None and draft_head(model) is first
    with torch.no_grad():
        model.lm_head.weight[2] = 7.0
    second = draft_head(model)
    assert second is not first and second is not None and (second.weight[0] == 7.0).all()
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCAB, bias=False)
    third = draft_head(model)
    assert third is not None and torch.equal(third.weight, model.lm_head.weight[[2, 4]])
    model.generation_config.draft_token_ids = [4, 2, 9]
    assert draft_head(model) is not third
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCAB, bias=True)
    assert draft_head(model) is None
