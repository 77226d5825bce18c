"""The compiled decode step against the plain layers, for any shape, batch, mask and format; its rows bit for bit."""

import copy
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import axk1.kernels
from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.kernels import dispatch, native
from axk1.kernels.dispatch import STEP_ROWS, STEP_TOKENS, is_prompt
from axk1.modeling.cache import LatentCache
from axk1.modeling.moe import AXK1Router
from axk1.quantized.formats import pack_int3, pack_int4

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def make_model(**fields: Any) -> AXK1ForCausalLM:
    config = AXK1Config.preset("nano", **{"num_hidden_layers": 3, "initializer_range": 0.1, **fields})
    torch.manual_seed(0)
    model = AXK1ForCausalLM(config).eval()
    for router in (module for module in model.modules() if isinstance(module, AXK1Router)):
        router.e_score_correction_bias.normal_(std=0.1)
    return model


def step(model: AXK1ForCausalLM, cache: LatentCache, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    """States of new tokens ``ids`` [B, T] behind ``cache``, behind the final norm; ``mask`` [B, S]."""
    trunk, seen = model.model, cache.get_seq_length()
    positions = torch.arange(seen, seen + ids.shape[1])[None]
    layers: Any = list(trunk.layers[: model.config.num_hidden_layers])
    with torch.no_grad():
        return trunk.whole_step(layers, trunk.norm, trunk.embed_tokens(ids), mask, positions, cache)


def prefilled(model: AXK1ForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> LatentCache:
    cache = LatentCache(model.config)
    with torch.no_grad():
        model.model(
            input_ids=ids, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None], past_key_values=cache
        )
    return cache


def plain(model: AXK1ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    with torch.no_grad():
        positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
        outputs = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return outputs.last_hidden_state[:, -tokens:]


MOST = 64
SHAPES: dict[str, dict[str, Any]] = {
    "nano": {},
    "softmax": {"scoring_func": "softmax", "topk_method": "group_limited_greedy"},
    "greedy": {"topk_method": "greedy", "norm_topk_prob": False},
    "odd widths": {
        "hidden_size": 72, "q_lora_rank": 40, "kv_lora_rank": 24, "qk_nope_head_dim": 12, "v_head_dim": 20,
        "qk_rope_head_dim": 6, "moe_intermediate_size": 40, "n_shared_experts": 0, "intermediate_size": 56,
    },
}  # fmt: skip
MODELS = {name: make_model(**fields) for name, fields in SHAPES.items()} if axk1.kernels.available() else {}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    batch=st.integers(1, 5),
    cached=st.integers(0, 150),
    most=st.sampled_from([1, 2, 6, MOST]),
    holes=st.floats(0, 0.4),
    seed=st.integers(0, 2**16),
)
def test_a_step_equals_the_plain_layers(shape, batch, cached, most, holes, seed):
    """One token a row, a few, or a short prompt with nothing before it."""
    model, generator = MODELS[shape], torch.Generator().manual_seed(seed)
    tokens = min(most, MOST // batch)
    ids = torch.randint(0, model.config.vocab_size, (batch, cached + tokens), generator=generator)
    mask = (torch.rand(batch, cached + tokens, generator=generator) >= holes).long()
    mask[:, -tokens:] = 1  # the new tokens, which see at least themselves
    cache = prefilled(model, ids[:, :cached], mask[:, :cached]) if cached else LatentCache(model.config)
    state = step(model, cache, ids[:, cached:], mask)
    assert state is not None
    expected = plain(model, ids, mask, tokens)
    torch.testing.assert_close(state, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [62, 126, 136])  # the first two pass a block of the running softmax
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_row_has_the_same_bits_alone_and_beside_others(shape, length):
    """What lets drafts be verified without changing an output: four tokens at once are four single steps."""
    model = MODELS[shape]
    ids = torch.randint(0, model.config.vocab_size, (1, length + 4), generator=torch.Generator().manual_seed(1))
    ones = torch.ones_like(ids)
    together = step(model, prefilled(model, ids[:, :length], ones[:, :length]), ids[:, length:], ones)
    cache = prefilled(model, ids[:, :length], ones[:, :length])
    singly = [step(model, cache, ids[:, i : i + 1], ones[:, : i + 1]) for i in range(length, length + 4)]
    assert together is not None
    assert torch.equal(together, torch.cat(singly, dim=1))  # pyright: ignore[reportArgumentType]
    cache = prefilled(model, ids[:, :length], ones[:, :length])
    for layer in cache.layers[: model.config.num_hidden_layers]:
        layer.batch_repeat_interleave(3)
    others = torch.randint(0, model.config.vocab_size, (2, 4), generator=torch.Generator().manual_seed(2))
    batch = step(model, cache, torch.cat([others, ids[:, length:]]), ones.expand(3, -1))
    assert batch is not None
    assert torch.equal(batch[2], together[0])


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4", "int3"])
def test_bf16_is_as_close_to_fp32_as_the_plain_layers_are(kind, tmp_path):
    """Also with quantised weights, whose activations are bfloat16 too; and its rows keep their bits there."""
    exact = MODELS["nano"]
    model = copy.deepcopy(exact).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    if kind != "bfloat16":
        exact.save_pretrained(tmp_path / "source")
        quantize_checkpoint(tmp_path / "source", tmp_path / kind, kind)
        exact = AXK1ForCausalLM.from_pretrained(tmp_path / kind, dtype="float32").eval()
        model = AXK1ForCausalLM.from_pretrained(tmp_path / kind, dtype="bfloat16").eval()
    ours, theirs = [], []
    for seed in range(5):
        ids = torch.randint(0, model.config.vocab_size, (2, 80), generator=torch.Generator().manual_seed(seed))
        ones = torch.ones_like(ids)
        truth = plain(exact, ids, ones, 2)
        cache = prefilled(model, ids[:, :78], ones[:, :78])
        state = step(model, cache, ids[:, 78:], ones)
        assert state is not None
        ours.append((state.float() - truth).abs().mean(-1))
        theirs.append((plain(model, ids, ones, 2).float() - truth).abs().mean(-1))
        cache = prefilled(model, ids[:, :78], ones[:, :78])
        singly = [step(model, cache, ids[:, i : i + 1], ones[:, : i + 1]) for i in (78, 79)]
        assert torch.equal(state, torch.cat(singly, dim=1))  # pyright: ignore[reportArgumentType]
    shape = (STEP_ROWS // STEP_TOKENS, STEP_TOKENS)  # so many that weights are read in tiles
    ids = torch.randint(0, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(9))
    ones = torch.ones_like(ids)
    whole, cache = step(model, LatentCache(model.config), ids, ones), LatentCache(model.config)
    singly = [step(model, cache, ids[:, i : i + 1], ones[:, : i + 1]) for i in range(STEP_TOKENS)]
    assert whole is not None and torch.equal(whole, torch.cat(singly, dim=1))  # pyright: ignore[reportArgumentType]
    # the median token: where the choice of experts is a near-tie, either may take the other one
    assert torch.cat(ours).median() <= 1.1 * torch.cat(theirs).median()


EVERY_EXPERT = {"n_routed_experts": 8, "num_experts_per_tok": 8, "n_group": 2, "topk_group": 2}
PROMPT_SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"num_hidden_layers": 1},
    "experts": EVERY_EXPERT,  # all are chosen: no choice of a near-tie can differ
    "odd widths": {**SHAPES["odd widths"], **EVERY_EXPERT, "num_attention_heads": 3, "hidden_size": 73,
                   "q_lora_rank": 41, "kv_lora_rank": 25, "qk_nope_head_dim": 13, "v_head_dim": 21,
                   "moe_intermediate_size": 39, "intermediate_size": 57},
    "several panels": {"num_hidden_layers": 1, "hidden_size": 4136, "num_attention_heads": 1, "intermediate_size": 24},
    "heads in groups": {"num_hidden_layers": 1, "num_attention_heads": 200, "qk_nope_head_dim": 128, "v_head_dim": 128},
}  # fmt: skip
PROMPTS: dict[str, AXK1ForCausalLM] = {}


def prompt_model(shape: str) -> AXK1ForCausalLM:
    """In bfloat16."""
    if shape not in PROMPTS:
        PROMPTS[shape] = make_model(**PROMPT_SHAPES[shape]).to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        PROMPTS[shape].set_experts_implementation("eager")  # PyTorch's grouped product takes even widths only
    return PROMPTS[shape]


def errors_of_a_prompt(
    model: AXK1ForCausalLM, exact: AXK1ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances to fp32 of the last ``tokens`` columns that nothing hides: the kernels', and PyTorch's in bfloat16."""
    past = ids.shape[1] - tokens
    cache = prefilled(model, ids[:, :past], mask[:, :past]) if past else LatentCache(model.config)
    state = step(model, cache, ids[:, past:], mask)
    assert state is not None and state.isfinite().all()
    seen, truth = mask[:, past:].bool(), plain(exact, ids, mask, tokens)
    ours, theirs = ((states.float() - truth)[seen].abs() for states in (state, plain(model, ids, mask, tokens)))
    return ours, theirs


@pytest.fixture
def reads_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts by their own path however few tokens they are and however long what is before them."""
    monkeypatch.setattr(dispatch, "is_prompt", lambda *given: given[2] > STEP_TOKENS or is_prompt(*given))


@pytest.mark.usefixtures("reads_prompts")
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from(["dense", "experts", "odd widths"]),
    batch=st.integers(1, 3),
    past=st.sampled_from([0, 0, 1, 60, 193, 300]),
    tokens=st.integers(STEP_TOKENS + 1, 260),
    holes=st.sampled_from([0.0, 0.3]),
    padding=st.sampled_from([0, 5, 200]),
    seed=st.integers(0, 2**16),
)
def test_a_prompt_is_closer_to_fp32_than_the_plain_layers(shape, batch, past, tokens, holes, padding, seed):
    """Sums and all between products are fp32's here: any width, number of tokens, batch, holes, and any past; also
    where a whole block of keys is padding."""
    model, generator = prompt_model(shape), torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (batch, past + tokens), generator=generator)
    mask = (torch.rand(ids.shape, generator=generator) >= holes).long()
    mask[:, -9:] = 1
    mask[-1, : min(padding, past + tokens - 9)] = 0
    ours, theirs = errors_of_a_prompt(model, copy.deepcopy(model).float(), ids, mask, tokens)
    assert ours.mean() <= theirs.mean() and ours.max() <= 1.5 * theirs.max()


@pytest.mark.usefixtures("reads_prompts")
@pytest.mark.parametrize(("shape", "tokens"), [("several panels", 40), ("heads in groups", 700)])
def test_prompts_of_large_models(shape, tokens):
    """Wider than a panel is deep; with keys and values of all heads beyond what is expanded at a time."""
    model = prompt_model(shape)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(5))
    ours, theirs = errors_of_a_prompt(model, copy.deepcopy(model).float(), ids, torch.ones_like(ids), tokens)
    assert ours.mean() <= theirs.mean() and ours.max() <= 1.5 * theirs.max()


@pytest.mark.usefixtures("reads_prompts")
@pytest.mark.parametrize("kind", ["int8", "int4", "int3"])
def test_prompts_with_quantised_weights(kind, tmp_path):
    """They are rounded to bfloat16 once their scale is on them, and activations to nothing less."""
    make_model(**EVERY_EXPERT).save_pretrained(tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", tmp_path / kind, kind)
    model = AXK1ForCausalLM.from_pretrained(tmp_path / kind, dtype="bfloat16").eval()
    exact = AXK1ForCausalLM.from_pretrained(tmp_path / kind, dtype="float32").eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(6))
    ours, theirs = errors_of_a_prompt(model, exact, ids, torch.ones_like(ids), 110)
    assert ours.mean() <= theirs.mean() and ours.max() <= 1.5 * theirs.max()


@pytest.mark.usefixtures("reads_prompts")
@torch.no_grad()
def test_a_long_prompt_runs_in_pieces(monkeypatch):
    """Each behind the ones before it, and with any number of threads to the same bits."""
    model = prompt_model("experts")
    ids = torch.randint(0, model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(7))
    ones, whole = torch.ones_like(ids), LatentCache(model.config)
    states = step(model, whole, ids, ones)
    assert states is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = step(model, LatentCache(model.config), ids, ones)
    finally:
        torch.set_num_threads(threads)
    assert again is not None and torch.equal(again, states)
    monkeypatch.setattr(dispatch, "PROMPT_TOKENS", 2 * 60)
    pieces = LatentCache(model.config)
    found = step(model, pieces, ids, ones)
    assert found is not None and torch.equal(found, states)
    assert torch.equal(pieces.layers[2].joint, whole.layers[2].joint)


def test_what_is_read_as_a_prompt():
    """By the number of tokens, and by the cost of either attention."""
    config = AXK1Config()
    assert not any(is_prompt(config, *given) for given in [(1, 1, 5000), (4, STEP_TOKENS, 5000), (128, 1, 1)])
    assert is_prompt(config, 129, 1, 1) and is_prompt(config, 5, STEP_TOKENS, STEP_TOKENS)
    assert is_prompt(config, 1, STEP_TOKENS + 1, STEP_TOKENS + 1) and is_prompt(config, 9, 500, 500)
    assert not is_prompt(config, 1, STEP_TOKENS + 1, 100_000), "absorbed attention is cheaper after a long context"


PACK = {"int4": pack_int4, "int3": pack_int3}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 4),
    group=st.sampled_from([32, 64, 128]),
    kind=st.sampled_from(["float32", "bfloat16", "int8", "int4", "int3"]),
    odd=st.integers(0, 31),
    exact=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_linear_in_every_format(rows, outputs, groups, group, kind, odd, exact, seed):
    """Exactly in fp32; otherwise, where the processor has instructions for it, with inputs rounded to bfloat16 beside
    bfloat16 weights, and to 16 bits beside quantised ones."""
    generator, width = torch.Generator().manual_seed(seed), groups * group - (0 if kind in PACK else odd)
    x = torch.randn(rows, width, generator=generator)
    scale: torch.Tensor | None = None
    if kind in PACK:
        most = 8 if kind == "int4" else 4
        values = torch.randint(-most, most, (outputs, width), generator=generator)
        weight = PACK[kind](values)
        scale = torch.rand(outputs, groups, generator=generator) - 0.3  # int3 has negative ones, too
        dense = values * scale.repeat_interleave(group, dim=1)
    elif kind == "int8":
        weight = torch.randint(-127, 128, (outputs, width), generator=generator, dtype=torch.int8)
        scale = torch.rand(outputs, 1, generator=generator)
        dense = weight * scale
    else:
        weight = torch.randn(outputs, width, generator=generator).to(getattr(torch, kind))
        dense = weight
    out = native.linear(x, weight, scale, exact)
    scales = (x.abs().double() @ dense.double().abs().T).max()
    rounding = 1e-5 if exact or kind in ("float32", "bfloat16") else 5e-5
    inputs = [x] if exact or kind != "bfloat16" else [x, x.bfloat16()]
    errors = [(out - values.double() @ dense.double().T).abs().max() / scales for values in inputs]
    assert min(errors) <= rounding
    assert torch.equal(out[:1], native.linear(x[:1], weight, scale, exact))


@torch.no_grad()
def test_the_head_of_a_step(monkeypatch):
    """The kernels' after a cache of ours; the module where there is none, and where somebody listens in."""
    model, ran = make_model(num_hidden_layers=1), []
    monkeypatch.setattr(native, "linear", lambda *given, run=native.linear, **how: ran.append(1) or run(*given, **how))
    states, cache = torch.randn(2, 3, model.config.hidden_size), LatentCache(model.config)
    expected = model.lm_head(states)
    assert torch.equal(model.logits(states, None), expected) and not ran
    torch.testing.assert_close(model.logits(states, cache), expected, atol=1e-5, rtol=1e-5)
    assert len(ran) == 1
    handle = model.lm_head.register_forward_hook(lambda *given: 2 * expected)
    assert torch.equal(model.logits(states, cache), 2 * expected) and len(ran) == 1
    handle.remove()
    with torch.enable_grad():
        assert torch.equal(model.logits(states, cache), expected) and len(ran) == 1


@pytest.mark.parametrize("kind", ["int8", "int4", "int3"])
def test_quantised_layers(kind, tmp_path):
    """On the stored values themselves, as the modules of ``axk1.quantized`` compute with them."""
    MODELS["nano"].save_pretrained(tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", tmp_path / kind, kind)
    model = AXK1ForCausalLM.from_pretrained(tmp_path / kind, dtype="float32").eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(3))
    ones = torch.ones_like(ids)
    state = step(model, prefilled(model, ids[:, :57], ones[:, :57]), ids[:, 57:], ones)
    assert state is not None
    torch.testing.assert_close(state, plain(model, ids, ones, 3), atol=5e-5, rtol=1e-4)


def test_what_it_cannot_run_it_declines():
    ids, ones = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    for break_it in (
        lambda m: setattr(m.model.layers[1].self_attn, "o_proj", nn.Identity()),
        lambda m: setattr(m.model.layers[0].mlp.up_proj, "bias", nn.Parameter(torch.zeros(1))),
        lambda m: setattr(m.model.layers[1].mlp.experts, "_hf_hook", object()),
        lambda m: m.model.layers[2].self_attn.register_forward_hook(lambda module, inputs, output: None),
        lambda m: m.half(),
    ):
        model = copy.deepcopy(MODELS["nano"])
        assert step(model, LatentCache(model.config), ids, ones) is not None
        break_it(model)
        assert step(model, LatentCache(model.config), ids, ones) is None


def test_the_environment_turns_it_off():
    code = "import axk1.kernels; print(axk1.kernels.available())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"AXK1_KERNELS": "0"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_failed_build_leaves_the_plain_path(tmp_path):
    code = "import axk1.kernels; print(axk1.kernels.available())"
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    compiler.chmod(0o755)
    env = os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "no such flag" in done.stderr
