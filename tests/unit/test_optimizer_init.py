"""Muon with AdamW, and the starting weights of small models."""

import copy

import pytest
import torch
from scripted import make_model

from axk1.modeling.layer import AXK1DecoderLayer
from axk1.train import muon
from axk1.train.initialize import initialize
from axk1.train.muon import MuonAdamW, orthogonalize, parameter_groups


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16), (3, 12, 24), (3, 24, 12)])
def test_orthogonalize_brings_singular_values_near_one(shape) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalize(matrix).float()
    assert result.shape == matrix.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.4
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(result.flatten(-2), (left @ right).flatten(-2), dim=-1)
    assert cosine.min() > 0.97


def test_its_number_format_is_what_the_processor_is_fast_in(monkeypatch) -> None:
    torch.manual_seed(0)
    matrix, found = torch.randn(3, 12, 24), []
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(muon, "multiplies_bfloat16", lambda fast=fast: fast)
        found.append(orthogonalize(matrix))
        assert found[-1].dtype == dtype
    assert torch.allclose(found[0].float(), found[1], atol=0.05)


def test_stacked_experts_are_updated_one_by_one() -> None:
    """A stack moves exactly as its experts would alone."""
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 8, 16))
    single = [torch.nn.Parameter(part.clone()) for part in stack.detach()]
    together = MuonAdamW([{"params": [stack], "lr": 0.1, "muon": True}], weight_decay=0.1)
    apart = MuonAdamW([{"params": single, "lr": 0.1, "muon": True}], weight_decay=0.1)
    for _ in range(3):
        stack.grad = torch.randn_like(stack)
        for parameter, gradient in zip(single, stack.grad, strict=True):
            parameter.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in single]), atol=2e-3, rtol=2e-3)


def test_the_other_parameters_follow_torch_adamw() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(5))
    theirs = torch.nn.Parameter(ours.detach().clone())
    mine = MuonAdamW([{"params": [ours], "lr": 0.01, "muon": False}], betas=(0.9, 0.95), weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_the_state_survives_saving() -> None:
    torch.manual_seed(0)
    model = make_model()
    twin = copy.deepcopy(model)
    optimizers = [MuonAdamW(parameter_groups(m, muon_lr=0.02, lr=0.01)) for m in (model, twin)]
    gradients = [torch.randn_like(p) for p in model.parameters()]

    def step(which: int) -> None:
        for parameter, gradient in zip((model, twin)[which].parameters(), gradients, strict=True):
            parameter.grad = gradient.clone() if parameter.requires_grad else None
        optimizers[which].step()

    step(0)
    step(0)
    step(1)
    fresh = MuonAdamW(parameter_groups(twin, muon_lr=0.02, lr=0.01))
    fresh.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    optimizers[1] = fresh
    step(1)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_every_trained_parameter_has_one_rule() -> None:
    model = make_model()
    groups = parameter_groups(model, muon_lr=0.02, lr=0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    muon = {id(p) for p in groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in muon}
    assert "model.layers.1.mlp.experts.gate_up_proj" in names and "model.layers.0.self_attn.o_proj.weight" in names
    assert not any(word in name for name in names for word in ("norm.weight", "embed_tokens", "lm_head", "mlp.gate.w"))


def test_starting_weights_keep_the_token_visible() -> None:
    """The residual stream starts at the embedding's size and stays of that order through the layers."""
    model = make_model()
    sizes: list[float] = []

    def record(module, args, output) -> None:
        sizes.append(output.pow(2).mean().sqrt().item())

    for layer in model.modules():
        if isinstance(layer, AXK1DecoderLayer):
            layer.register_forward_hook(record)
    tokens = torch.randint(0, 250, (4, 32))
    model(tokens)
    before = model.model.embed_tokens(tokens).pow(2).mean().sqrt().item() / sizes[1]
    sizes.clear()
    torch.manual_seed(1)
    initialize(model)
    model(tokens)
    after = model.model.embed_tokens(tokens).pow(2).mean().sqrt().item() / sizes[1]
    assert before < 0.1 < 0.7 < after
