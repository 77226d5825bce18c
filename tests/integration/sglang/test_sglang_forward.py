"""SGLang's modules on a CPU in fp32 against ours: parts, whole layers through the latent cache, model and draft."""

# pyright: reportMissingImports=false
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_checkpoints import NANO, write_pair
from test_sglang_weights import ours
from tiny import ROPES

CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=2e-5)
SHAPES: dict[str, dict[str, Any]] = {
    "yarn": {},
    "yarn with a softmax scale": {"rope_parameters": dict(ROPES[1])},
    "default rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope in halves": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_interleave": False},
    "two shared experts, weights not normalised": {"n_shared_experts": 2, "norm_topk_prob": False},
    "experts everywhere": {"mlp_layer_types": ["sparse"] * 3},
}


@pytest.fixture(scope="module")
def pair(engine, checkpoints: dict[str, Path]) -> tuple[Any, Any]:
    """The random model in SGLang and ours."""
    return engine.load(checkpoints["released"]), ours(checkpoints["released"])


def hidden(model: Any, tokens: int = 40) -> torch.Tensor:
    return torch.randn(tokens, model.config.hidden_size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_norm_and_dense_mlp(pair: tuple[Any, Any]):
    theirs, model = pair
    x = hidden(model)
    torch.testing.assert_close(theirs.model.norm(x), model.model.norm(x), **CLOSE)
    torch.testing.assert_close(theirs.model.layers[0].mlp(x), model.model.layers[0].mlp(x), **CLOSE)


@torch.no_grad()
def test_router_chooses_the_same_experts(pair: tuple[Any, Any]):
    theirs, model = pair[0].model.layers[1].mlp, pair[1].model.layers[1].mlp
    x = hidden(pair[1], tokens=200)
    chosen = theirs.topk(x, theirs.gate(x))
    routing = model.gate(x)
    ids, order = chosen.topk_ids.long().sort(dim=-1)
    expected, expected_order = routing.indices.sort(dim=-1)
    assert torch.equal(ids, expected)
    weights = chosen.topk_weights.gather(1, order) * pair[1].config.routed_scaling_factor
    torch.testing.assert_close(weights, routing.weights.gather(1, expected_order), **CLOSE)


@torch.no_grad()
def test_moe_block(pair: tuple[Any, Any]):
    """Routed experts, scaled, plus the shared one; the norm is the layer's."""
    theirs, model = pair
    x = hidden(model)
    expected = model.model.layers[1].mlp(x[None])[0]
    torch.testing.assert_close(theirs.model.layers[1].mlp(x.clone()), expected, **CLOSE)


def tokens(model: Any, count: int) -> torch.Tensor:
    return torch.randint(2, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(2))


def assert_same_states(engine: Any, theirs: Any, model: Any) -> None:
    """Prefill, a second prefill behind it, then single tokens, through the cache, against one pass of ours."""
    ids = tokens(model, 24)
    with torch.no_grad():
        expected = model.model(ids[None]).last_hidden_state[0]
    session = engine.Session(theirs, model.config.num_hidden_layers)
    steps = (15, 5, 1, 1, 1, 1)
    states = torch.cat([session.forward(part) for part in ids.split(steps)])
    torch.testing.assert_close(states, expected, **CLOSE)
    with torch.no_grad():
        log_probabilities = model.lm_head(expected).log_softmax(-1)
    torch.testing.assert_close(session.logits(states).log_softmax(-1), log_probabilities, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_random_models_give_the_same_states_and_log_probabilities(engine, tmp_path: Path, shape: str):
    folder = write_pair(tmp_path, **SHAPES[shape])["per_expert"]
    assert_same_states(engine, engine.load(folder), ours(folder))


def test_the_nano_gives_the_same_states_and_log_probabilities(engine):
    assert_same_states(engine, engine.load(NANO), ours(NANO))


def test_the_latent_cache_holds_one_latent_and_one_rotary_key_a_token(engine):
    session = engine.Session(engine.load(NANO), 5)
    session.forward(torch.arange(2, 9))
    buffer = session.cache.get_key_buffer(2)
    assert buffer.shape[1:] == (1, 512 + 64)
    assert buffer[1:8].any(dim=-1).all() and not buffer[8:].any()


@pytest.mark.parametrize("which", ["nano", "random"])
def test_the_draft_sees_what_our_module_sees(
    engine, checkpoints: dict[str, Path], which: str, monkeypatch: pytest.MonkeyPatch
):
    """States after the trunk's final norm, token i + 1, positions from 0, and the module's own latent cache."""
    folder = NANO if which == "nano" else checkpoints["released"]
    model, draft = ours(folder), engine.load(folder, is_draft_model=True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    draft.set_embed_and_head(*engine.load(folder).get_embed_and_head())  # as SGLang's speculation does
    ids = tokens(model, 16)
    with torch.no_grad():
        states = model.model(ids[None, :-1]).last_hidden_state[0]
        expected = our_draft(model, states, ids[1:])
    session = engine.Session(draft, 1)
    drafted = [session.forward(ids[1:12], states[:11])]
    drafted += [session.forward(ids[i + 1 : i + 2], states[i : i + 1]) for i in range(11, 15)]
    torch.testing.assert_close(torch.cat(drafted), expected, **CLOSE)


def our_draft(model: Any, states: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Our MTP module's states, ``[tokens, hidden]``, of trunk states and the tokens that follow them."""
    trunk = model.model
    embeddings = trunk.embed_tokens(following)[None]
    positions = torch.arange(len(following))[None]
    rotary = trunk.rotary_emb(embeddings, positions)
    mask = torch.full((len(following), len(following)), float("-inf")).triu(1)[None, None]
    return trunk.mtp_layers[0](states[None], embeddings, position_embeddings=rotary, attention_mask=mask)[0]
