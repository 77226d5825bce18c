"""The router against a plain Python reference, and the experts against a loop over tokens."""

import copy
import itertools
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ROUTINGS, small_model, tokens
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from axk1 import AXK1Config
from axk1.kernels.dispatch import EXPERTS
from axk1.kernels.experts import one_by_one
from axk1.modeling.moe import AXK1Experts, AXK1MoE, AXK1Router


def make_config(**fields: Any) -> AXK1Config:
    return AXK1Config(vocab_size=8, hidden_size=16, num_attention_heads=1, moe_intermediate_size=8, **fields)


def reference_route(
    logits: list[float], bias: list[float], config: AXK1Config
) -> tuple[dict[int, float], list[float], list[float]]:
    """Weights by expert, then the scores that decided between experts and between groups. Plain Python, no torch."""
    if config.scoring_func == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        total = sum(math.exp(x) for x in logits)
        scores = [math.exp(x) / total for x in logits]
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(logits) // config.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.n_group)]
    counted = {"noaux_tc": 2, "group_limited_greedy": 1, "greedy": 0}[config.topk_method]
    group_scores = [sum(sorted((choice[e] for e in group), reverse=True)[:counted]) for group in groups]
    kept = sorted(range(config.n_group), key=lambda g: -group_scores[g])[: config.topk_group]
    allowed = range(len(logits)) if counted == 0 else [e for g in kept for e in groups[g]]
    chosen = sorted(allowed, key=lambda e: -choice[e])[: config.num_experts_per_tok]
    divisor = sum(scores[e] for e in chosen) + 1e-20 if config.norm_topk_prob else 1.0
    weights = {e: scores[e] / divisor * config.routed_scaling_factor for e in chosen}
    return weights, [choice[e] for e in allowed], group_scores


def tied(values: list[float]) -> bool:
    return any(abs(a - b) < 1e-5 for a, b in itertools.combinations(values, 2))


def route(router: AXK1Router, logits: torch.Tensor) -> Any:
    """The router's decision for these very logits: hidden states are their coordinates under an identity weight."""
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, : logits.shape[1]] = torch.eye(logits.shape[1])
    return router(logits)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    routing=st.sampled_from(ROUTINGS),
    scoring=st.sampled_from(["sigmoid", "softmax"]),
    method=st.sampled_from(["noaux_tc", "group_limited_greedy", "greedy"]),
    normalised=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 2**32),
)
def test_router_equals_plain_reference(
    routing: tuple[int, ...], scoring: str, method: str, normalised: bool, scale: float, seed: int
) -> None:
    experts, groups, kept, chosen = routing
    config = make_config(
        n_routed_experts=experts,
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=chosen,
        scoring_func=scoring,
        topk_method=method,
        norm_topk_prob=normalised,
        routed_scaling_factor=scale,
    )
    config.hidden_size = experts
    rng = random.Random(seed)
    logits = [[rng.uniform(-3, 3) for _ in range(experts)] for _ in range(5)]
    bias = [rng.choice([0.0, 1.0]) * rng.uniform(-0.5, 0.5) for _ in range(experts)]
    router = AXK1Router(config)
    router.e_score_correction_bias.copy_(torch.tensor(bias))
    routing_ = route(router, torch.tensor(logits))
    assert routing_.indices.shape == routing_.weights.shape == (5, chosen)
    assert routing_.logits.dtype == routing_.weights.dtype == torch.float32
    for row, indices, weights in zip(logits, routing_.indices.tolist(), routing_.weights.tolist(), strict=True):
        expected, expert_scores, group_scores = reference_route(row, bias, config)
        if tied(expert_scores) or (method != "greedy" and tied(group_scores)):
            continue  # either order is right
        assert set(indices) == set(expected) and len(set(indices)) == chosen
        for expert, weight in zip(indices, weights, strict=True):
            assert weight == pytest.approx(expected[expert], rel=1e-5)


def test_methods_disagree_where_they_should() -> None:
    """One row on which top-2 sums, group maxima and no groups at all choose different experts."""
    logits = torch.tensor([[3.0, -3.0, 1.0, 1.0, 2.0, -2.0]])  # groups (0 1), (2 3), (4 5)
    chosen = {}
    for method in ("noaux_tc", "group_limited_greedy", "greedy"):
        config = make_config(
            n_routed_experts=6, n_group=3, topk_group=1, num_experts_per_tok=2, topk_method=method, norm_topk_prob=False
        )
        config.hidden_size = 6
        chosen[method] = set(route(AXK1Router(config), logits).indices[0].tolist())
    assert chosen == {"noaux_tc": {2, 3}, "group_limited_greedy": {0, 1}, "greedy": {0, 4}}


def test_bias_changes_the_choice_and_not_the_weights() -> None:
    config = make_config(n_routed_experts=8, n_group=4, topk_group=4, num_experts_per_tok=2)
    config.hidden_size = 8
    router, logits = AXK1Router(config), torch.linspace(-1, 1, 8)[None]
    before = route(router, logits)
    assert set(before.indices[0].tolist()) == {6, 7}
    router.e_score_correction_bias[0] = 5.0
    after = route(router, logits)
    assert set(after.indices[0].tolist()) == {0, 7}
    scores = logits.sigmoid()[0]
    expected = 2.5 * scores[after.indices[0]] / scores[[0, 7]].sum()
    assert torch.allclose(after.weights[0], expected)


def test_router_computes_in_fp32_whatever_the_model_or_autocast() -> None:
    torch.manual_seed(0)
    router = AXK1Router(make_config(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2))
    torch.nn.init.normal_(router.weight)
    x = torch.randn(5, 16).bfloat16()
    exact = torch.nn.functional.linear(x.float(), router.weight.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router.bfloat16()(x)
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.logits, exact)


def test_gradient_reaches_the_router_through_the_weights_only() -> None:
    router = AXK1Router(make_config(n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2))
    torch.nn.init.normal_(router.weight)
    routing = router(torch.randn(2, 16))
    (routing.weights * torch.randn(2, 2)).sum().backward()
    used = routing.indices.unique()
    unused = torch.tensor([e for e in range(8) if e not in used], dtype=torch.long)
    assert len(unused) > 0
    assert router.weight.grad is not None and router.weight.grad[used].abs().sum() > 0
    assert router.weight.grad[unused].abs().sum() == 0


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_equal_a_loop_over_tokens(implementation: str) -> None:
    """Gate rows come first; an expert that nobody chose adds nothing; every implementation agrees, gradients too."""
    torch.manual_seed(0)
    config = make_config(n_routed_experts=6, n_group=1, topk_group=1, num_experts_per_tok=2)
    config._experts_implementation = implementation
    experts: Any = AXK1Experts(config)
    torch.nn.init.normal_(experts.gate_up_proj)
    torch.nn.init.normal_(experts.down_proj)
    x = torch.randn(5, 16, requires_grad=True)
    indices = torch.tensor([[0, 1], [1, 0], [5, 1], [2, 5], [0, 2]])  # 3 and 4 stay idle
    weights = torch.rand(5, 2)
    expected = torch.zeros(5, 16)
    for t in range(5):
        for slot in range(2):
            e = int(indices[t, slot])
            gate, up = experts.gate_up_proj[e, :8] @ x[t], experts.gate_up_proj[e, 8:] @ x[t]
            expected[t] = expected[t] + weights[t, slot] * (experts.down_proj[e] @ (gate * gate.sigmoid() * up))
    output = experts(x, indices, weights)
    assert torch.allclose(output, expected, atol=1e-4)
    parameters = (experts.gate_up_proj, experts.down_proj, x)
    probe = torch.randn(5, 16)
    wanted = torch.autograd.grad((expected * probe).sum(), parameters)
    found = torch.autograd.grad((output * probe).sum(), parameters)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 200),
    experts=st.sampled_from([4, 12, 64]),
    chosen=st.integers(1, 4),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**16),
)
@torch.no_grad()
def test_a_prompts_experts_are_as_close_to_fp32_as_transformers_are(
    tokens: int, experts: int, chosen: int, dtype: torch.dtype, seed: int
) -> None:
    """What runs in place of ``grouped_mm`` in 16 bits; some experts have no token."""
    torch.manual_seed(seed)
    config = make_config(n_routed_experts=experts, n_group=1, topk_group=1, num_experts_per_tok=chosen)
    config._experts_implementation = "grouped_mm"
    stacks: Any = AXK1Experts(config)
    torch.nn.init.normal_(stacks.gate_up_proj, std=0.3)
    torch.nn.init.normal_(stacks.down_proj, std=0.3)
    stacks = stacks.to(dtype)
    x, weights = torch.randn(tokens, 16, dtype=dtype), torch.rand(tokens, chosen)
    indices = torch.rand(tokens, experts).topk(chosen).indices
    ours, theirs = one_by_one(stacks, x, indices, weights), stacks(x, indices, weights)
    exact = one_by_one(stacks.float(), x.float(), indices, weights)
    assert ours.dtype == dtype
    error, reference = ((found.float() - exact).square().mean().sqrt() for found in (ours, theirs))
    assert error <= 1.2 * reference + torch.finfo(dtype).eps * exact.square().mean().sqrt() / 2


WAYS = ["batched_mm", "grouped_mm"]


def ways_run(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chosen: str | None) -> list[str]:
    """Which of the interface's functions a prompt runs."""
    model, ran = small_model().to(dtype), []
    if chosen:
        model.set_experts_implementation(chosen)
    for way in WAYS:
        function = ALL_EXPERTS_FUNCTIONS[way]
        spy = lambda *args, way=way, function=function, **kwargs: ran.append(way) or function(*args, **kwargs)  # noqa: E731
        monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, way, spy)
    with torch.no_grad():
        model(tokens(1, 5), use_cache=False)
    return sorted(set(ran))


def test_default_path_has_no_loop_over_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert small_model().config._experts_implementation == EXPERTS
    assert ways_run(monkeypatch, torch.float32, None) == ["grouped_mm"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chosen", [*WAYS, None])
def test_a_chosen_way_is_what_runs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chosen: str | None) -> None:
    """In 16 bits on the CPU the default takes the loop; a way asked for by name is never replaced."""
    assert ways_run(monkeypatch, dtype, chosen) == ([chosen] if chosen else [])


def test_experts_of_other_ranks_add_nothing() -> None:
    """Under expert parallelism a rank numbers its experts from 0, and all higher indices are other ranks'."""
    torch.manual_seed(0)
    config = make_config(n_routed_experts=6, n_group=1, topk_group=1, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    whole: Any = AXK1Experts(config)
    torch.nn.init.normal_(whole.gate_up_proj)
    torch.nn.init.normal_(whole.down_proj)
    x, weights = torch.randn(7, 16), torch.rand(7, 2)
    indices = torch.rand(7, 6).topk(2).indices
    expected = whole(x, indices, weights * (indices < 4))
    part: Any = copy.deepcopy(whole)
    part.num_experts = 4
    part.gate_up_proj, part.down_proj = (torch.nn.Parameter(w[:4]) for w in (whole.gate_up_proj, whole.down_proj))
    assert torch.allclose(part(x, indices.clamp(max=4), weights), expected, atol=1e-6)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_block_adds_routed_and_shared_experts(shared: int) -> None:
    torch.manual_seed(0)
    config = make_config(n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, n_shared_experts=shared)
    block, x = AXK1MoE(config), torch.randn(2, 3, 16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    routing = block.gate(x)
    routed = block.experts(x.reshape(6, 16), routing.indices, routing.weights).view(2, 3, 16)
    if shared:
        assert block.shared_experts is not None and block.shared_experts.gate_proj.weight.shape == (8 * shared, 16)
        routed = routed + block.shared_experts(x)
    assert torch.allclose(block(x), routed, atol=1e-5)


def test_post_mlp_norm_sees_the_complete_sum_before_the_residual() -> None:
    """``x + norm(routed x 2.5 + shared)``: recomputed from the layer's parts, with a norm weight that is not 1."""
    model = small_model()
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]
    layer.post_attention_layernorm.register_forward_hook(lambda m, args, out: seen.update(residual=args[0], normed=out))
    layer.register_forward_hook(lambda m, args, out: seen.update(output=out))
    model(tokens(1, 7))
    total = layer.mlp(seen["normed"])
    rms = (total.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    expected = seen["residual"] + layer.post_mlp_layernorm.weight * (total * rms)
    assert torch.allclose(seen["output"], expected, atol=1e-5)


def test_dense_layers_keep_an_unused_frozen_norm() -> None:
    model, ids = small_model(), tokens(1, 5)
    norm = model.model.layers[0].post_mlp_layernorm.weight
    assert "model.layers.0.post_mlp_layernorm.weight" in model.state_dict()
    assert not norm.requires_grad and model.model.layers[1].post_mlp_layernorm.weight.requires_grad
    before = model(ids).logits
    norm.fill_(100.0)
    assert torch.equal(before, model(ids).logits)
