"""Multi-token prediction against a plain computation written from its contract, and its loss on packed documents."""

import math
from typing import Any

import pytest
import torch
from tiny import BOS, ROPES, VOCAB, build, pack_rows, pad_rows, positions_of, random_fields, small_model, tokens

from axk1.modeling.cache import LatentCache

Weights = dict[str, torch.Tensor]


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    g = gate @ x
    return down @ (g / (1 + (-g).exp()) * (up @ x))


def turn(pair: torch.Tensor, angle: float, factor: float) -> torch.Tensor:
    """A pair as a complex number, turned by ``angle``."""
    turned = torch.view_as_complex(pair.contiguous()) * torch.polar(torch.tensor(factor), torch.tensor(angle))
    return torch.view_as_real(turned)


def plain_attention(x: torch.Tensor, w: Weights, config: Any, frequencies: list[float], factor: float) -> torch.Tensor:
    """MLA over ``[T, hidden]``, head by head and pair of positions by pair of positions."""
    nope, rope, v_dim, heads = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, 2
    query = (rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"]) @ w["q_b_proj.weight"].T).view(
        -1, heads, nope + rope
    )
    latent, k_rope = (x @ w["kv_a_proj_with_mqa.weight"].T).split([config.kv_lora_rank, rope], dim=-1)
    kv = (rms(latent, w["kv_a_layernorm.weight"]) @ w["kv_b_proj.weight"].T).view(-1, heads, nope + v_dim)

    def rotated(vector: torch.Tensor, position: int) -> torch.Tensor:
        pairs = vector.view(-1, 2)
        return torch.cat([turn(p, position * f, factor) for p, f in zip(pairs, frequencies, strict=True)])

    output = torch.zeros(len(x), heads, v_dim)
    for head in range(heads):
        for t in range(len(x)):
            q = torch.cat([query[t, head, :nope], rotated(query[t, head, nope:], t)])
            keys = [torch.cat([kv[s, head, :nope], rotated(k_rope[s], s)]) for s in range(t + 1)]
            weights = torch.softmax(torch.stack([q @ k for k in keys]) * (nope + rope) ** -0.5, dim=0)
            output[t, head] = sum(weights[s] * kv[s, head, nope:] for s in range(t + 1))
    return output.flatten(1) @ w["o_proj.weight"].T


def plain_moe(x: torch.Tensor, w: Weights, config: Any) -> torch.Tensor:
    """One token ``[hidden]``: sigmoid scores, the two best groups by their two best, three experts, shared expert."""
    scores = 1 / (1 + (-(w["gate.weight"] @ x)).exp())
    choice = (scores + w["gate.e_score_correction_bias"]).tolist()
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    kept = sorted(groups, key=lambda group: -sum(choice[e] for e in group))[:2]
    chosen = sorted([e for group in kept for e in group], key=lambda e: -choice[e])[:3]
    total = sum(scores[e] for e in chosen)
    width = config.moe_intermediate_size
    output = swiglu(x, *(w[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down")))
    for e in chosen:
        gate_up = w["experts.gate_up_proj"][e]
        output = output + 2.5 * scores[e] / total * swiglu(
            x, gate_up[:width], gate_up[width:], w["experts.down_proj"][e]
        )
    return output


def part(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def plain_mtp_states(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Post-norm states ``[T, hidden]`` of every depth for one row ``ids`` ``[T]``, from weights and facts alone.

    The trunk's state is taken from the model after its final norm; everything of the module itself is recomputed.
    """
    config, weights = model.config, model.state_dict()
    rotary = model.model.rotary_emb
    embeddings = weights["model.embed_tokens.weight"][ids]
    hidden = model.model(ids[None]).last_hidden_state[0]
    states = []
    for depth in range(1, config.num_nextn_predict_layers + 1):
        w = part(weights, f"model.layers.{config.num_hidden_layers + depth - 1}.")
        ahead = torch.cat([embeddings[depth:], torch.zeros(depth, config.hidden_size)])
        x = torch.cat([rms(ahead, w["enorm.weight"]), rms(hidden, w["hnorm.weight"])], dim=-1) @ w["eh_proj.weight"].T
        normed = rms(x, w["input_layernorm.weight"])
        x = x + plain_attention(
            normed, part(w, "self_attn."), config, rotary.inv_freq.tolist(), float(rotary.attention_scaling)
        )
        normed = rms(x, w["post_attention_layernorm.weight"])
        block = torch.stack([plain_moe(row, part(w, "mlp."), config) for row in normed])
        x = x + rms(block, w["post_mlp_layernorm.weight"])
        hidden = rms(x, w["shared_head.norm.weight"])
        states.append(hidden)
    return states


@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_module_equals_a_plain_computation(depth: int) -> None:
    """At position i depth k gives the logits of token i + k + 1; compared wherever token i + k exists."""
    model, ids = small_model(num_nextn_predict_layers=depth), tokens(2, 9)
    found = model(ids, output_mtp_logits=True).mtp_logits
    assert len(found) == depth
    for row in range(2):
        for k, state in enumerate(plain_mtp_states(model, ids[row]), start=1):
            expected = state @ model.lm_head.weight.T
            assert (found[k - 1][row] - expected)[:-k].abs().max() < 2e-5
            assert expected.abs().max() > 1


@torch.no_grad()
def test_contract_is_visible() -> None:
    """Guards the test above: pre-norm states, swapped halves, an own embedding or no post-MLP norm would all show."""
    model, ids = small_model(num_nextn_predict_layers=1), tokens(1, 9)
    exact = model(ids, output_mtp_logits=True).mtp_logits[0]
    layer, hidden_size = model.model.mtp_layers[0], model.config.hidden_size
    trunk = model.model(ids, output_hidden_states=True)
    embeddings = model.model.embed_tokens(ids)
    same = model.lm_head(model.model.forward_mtp(trunk.last_hidden_state, embeddings).mtp_states[0])
    assert torch.equal(same, exact)
    seen: dict[str, torch.Tensor] = {}
    hook = model.model.layers[2].register_forward_hook(lambda m, args, out: seen.update(pre_norm=out))
    model.model(ids)
    hook.remove()
    pre_norm = model.lm_head(model.model.forward_mtp(seen["pre_norm"], embeddings).mtp_states[0])
    assert (pre_norm - exact).abs().max() > 1e-2
    for tensor, changed in (
        (layer.eh_proj.weight, layer.eh_proj.weight.roll(hidden_size, dims=1)),
        (layer.post_mlp_layernorm.weight, layer.post_mlp_layernorm.weight * 2),
        (layer.shared_head.norm.weight, layer.shared_head.norm.weight.flip(0)),
        (model.lm_head.weight, model.lm_head.weight * 2),
    ):
        kept = tensor.clone()
        tensor.copy_(changed)
        assert (model(ids, output_mtp_logits=True).mtp_logits[0] - exact).abs().max() > 1e-2
        tensor.copy_(kept)


@pytest.mark.parametrize(("layers", "depth"), [(2, 1), (3, 2), (3, 0), (2, 3)])
def test_key_names_at_the_right_index(layers: int, depth: int) -> None:
    """Layers after the trunk carry the module's own keys besides a MoE decoder layer's, and nothing is repeated."""
    kinds = ["dense", *["sparse"] * (layers - 1)]
    model = build(
        random_fields(0, mlp_layer_types=kinds, num_hidden_layers=layers, attention_bias=False),
        num_nextn_predict_layers=depth,
    )
    keys = set(model.state_dict())
    trunk_moe = {key.split(".", 3)[3] for key in keys if key.startswith(f"model.layers.{layers - 1}.")}
    extra = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
    for index in range(layers, layers + depth):
        own = {key.split(".", 3)[3] for key in keys if key.startswith(f"model.layers.{index}.")}
        assert own == trunk_moe | extra
    assert not any(key.startswith(f"model.layers.{layers + depth}.") for key in keys)
    assert len(model.model.mtp_layers) == depth
    outside = {key for key in keys if not key.startswith("model.layers.")}
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_released_index_and_size() -> None:
    """One module on the released model is layer 61 and adds 8,705,060,864 parameters, its post-MLP norm included."""
    from axk1 import AXK1Config, AXK1ForCausalLM

    with torch.device("meta"):
        model = AXK1ForCausalLM(AXK1Config.preset("k1", num_nextn_predict_layers=1))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["model.layers.61.eh_proj.weight"] == (7168, 14336)
    assert shapes["model.layers.61.enorm.weight"] == shapes["model.layers.61.post_mlp_layernorm.weight"] == (7168,)
    added = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.61."))
    assert added == 8_705_060_864
    assert sum(math.prod(shape) for shape in shapes.values()) - added == 518_983_059_456


def plain_losses(model: Any, rows: list[torch.Tensor], labels: list[torch.Tensor], items: int | None = None) -> Any:
    """lm loss and mean MTP loss of separate documents, label by label."""
    depth = model.config.num_nextn_predict_layers
    sums, counts = [0.0] * (depth + 1), [0] * (depth + 1)
    for row, label in zip(rows, labels, strict=True):
        output = model(row[None], output_mtp_logits=True)
        for k, logits in enumerate((output.logits, *output.mtp_logits)):
            for i in range(len(row) - k - 1):
                target = int(label[i + k + 1])
                if target != -100:
                    sums[k] -= logits[0, i].log_softmax(-1)[target].item()
                    counts[k] += 1
    losses = [total / (items or max(count, 1)) for total, count in zip(sums, counts, strict=True)]
    return losses[0], sum(losses[1:]) / depth


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["whole", "left", "right", "packed"])
@torch.no_grad()
def test_a_module_on_its_own_states_is_trained_as_it_drafts(layout: str, implementation: str) -> None:
    """Each position's further predictions, all positions at once, are those that drafting makes one by one behind a
    cache: of the true tokens, as if each draft had been right."""
    model = small_model(num_nextn_predict_layers=1, max_position_embeddings=64)
    model.set_attn_implementation(implementation)
    lengths = (9, 9) if layout == "whole" else (9, 6, 4)
    rows = [tokens(1, length, seed=length)[0] for length in lengths]
    place: dict[str, Any]
    if layout == "whole":
        ids, place, starts = torch.stack(rows), {}, [(0, 0), (1, 0)]
    elif layout == "packed":
        ids, positions = pack_rows(rows)
        place, starts = {"position_ids": positions}, [(0, 0), (0, 9), (0, 15)]
    else:
        ids, mask = pad_rows(rows, layout)
        place = {"attention_mask": mask, "position_ids": positions_of(mask)}
        starts = [(row, 9 - len(rows[row]) if layout == "left" else 0) for row in range(3)]
    found = model(ids, output_mtp_logits=True, mtp_drafts=3, use_cache=False, **place).mtp_logits
    assert len(found) == 3
    for row, (batch, start) in zip(rows, starts, strict=True):
        hidden = model.model(row[None], use_cache=False).last_hidden_state
        for i in range(len(row) - 3):
            cache = LatentCache(model.config)
            state = model.model.draft(hidden[:, : i + 1], row[None, 1 : i + 2], cache)[:, -1:]
            for k in range(3):
                if k:
                    state = model.model.draft(state, row[None, i + 1 + k : i + 2 + k], cache)
                expected = model.lm_head(state)[0, 0]
                torch.testing.assert_close(found[k][batch, start + i], expected, atol=2e-5, rtol=1e-4)


def test_drafts_of_a_module_on_its_own_states_are_learned() -> None:
    """They add to the loss by their own labels, reach the module and the trunk, and count in its router's use."""
    ids = tokens(4, 12)
    model = small_model(num_nextn_predict_layers=1, router_aux_loss_coef=0.01, router_bias_update_rate=0.1).train()
    output = model(ids, labels=ids, mtp_drafts=3, output_mtp_logits=True, use_cache=False)
    parts = [
        torch.nn.functional.cross_entropy(logits[:, : -k - 2].flatten(0, 1), ids[:, k + 2 :].flatten())
        for k, logits in enumerate(output.mtp_logits)
    ]
    assert output.mtp_loss.item() == pytest.approx(torch.stack(parts).mean().item(), abs=1e-5)
    parts[2].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.layers[0].self_attn.parameters())
    router = model.model.mtp_layers[0].mlp.gate
    assert router.tokens_per_expert.sum() == 3 * ids.numel() * model.config.num_experts_per_tok


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_:FutureWarning")  # renamed in 5.23
def test_drafts_that_cannot_be_trained() -> None:
    ids = tokens(1, 8)
    with pytest.raises(ValueError, match="need one that repeats; there are 2"):
        small_model(num_nextn_predict_layers=2)(ids, labels=ids, mtp_drafts=3)
    model = small_model(num_nextn_predict_layers=1).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="cannot be trained with gradient checkpointing"):
        model(ids, labels=ids, mtp_drafts=2)
    model = small_model(num_nextn_predict_layers=1)
    model.config._attn_implementation = "flex_attention"  # its masks are objects of their own
    states = torch.zeros(1, 8, model.config.hidden_size)
    with pytest.raises(ValueError, match='need attention "sdpa" or "eager", not "flex_attention"'):
        model.model.forward_mtp(states, states, drafts=2)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("layout", ["whole", "left", "right", "packed"])
@pytest.mark.parametrize("items", [None, 100])
@torch.no_grad()
def test_loss_arithmetic(depth: int, layout: str, items: int | None) -> None:
    """``loss = lm + weight * mean(mtp)``, over exactly the labels inside each document, in every layout."""
    model = small_model(num_nextn_predict_layers=depth, mtp_loss_weight=0.7)
    lengths = (8, 8) if layout == "whole" else (8, 3, 1, 5)
    rows = [tokens(1, length, seed=length)[0] for length in lengths]
    labels = [row.clone() for row in rows]
    labels[0][2:4] = -100
    inputs: dict[str, Any]
    if layout == "whole":
        inputs = {"input_ids": torch.stack(rows), "labels": torch.stack(labels)}
    elif layout == "packed":
        ids, positions = pack_rows(rows)
        inputs = {"input_ids": ids, "position_ids": positions, "labels": torch.cat(labels)[None]}
    else:
        ids, mask = pad_rows(rows, layout)
        padded = ids.masked_fill(mask == 0, -100)
        for i, label in enumerate(labels):
            padded[i, mask[i].bool()] = label
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": padded, "position_ids": positions_of(mask)}
    extra = {} if items is None else {"num_items_in_batch": items}
    output = model(**inputs, **extra)
    lm, mtp = plain_losses(model, rows, labels, items)
    assert output.lm_loss.item() == pytest.approx(lm, abs=2e-5)
    assert output.mtp_loss.item() == pytest.approx(mtp, abs=2e-5)
    assert output.loss.item() == pytest.approx(lm + 0.7 * mtp, abs=4e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_labels_never_cross_packed_documents(depth: int) -> None:
    """Changing a neighbour, before or after, changes neither the loss nor a single gradient of a document."""
    documents = [tokens(1, n, seed=n)[0] for n in (4, 6, 5)]
    results = []
    for first, last in ((BOS, BOS), (7, BOS), (BOS, 9)):
        model = small_model(num_nextn_predict_layers=depth).train()
        rows = [torch.full_like(documents[0], first), documents[1], torch.full_like(documents[2], last)]
        ids, positions = pack_rows(rows)
        labels = torch.full_like(ids, -100)
        labels[0, 4:10] = ids[0, 4:10]
        output = model(ids, position_ids=positions, labels=labels, use_cache=False)
        output.loss.backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    reference, gradients = results[0]
    alone = small_model(num_nextn_predict_layers=depth)(documents[1][None], labels=documents[1][None])
    for output, found in results:
        for name in ("loss", "lm_loss", "mtp_loss"):
            assert getattr(output, name).item() == pytest.approx(getattr(reference, name).item(), abs=1e-6)
            assert getattr(output, name).item() == pytest.approx(getattr(alone, name).item(), abs=1e-5)
        for name, gradient in found.items():
            assert torch.allclose(gradient, gradients[name], atol=1e-6), name
    assert reference.mtp_loss.item() > 0


def test_neighbours_labels_are_not_targets() -> None:
    """A document's last tokens have no target in the next document, however its labels look."""
    model = small_model(num_nextn_predict_layers=1)
    ids, positions = pack_rows([tokens(1, 4)[0], tokens(1, 4, seed=1)[0]])
    labels = torch.full_like(ids, -100)
    labels[0, 4] = 5  # the next document's first token: predicted by nobody
    output = model(ids, position_ids=positions, labels=labels)
    assert output.lm_loss.item() == output.mtp_loss.item() == 0
    labels[0, 5] = 5  # its second: next-token target of position 4, but not an MTP target of position 3
    output = model(ids, position_ids=positions, labels=labels)
    assert output.lm_loss.item() > 0 and output.mtp_loss.item() == 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_skip_logits_equals_the_full_path(depth: int) -> None:
    ids = tokens(2, 10)
    labels = ids.masked_fill(torch.arange(10) < 4, -100)
    found = []
    for skip in (False, True):
        model = small_model(num_nextn_predict_layers=depth).train()
        output = model(ids, labels=labels, skip_logits=skip)
        assert (output.logits is None) == skip
        output.loss.backward()
        found.append((output.loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name
        assert gradient.abs().sum() > 0 or "embed" in name or "experts" in name, f"{name} learned nothing"
    assert model(ids, skip_logits=True).logits.shape == (2, 10, VOCAB), "without labels the logits are all there is"


def test_mtp_trains_embedding_head_and_trunk() -> None:
    """The MTP loss alone reaches every shared part and every part of the module."""
    model = small_model(num_nextn_predict_layers=1).train()
    model(tokens(4, 12), labels=tokens(4, 12)).mtp_loss.backward()
    silent = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)
    ]
    assert silent == []


@pytest.mark.parametrize("seed", range(4))
def test_inference_ignores_the_modules(seed: int) -> None:
    """Without labels or ``output_mtp_logits`` a model with modules gives the plain model's logits and runs no more."""
    fields = random_fields(seed, rope_parameters=dict(ROPES[seed]))
    plain, deep = build(fields), build(fields, num_nextn_predict_layers=2)
    deep.load_state_dict(plain.state_dict(), strict=False)
    ran: list[int] = []
    for layer in deep.model.mtp_layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    ids = tokens(2, 8)
    output = deep(ids, output_router_logits=True)
    assert torch.equal(plain(ids).logits, output.logits)
    assert not ran and output.mtp_logits is None and output.mtp_loss is None
    assert len(output.router_logits) == fields["mlp_layer_types"].count("sparse")


def test_recorded_outputs_of_the_trunk_stay_the_trunks() -> None:
    """With labels, hidden states and attentions hold the trunk's layers only; router outputs add the modules."""
    model = small_model(num_nextn_predict_layers=2)
    model.set_attn_implementation("eager")
    ids = tokens(1, 6)
    flags = dict(output_hidden_states=True, output_attentions=True, output_router_logits=True)
    plain, labelled = model(ids, **flags), model(ids, labels=ids, **flags)
    for name in ("hidden_states", "attentions"):
        assert len(getattr(plain, name)) == len(getattr(labelled, name))
        assert all(torch.equal(a, b) for a, b in zip(getattr(plain, name), getattr(labelled, name), strict=True))
    assert len(plain.router_logits) == len(plain.router_indices) == 2
    assert len(labelled.router_logits) == len(labelled.router_indices) == 4


@pytest.mark.parametrize(
    "asks", [{"output_mtp_logits": True}, {"labels": tokens(1, 2)}], ids=lambda asks: next(iter(asks))
)
def test_filled_cache_is_refused(asks: dict[str, Any]) -> None:
    """The modules keep no cache: over the last tokens alone their logits would be wrong without a sign of it."""
    model, ids = small_model(num_nextn_predict_layers=1), tokens(1, 8)
    cache = model(ids[:, :6]).past_key_values
    with pytest.raises(ValueError, match="no filled past_key_values"):
        model(ids[:, 6:], past_key_values=cache, **asks)
    assert small_model()(ids[:, 6:], past_key_values=cache, **asks).logits.shape == (1, 2, VOCAB), "no module, no limit"
