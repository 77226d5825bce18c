"""What any causal language model of transformers promises about one forward pass."""

import copy
from typing import Any

import pytest
import torch
from tiny import (
    PAD,
    ROPES,
    VOCAB,
    build,
    pack_rows,
    pad_rows,
    positions_of,
    random_fields,
    small_model,
    tokens,
)

from axk1 import AXK1ForCausalLM, AXK1ForSequenceClassification, AXK1ForTokenClassification, AXK1Model, modeling
from axk1.modeling.cache import LatentCache

CLOSE = 1e-4
SHAPES = range(4)


def drawn(seed: int, **overrides: Any) -> Any:
    return build(random_fields(seed, rope_parameters=dict(ROPES[seed % 4]), **overrides), seed)


def rows(*lengths: int) -> list[torch.Tensor]:
    return [tokens(1, length, seed=length)[0] for length in lengths]


@pytest.mark.parametrize("seed", SHAPES)
@torch.no_grad()
def test_every_layout_gives_the_lone_rows_logits(seed: int) -> None:
    """Left padded, right padded and packed rows all equal the same rows run one by one."""
    model, documents = drawn(seed), rows(3, 11, 1, 6)
    alone = [model(row[None]).logits[0] for row in documents]
    for side in ("left", "right"):
        ids, mask = pad_rows(documents, side)
        logits = model(ids, attention_mask=mask, position_ids=positions_of(mask)).logits
        for row, expected in zip(range(4), alone, strict=True):
            assert (logits[row][mask[row].bool()] - expected).abs().max() < CLOSE
    ids, positions = pack_rows(documents)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        packed = model(ids, position_ids=positions).logits[0]
        assert (packed - torch.cat(alone)).abs().max() < CLOSE
    assert (model(ids).logits[0] - torch.cat(alone)).abs().max() > 0.01, "without positions it is one document"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_implementations_agree_in_loss_and_gradients(attention: str, experts: str) -> None:
    found = []
    for names in (("eager", "eager"), (attention, experts)):
        model = small_model(num_nextn_predict_layers=1).train()
        model.set_attn_implementation(names[0])
        model.set_experts_implementation(names[1])
        ids, mask = pad_rows(rows(5, 9), "right")
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    assert abs(found[0][0] - found[1][0]) < CLOSE
    for name, gradient in found[0][1].items():
        assert torch.allclose(gradient, found[1][1][name], atol=CLOSE, rtol=1e-3), name


def test_unknown_implementations_are_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        small_model(attn_implementation="nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        small_model().set_experts_implementation("nonsense")


@pytest.mark.parametrize("seed", SHAPES)
@torch.no_grad()
def test_embeddings_in_place_of_ids(seed: int) -> None:
    model, ids = drawn(seed, num_nextn_predict_layers=1), tokens(2, 7)
    by_ids = model(ids, labels=ids, output_mtp_logits=True)
    by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids, output_mtp_logits=True)
    assert torch.equal(by_ids.logits, by_embeddings.logits)
    assert torch.equal(by_ids.mtp_logits[0], by_embeddings.mtp_logits[0])
    assert torch.equal(by_ids.loss, by_embeddings.loss)


def test_exactly_one_input() -> None:
    model, ids = small_model(), tokens(1, 3)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


@torch.no_grad()
def test_logits_to_keep() -> None:
    model, ids = small_model(), tokens(2, 9)
    full = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=1).logits, full[:, -1:], atol=1e-6)
    assert torch.allclose(model(ids, logits_to_keep=4).logits, full[:, -4:], atol=1e-6)
    assert torch.equal(model(ids, logits_to_keep=0).logits, full)
    chosen = torch.tensor([1, 5])
    assert torch.allclose(model(ids, logits_to_keep=chosen).logits, full[:, chosen], atol=1e-6)
    kept = model(ids, labels=ids, logits_to_keep=1)
    assert torch.equal(kept.loss, model(ids, labels=ids).loss), "the loss looks at all positions whatever is kept"


@torch.no_grad()
def test_recorded_outputs() -> None:
    model, ids = small_model(), tokens(2, 6)
    model.set_attn_implementation("eager")
    plain = model(ids)
    assert plain.hidden_states is plain.attentions is plain.router_logits is plain.router_indices is None
    output = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert torch.equal(output.logits, plain.logits)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 6, 32)] * 4
    assert torch.equal(output.hidden_states[0], model.get_input_embeddings()(ids))
    after_norm = model.lm_head(output.hidden_states[-1])
    torch.testing.assert_close(after_norm, output.logits, atol=1e-5, rtol=1e-5)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 6, 6)] * 3
    assert [tuple(logits.shape) for logits in output.router_logits] == [(12, 8)] * 2
    assert [tuple(indices.shape) for indices in output.router_indices] == [(12, 3)] * 2
    model.config.output_router_logits = True
    assert len(model(ids).router_logits) == 2


@torch.no_grad()
def test_tuple_output() -> None:
    model, ids = small_model(), tokens(1, 5)
    output = model(ids, labels=ids, use_cache=False)
    as_tuple = model(ids, labels=ids, use_cache=False, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(output[0], output.loss)
    assert any(torch.equal(part, output.logits) for part in as_tuple if isinstance(part, torch.Tensor))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_trains(dtype: torch.dtype) -> None:
    """Forward, losses and gradients are finite; the router still decides in fp32."""
    model, ids = small_model(num_nextn_predict_layers=1).to(dtype).train(), tokens(2, 12)
    output = model(ids, labels=ids, output_router_logits=True)
    output.loss.backward()
    assert output.logits.dtype == dtype and output.loss.dtype == torch.float32
    assert all(logits.dtype == torch.float32 for logits in output.router_logits)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == dtype and parameter.grad.isfinite().all(), name
    exact = small_model(num_nextn_predict_layers=1)(ids, labels=ids).loss
    assert abs(output.loss.item() - exact.item()) < 0.1 * exact.item()


def test_autocast_trains_fp32_weights() -> None:
    model, ids = small_model(num_nextn_predict_layers=1).train(), tokens(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert abs(output.loss.item() - model(ids, labels=ids).loss.item()) < 0.1


@torch.no_grad()
def test_deep_copy_is_independent() -> None:
    model, ids = small_model(num_nextn_predict_layers=1), tokens(1, 6)
    before = model(ids, output_router_logits=True).logits  # recording hooks are installed before the copy
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids, output_router_logits=True).logits, before)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("size", [VOCAB + 11, VOCAB - 20])
@torch.no_grad()
def test_resized_vocabulary(size: int) -> None:
    """Kept rows keep their logits; the model still trains, with MTP, and generates."""
    model, ids = small_model(num_nextn_predict_layers=1), tokens(2, 6).clamp(max=VOCAB - 21)
    before = model(ids, output_mtp_logits=True)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    assert model.get_output_embeddings().out_features == size
    after, kept = model(ids, output_mtp_logits=True, labels=ids), min(size, VOCAB)
    assert after.logits.shape == (2, 6, size)
    assert torch.allclose(after.logits[..., :kept], before.logits[..., :kept], atol=1e-5)
    assert torch.allclose(after.mtp_logits[0][..., :kept], before.mtp_logits[0][..., :kept], atol=1e-5)
    assert after.loss.isfinite()
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 8)


@torch.no_grad()
def test_tied_embeddings_share_one_tensor() -> None:
    model = small_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert small_model().lm_head.weight is not small_model().model.embed_tokens.weight
    model.resize_token_embeddings(VOCAB + 3)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_initialisation_follows_the_configuration() -> None:
    """Normal with ``initializer_range`` everywhere, norms 1, bias 0, and the pad row of the embedding 0."""
    from axk1 import AXK1Config

    torch.manual_seed(0)
    fields = random_fields(0, initializer_range=0.05, hidden_size=32, n_routed_experts=8, attention_bias=True)
    model = AXK1ForCausalLM(AXK1Config(**fields, num_nextn_predict_layers=1))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.dim() == 1:
            assert not parameter.any(), name
        else:
            assert 0.04 < parameter.std().item() < 0.06, name
    assert not model.model.embed_tokens.weight[PAD].any()
    assert not any(buffer.any() for name, buffer in model.named_buffers() if "e_score" in name or "tokens_per" in name)


def test_shared_parts_of_the_classes() -> None:
    model = small_model()
    assert isinstance(model.model, modeling.AXK1Model) and model.base_model is model.model
    model.set_input_embeddings(torch.nn.Embedding(VOCAB, 32))
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.can_generate() and not small_model(cls=AXK1Model).can_generate()


@pytest.mark.parametrize(
    ("cls", "labels"),
    [
        (AXK1ForSequenceClassification, torch.tensor([0, 2, 1])),
        (AXK1ForTokenClassification, torch.arange(3 * 9).view(3, 9) % 3),
    ],
)
def test_classification_heads_train(cls: Any, labels: torch.Tensor) -> None:
    """A few steps lower the loss; every part of the trunk that the head sees gets a gradient."""
    model = small_model(cls=cls, num_labels=3, num_nextn_predict_layers=0).train()
    ids, mask = pad_rows(rows(5, 9, 7), "right")
    if labels.dim() == 2:
        labels = labels.masked_fill(mask == 0, -100)
    optimizer, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3), []
    for step in range(15):
        output = model(ids, attention_mask=mask, labels=labels)
        output.loss.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert output.logits.shape == ((3, 3) if labels.dim() == 1 else (3, 9, 3))
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_sequence_score_is_read_at_the_last_real_token() -> None:
    model = small_model(cls=AXK1ForSequenceClassification, num_labels=3)
    documents = rows(4, 8)
    ids, mask = pad_rows(documents, "right")
    logits = model(ids, attention_mask=mask).logits
    for row, document in enumerate(documents):
        assert (logits[row] - model(document[None]).logits[0]).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 7)}, r"embeddings have the shape \[1, 3, 7\]"),
        ({"inputs_embeds": torch.zeros(3, 7)}, "embeddings have the shape"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        (
            {"input_ids": tokens(1, 3), "position_ids": torch.zeros(1, 0, dtype=torch.int64)},
            r"position_ids have .*\[1, 0\]",
        ),
        ({"input_ids": tokens(1, 3), "position_ids": torch.arange(4)[None]}, "one for each of the 3 tokens"),
    ],
)
@torch.no_grad()
def test_shapes_that_do_not_fit_are_named(given: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model()(**given)


@pytest.mark.parametrize("field", ["kv_lora_rank", "qk_rope_head_dim"])
@torch.no_grad()
def test_a_cache_of_another_configuration_is_refused_while_it_is_empty(field: str) -> None:
    model = small_model()
    other = copy.deepcopy(model.config)
    setattr(other, field, 2 * getattr(other, field))
    with pytest.raises(ValueError, match=f"{field}.*make a LatentCache"):
        model(tokens(1, 3), past_key_values=LatentCache(other))
