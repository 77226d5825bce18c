"""Router statistics, the auxiliary-loss-free bias update and the sequence-wise balance loss."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import pack_rows, pad_rows, small_model, tokens

from axk1 import AXK1Config
from axk1.modeling.moe import AXK1Router
from axk1.modeling.objectives import sequence_balance_loss, tokens_per_expert

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_:FutureWarning")  # renamed in 5.23


def plain_balance_loss(scores: list, indices: list, mask: list, experts: int, k: int) -> float:
    """DeepSeek-V3, equations 17-20 without alpha, written out; the mean over sequences."""
    per_sequence = []
    for score, index, real in zip(scores, indices, mask, strict=True):
        steps = [t for t, m in enumerate(real) if m]
        length, loss = max(len(steps), 1), 0.0
        for i in range(experts):
            f_i = experts / (k * length) * sum(i in index[t] for t in steps)
            p_i = sum(score[t][i] / sum(score[t]) for t in steps) / length
            loss += f_i * p_i
        per_sequence.append(loss)
    return sum(per_sequence) / len(per_sequence)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    sizes=st.sampled_from([(4, 1), (6, 2), (8, 8)]),
    seed=st.integers(0, 10_000),
    padded=st.booleans(),
)
def test_balance_loss_equals_the_equations(
    batch: int, length: int, sizes: tuple[int, int], seed: int, padded: bool
) -> None:
    experts, k = sizes
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, length, experts, generator=generator)
    indices = scores.topk(k, dim=-1).indices
    mask = torch.randint(0, 2, (batch, length), generator=generator) if padded else torch.ones(batch, length)
    config = AXK1Config(
        vocab_size=8, n_routed_experts=experts, n_group=1, topk_group=1, num_experts_per_tok=k, num_hidden_layers=1
    )
    loss = sequence_balance_loss(scores, indices, mask, config)
    expected = plain_balance_loss(scores.tolist(), indices.tolist(), mask.tolist(), experts, k)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_balance_loss_is_one_when_even_and_pushes_down_the_overused() -> None:
    config = AXK1Config(vocab_size=8, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=1)
    even = torch.full((1, 4, 4), 0.5)
    assert sequence_balance_loss(even, torch.arange(4).view(1, 4, 1), torch.ones(1, 4), config).item() == 1.0
    logits = torch.zeros(1, 4, 4, requires_grad=True)
    loss = sequence_balance_loss(logits.sigmoid(), torch.zeros(1, 4, 1, dtype=torch.long), torch.ones(1, 4), config)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1:] < 0).all()


def test_counts_ignore_masked_tokens_and_stay_exact() -> None:
    indices = torch.tensor([[0, 1], [1, 2], [1, 3]])
    counts = tokens_per_expert(indices, torch.tensor([1, 1, 0]), 5)
    assert counts.tolist() == [1, 2, 1, 0, 0] and counts.dtype == torch.int64


def training_model(**overrides: Any) -> Any:
    return small_model(num_nextn_predict_layers=1, router_bias_update_rate=0.01, **overrides).train()


def routers(model: Any) -> list[AXK1Router]:
    return [m for m in model.modules() if isinstance(m, AXK1Router)]


def brute_counts(model: Any, **inputs: Any) -> list[list[int]]:
    """Counts of every router from the indices it returned, token by token."""
    output = model(output_router_logits=True, **inputs)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).flatten().tolist()
    counts = []
    for indices in output.router_indices:
        row = [0] * model.config.n_routed_experts
        for experts, real in zip(indices.tolist(), mask, strict=True):
            for expert in experts:
                row[expert] += real
        counts.append(row)
    return counts


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("layout", ["whole", "padded", "packed"])
def test_statistics_are_exact(checkpointing: bool | None, layout: str) -> None:
    """Every real token counted once a layer, two MoE layers and the MTP module, also when layers run twice."""
    model, ids = training_model(), tokens(2, 9)
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if layout == "padded":
        padded, mask = pad_rows([tokens(1, 4)[0], tokens(1, 9)[0]], "left")
        inputs = {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)}
    if layout == "packed":
        packed, positions = pack_rows([tokens(1, 4)[0], tokens(1, 9)[0]])
        inputs = {"input_ids": packed, "position_ids": positions, "labels": packed}
    expected = brute_counts(model.eval(), **inputs)
    assert all(router.tokens_per_expert.sum() == 0 for router in routers(model)), "evaluation must not count"
    model.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    for _ in range(2):  # two micro-batches
        model(**inputs).loss.backward()
    found = [router.tokens_per_expert.tolist() for router in routers(model)]
    assert found == [[2 * count for count in row] for row in expected]
    assert len(found) == 3
    real = int(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum())
    assert all(sum(row) == 2 * real * model.config.num_experts_per_tok for row in found)


def test_counts_survive_bf16() -> None:
    """Exact beyond 256, up to which bf16 can count."""
    model = training_model().to(torch.bfloat16)
    expected = torch.zeros(3, 8, dtype=torch.long)
    for seed in range(6):
        output = model(tokens(4, 61, seed), labels=tokens(4, 61, seed), output_router_logits=True)
        expected += torch.stack([indices.flatten().bincount(minlength=8) for indices in output.router_indices])
    assert expected.max() > 512
    assert [router.tokens_per_expert.tolist() for router in routers(model)] == expected.tolist()


def test_bias_update_moves_by_the_rate_and_clears() -> None:
    model = training_model()
    for router in routers(model):
        router.tokens_per_expert.copy_(torch.tensor([0, 8, 4, 4, 4, 4, 8, 0]))
        router.e_score_correction_bias.zero_()
    model.update_router_biases()
    for router in routers(model):
        rate = 0.01
        assert router.e_score_correction_bias.tolist() == pytest.approx([rate, -rate, 0, 0, 0, 0, -rate, rate])
        assert router.tokens_per_expert.sum() == 0
    model.update_router_biases(rate=0.5)
    assert routers(model)[0].e_score_correction_bias[0].item() == pytest.approx(0.01), "no counts, no movement"


def test_bias_update_evens_out_the_loads() -> None:
    """A router that prefers two experts, on random tokens: 200 updates bring the busiest expert near the mean."""
    torch.manual_seed(0)
    config = AXK1Config(
        vocab_size=8, hidden_size=16, n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=2
    )
    router = AXK1Router(config)
    torch.nn.init.normal_(router.weight, std=0.3)
    x = torch.randn(512, 16)
    x[:, 0] = 2.0  # a direction that all tokens share
    with torch.no_grad():
        router.weight[:2, 0] += 1.0

    def violation() -> float:
        counts = tokens_per_expert(router(x).indices, torch.ones(512), 8).float()
        return (counts.max() / counts.mean() - 1).item()

    before = violation()
    for _ in range(200):
        router.tokens_per_expert += tokens_per_expert(router(x).indices, torch.ones(512), 8)
        router.update_bias(0.01)
    assert before > 1.4
    assert violation() < 0.15


def test_auxiliary_loss_joins_the_loss_with_its_weight() -> None:
    """Its value is the mean over MoE layers (MTP module included) of the plain equations, with a padding mask."""
    model = training_model(router_aux_loss_coef=0.5)
    ids, mask = pad_rows([tokens(1, 6)[0], tokens(1, 9)[0]], "right")
    labels = ids.masked_fill(mask == 0, -100)
    output = model(ids, attention_mask=mask, labels=labels, output_router_logits=True)
    expected = [
        plain_balance_loss(
            logits.sigmoid().view(2, 9, -1).tolist(), indices.view(2, 9, -1).tolist(), mask.tolist(), 8, 3
        )
        for logits, indices in zip(output.router_logits, output.router_indices, strict=True)
    ]
    assert output.aux_loss.item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    total = output.lm_loss + model.config.mtp_loss_weight * output.mtp_loss + 0.5 * output.aux_loss
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-6)
    assert model.eval()(ids, attention_mask=mask, labels=labels).aux_loss is None


def test_auxiliary_loss_under_checkpointing_trains_or_says_why_not() -> None:
    """Non-reentrant: the same gradient as without. Reentrant hides the routers, which must not pass silently."""
    ids, gradients = tokens(2, 9), []
    for checkpointing in (False, True):
        model = training_model(router_aux_loss_coef=10.0)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, labels=ids).aux_loss.backward()
        gradients.append([router.weight.grad for router in routers(model)])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0 and torch.allclose(plain, checkpointed, atol=1e-6)
    model = training_model(router_aux_loss_coef=10.0)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match=r"router_aux_loss_coef.*use_reentrant"):
        model(ids, labels=ids)
