"""Training through the model alone: gradient checkpointing, frozen parts, gradient accumulation, learning."""

from typing import Any, cast

import pytest
import torch
from tiny import pack_rows, pad_rows, small_model, tokens

from axk1 import AXK1ForSequenceClassification
from axk1.modeling import trunk
from axk1.modeling.moe import AXK1Router

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_:FutureWarning")  # renamed in 5.23


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=atol, rtol=1e-4), name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layout", ["whole", "padded", "packed"])
def test_gradient_checkpointing_equals_plain(reentrant: bool, layout: str) -> None:
    """Loss and every gradient, MTP layers included; layers do run a second time."""
    ids = tokens(2, 9)
    inputs: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if layout == "padded":
        padded, mask = pad_rows([tokens(1, 4)[0], tokens(1, 9)[0]], "left")
        inputs = {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)}
    if layout == "packed":
        packed, positions = pack_rows([tokens(1, 4)[0], tokens(1, 9)[0]])
        inputs = {"input_ids": packed, "position_ids": positions, "labels": packed}
    found = []
    for checkpointing in (False, True):
        model, runs = small_model(num_nextn_predict_layers=1).train(), []
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        output = model(**inputs)
        output.loss.backward()
        found.append((output.loss.item(), gradients(model)))
        assert len(runs) == len(model.model.layers) * (2 if checkpointing else 1)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert_same(found[1][1], found[0][1])


def test_gradient_checkpointing_can_be_turned_off_and_rests_in_eval() -> None:
    model, ids, runs = small_model(), tokens(1, 5), []
    model.gradient_checkpointing_enable()
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    model.eval()(ids, labels=ids).loss.backward()
    assert len(runs) == 1
    model.gradient_checkpointing_disable()
    model.train()(ids, labels=ids).loss.backward()
    assert len(runs) == 2


def test_micro_batches_add_up_to_the_batch() -> None:
    """With ``num_items_in_batch`` the summed gradients of uneven micro-batches equal the whole batch's."""
    ids = tokens(4, 10)
    labels = ids.clone()
    labels[0, :7] = labels[1, 3:] = -100
    items = int((labels[:, 1:] != -100).sum())
    whole = small_model().train()
    whole(ids, labels=labels, num_items_in_batch=items).loss.backward()
    parts = small_model().train()
    for row in range(4):
        parts(ids[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=torch.tensor(items)).loss.backward()
    assert_same(gradients(parts), gradients(whole), atol=1e-5)
    assert whole(ids, labels=labels, num_items_in_batch=items).loss.item() == pytest.approx(
        whole(ids, labels=labels).loss.item(), abs=1e-5
    )


@pytest.mark.parametrize("frozen", ["embed_tokens", "experts", "gate.weight", "self_attn", "lm_head", "layers.0."])
def test_frozen_parts_stay_and_the_rest_learns(frozen: str) -> None:
    model, ids = small_model(num_nextn_predict_layers=1).train(), tokens(4, 12)
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        output = model(ids, labels=ids)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        held = frozen in name or not parameter.requires_grad
        assert torch.equal(parameter, before[name]) == held, name
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("reentrant", [True, False])
def test_adapters_below_a_frozen_embedding_learn_under_checkpointing(reentrant: bool) -> None:
    """What PEFT relies on: ``enable_input_require_grads`` lets gradients through a frozen embedding."""
    model, ids = small_model().train(), tokens(2, 8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0.self_attn.o_proj" in name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].self_attn.o_proj.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0


def test_it_learns_both_tokens() -> None:
    """Overfits one batch: next-token and MTP loss fall, the router's bias moves, and greedy decoding repeats it."""
    torch.manual_seed(0)
    model = small_model(num_nextn_predict_layers=1, router_bias_update_rate=0.01, router_aux_loss_coef=1e-3).train()
    ids = tokens(2, 12)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = last = model(ids, labels=ids)
    for _ in range(60):
        last = model(ids, labels=ids)
        optimizer.zero_grad()
        last.loss.backward()
        optimizer.step()
        model.update_router_biases()
    assert last.lm_loss < 0.05 * first.lm_loss and last.mtp_loss < 0.05 * first.mtp_loss
    biases = [m.e_score_correction_bias for m in model.modules() if isinstance(m, AXK1Router)]
    assert all(not torch.equal(bias, small_model().model.layers[1].mlp.gate.e_score_correction_bias) for bias in biases)
    model.eval()
    assert torch.equal(model.generate(ids[:, :4], max_new_tokens=8, do_sample=False), ids)
    ahead = model(ids, output_mtp_logits=True).mtp_logits[0].argmax(-1)
    assert torch.equal(ahead[:, :-2], ids[:, 2:]), "the module names the token after the next"


def test_training_needs_no_module_and_no_router_statistics() -> None:
    """The released configuration (depth 0, no balancing): loss is the next-token loss and nothing is counted."""
    model, ids = small_model().train(), tokens(2, 8)
    output = model(ids, labels=ids)
    assert torch.equal(output.loss, output.lm_loss)
    assert output.mtp_loss is output.aux_loss is output.router_logits is output.mtp_logits is None
    assert not model.model.layers[1].mlp.gate.tokens_per_expert.any()


BALANCED: dict[str, Any] = {"num_nextn_predict_layers": 1, "router_aux_loss_coef": 0.1, "router_bias_update_rate": 0.01}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model warns of, every time; transformers' ``warning_once`` would say it in one test only."""
    found: list[str] = []
    monkeypatch.setattr(trunk.logger, "warning_once", found.append)
    return found


def test_a_loss_computed_elsewhere_names_what_it_lacks(said: list[str]) -> None:
    model, ids = small_model(**BALANCED).train(), tokens(2, 8)
    output = model(ids)
    assert len(said) == 1
    assert "mtp_loss_weight=0.3" in said[0] and "router_aux_loss_coef=0.1" in said[0] and "labels" in said[0]
    output.logits.sum().backward()
    assert all(p.grad is None for p in model.model.mtp_layers[0].parameters())
    assert model.model.embed_tokens.weight.grad is not None


def test_a_loss_over_the_trunks_states_names_what_it_lacks(said: list[str]) -> None:
    """TRL's trainers run the trunk and a head of their own; a classifier does too."""
    small_model(**BALANCED).train().model(tokens(2, 8))
    assert len(said) == 1 and all(name in said[0] for name in ("mtp_loss_weight", "aux_loss_coef", "bias_update_rate"))
    classifier = small_model(cls=AXK1ForSequenceClassification, num_nextn_predict_layers=1).train()
    classifier(tokens(2, 8), labels=torch.tensor([0, 1])).loss.backward()
    assert len(said) == 2


def test_nothing_is_said_where_nothing_is_lacking(said: list[str]) -> None:
    ids = tokens(2, 8)
    model = small_model(**BALANCED)
    model.train()(ids, labels=ids)
    model.eval()(ids)
    with torch.no_grad():
        model.train()(ids)
    small_model().train()(ids)
    small_model(num_nextn_predict_layers=1, mtp_loss_weight=0.0).train()(ids)
    frozen = small_model(num_nextn_predict_layers=1).train()
    frozen.model.mtp_layers[0].requires_grad_(False)
    frozen(ids)
    assert not said


def test_balancing_needs_no_labels() -> None:
    """The balance loss is in the output for the caller to add, and the choices are counted, as with labels."""
    ids, counts = tokens(2, 8), []
    for labels in ({}, {"labels": ids}):
        model = small_model(**BALANCED, num_hidden_layers=3).train()
        output = model(ids, **labels)
        routers = [module for module in model.modules() if isinstance(module, AXK1Router)]
        counts.append([router.tokens_per_expert.tolist() for router in routers[:2]])
        assert output.aux_loss > 0 and (output.loss is None) == (not labels)
        if not labels:
            assert not routers[2].tokens_per_expert.any(), "the MTP module did not run"
            output.aux_loss.backward()
            assert cast(Any, routers[0].weight.grad).abs().sum() > 0
    assert counts[0] == counts[1] and sum(counts[0][0]) == 16 * 3
    with torch.no_grad():
        assert small_model(**BALANCED).train()(ids).aux_loss is None


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_shifted_labels_are_taken_as_they_are(depth: int) -> None:
    """Loops that cut sequences over ranks shift before they cut; whole sequences then give the same losses."""
    model, ids = small_model(num_nextn_predict_layers=depth).train(), tokens(2, 9)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    expected, found = model(ids, labels=ids), model(ids, shift_labels=shifted)
    assert found.logits.shape == expected.logits.shape
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.lm_loss, expected.lm_loss)
    assert depth == 0 or torch.equal(found.mtp_loss, expected.mtp_loss)
    half = shifted[:, :5].clone()  # the first rank's part: its last target is the second rank's first token
    assert half[0, 4] == ids[0, 5]
    logits = model(ids[:, :5]).logits.float()
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), half.flatten())
    loss = model(ids[:, :5], shift_labels=half, labels=ids[:, :5]).lm_loss
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_export_with_a_dynamic_number_of_tokens() -> None:
    from torch.export import Dim, export

    model = small_model()
    sizes = {"input_ids": {0: Dim("batch", max=64), 1: Dim("tokens", min=2, max=64)}, "use_cache": None}
    exported = export(model, (), {"input_ids": tokens(2, 9), "use_cache": False}, dynamic_shapes=sizes, strict=False)
    for batch, length in ((2, 9), (1, 17), (5, 2)):
        ids = tokens(batch, length)
        found = exported.module()(input_ids=ids, use_cache=False).logits
        assert torch.allclose(found, model(ids, use_cache=False).logits, atol=1e-5)


def test_names_that_other_libraries_read() -> None:
    model = small_model(num_nextn_predict_layers=1)
    assert model.get_decoder() is model.model and model.base_model is model.model
    assert model.config.num_experts == model.config.num_local_experts == model.config.n_routed_experts == 8
    output = model.model(tokens(1, 4), output_router_logits=True, use_cache=False)
    assert {*output} == {"last_hidden_state", "router_logits"}
    assert not {"num_experts", "base_model_ep_plan"} & model.config.to_diff_dict().keys()


@pytest.mark.parametrize("plan", ["base_model_tp_plan", "base_model_ep_plan"])
def test_plans_name_modules_of_ours(plan: str) -> None:
    """Every pattern of transformers' plans for this architecture meets a module or parameter, in the MTP module too."""
    import re

    trunk = small_model(num_nextn_predict_layers=1).model
    names = {name for name, _ in (*trunk.named_modules(), *trunk.named_parameters())}
    for pattern in getattr(trunk.config, plan):
        found = [name for name in names if re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\d+"), name)]
        assert found, pattern
        if ".experts" in pattern:
            assert any(name.startswith("layers.3.") for name in found)
