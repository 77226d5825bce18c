"""Decoding through transformers' ``generate``: caches, strategies, left padding, assistants."""

from typing import Any

import pytest
import torch
from tiny import PAD, ROPES, VOCAB, build, pad_rows, random_fields, small_model, tokens
from transformers import DynamicCache, GenerationConfig, StaticCache, set_seed

SHAPES = range(4)
NEW = 10


def drawn(seed: int) -> Any:
    return build(random_fields(seed, rope_parameters=dict(ROPES[seed % 4])), seed)


def by_hand(model: Any, row: torch.Tensor, new: int = NEW) -> list[int]:
    """Greedy decoding without a cache and without ``generate``."""
    ids = row.tolist()
    for _ in range(new):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(row) :]


def greedy(model: Any, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
    settings = dict(max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, use_cache=True)
    return model.generate(ids, **{**settings, **extra})[:, ids.shape[1] :]


@pytest.mark.parametrize("seed", SHAPES)
@torch.no_grad()
def test_greedy_and_left_padding(seed: int) -> None:
    """A left-padded batch continues every prompt as if it were alone."""
    model = drawn(seed)
    prompts = [tokens(1, length, seed=length)[0] for length in (2, 9, 5)]
    ids, mask = pad_rows(prompts, "left")
    found = greedy(model, ids, attention_mask=mask)
    assert found.tolist() == [by_hand(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("cache", ["dynamic", "static", "off"])
@torch.no_grad()
def test_every_cache_gives_the_same_tokens(seed: int, cache: str) -> None:
    model, ids = drawn(seed), tokens(2, 6)
    expected = greedy(model, ids)
    if cache == "off":
        found = greedy(model, ids, use_cache=False)
    else:
        extra: dict[str, Any] = {"disable_compile": True} if cache == "static" else {}
        found = greedy(model, ids, cache_implementation=cache, **extra)
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers' offloaded caches need a CUDA stream")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
@torch.no_grad()
def test_offloaded_caches(cache: str) -> None:
    model, ids = small_model().cuda(), tokens(2, 6).cuda()
    assert torch.equal(greedy(model, ids, cache_implementation=cache, disable_compile=True), greedy(model, ids))


@torch.no_grad()
def test_static_cache_in_chunks() -> None:
    """Prefill, then tokens, through a cache longer than the text: logits of the whole sequence."""
    model, ids = small_model(), tokens(2, 12)
    cache = StaticCache(config=model.config, max_cache_len=32)
    parts = []
    for start, end in ((0, 5), (5, 9), (9, 10), (10, 11), (11, 12)):
        chunk = ids[:, start:end]
        positions = torch.arange(start, end)[None]
        parts.append(model(chunk, past_key_values=cache, position_ids=positions).logits)
    assert (torch.cat(parts, dim=1) - model(ids).logits).abs().max() < 1e-4
    latents: Any = cache.layers[0]
    assert latents.keys.shape == (2, 1, 32, model.config.kv_lora_rank)
    assert latents.values.shape == (2, 1, 32, model.config.qk_rope_head_dim)


@torch.no_grad()
def test_cache_can_be_cropped_and_continued() -> None:
    """What speculative decoding does: drop rejected tokens, go on from there."""
    model, ids = small_model(), tokens(1, 10)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    cache.crop(-4)
    logits = model(ids[:, 6:], past_key_values=cache).logits
    assert cache.get_seq_length() == 10
    assert (logits - model(ids).logits[:, 6:]).abs().max() < 1e-4


@torch.no_grad()
def test_generation_continues_a_cache() -> None:
    model, ids = small_model(), tokens(1, 8)
    whole = greedy(model, ids)
    first = model.generate(
        ids, max_new_tokens=4, do_sample=False, pad_token_id=PAD, return_dict_in_generate=True, use_cache=True
    )
    rest = greedy(model, first.sequences, past_key_values=first.past_key_values, max_new_tokens=NEW - 4)
    assert torch.equal(torch.cat([first.sequences[:, 8:], rest], dim=1), whole)


@pytest.mark.parametrize("seed", SHAPES)
@torch.no_grad()
def test_sampling(seed: int) -> None:
    """The same seed gives the same tokens, cached or not; top-k 1 is greedy; tokens follow the model's distribution."""
    model, ids = drawn(seed), tokens(2, 5)
    settings = dict(do_sample=True, temperature=0.6, top_p=0.95)
    found = []
    for use_cache in (True, True, False):
        set_seed(3)
        found.append(greedy(model, ids, use_cache=use_cache, **settings))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    set_seed(4)
    assert not torch.equal(found[0], greedy(model, ids, **settings))
    assert torch.equal(greedy(model, ids, do_sample=True, top_k=1), greedy(model, ids))


@pytest.mark.parametrize("seed", SHAPES)
@torch.no_grad()
def test_beam_search(seed: int) -> None:
    """Cached beams equal uncached ones, their score is the model's own, and the best comes first."""
    model, ids = drawn(seed), tokens(2, 5)
    settings = dict(num_beams=4, num_return_sequences=2, length_penalty=0.0, max_new_tokens=5)
    beams = model.generate(
        ids,
        pad_token_id=PAD,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    assert beams.sequences.shape == (4, 10)
    assert torch.equal(beams.sequences[:, 5:], greedy(model, ids, use_cache=False, **settings))

    def log_likelihood(sequence: torch.Tensor) -> float:
        scores = model(sequence[None]).logits[0].log_softmax(-1)
        return sum(scores[i - 1, sequence[i]].item() for i in range(5, 10))

    for sequence, score in zip(beams.sequences, beams.sequences_scores, strict=True):
        assert log_likelihood(sequence) == pytest.approx(score.item(), abs=1e-3)
    assert (
        beams.sequences_scores[0] > beams.sequences_scores[1] and beams.sequences_scores[2] > beams.sequences_scores[3]
    )
    assert not torch.equal(beams.sequences[0], beams.sequences[1])


@pytest.mark.parametrize("drafts", [1, 4])
@torch.no_grad()
def test_assisted_generation(drafts: int) -> None:
    """A smaller assistant changes nothing in the text, and one that is the model itself saves forward passes."""
    model, ids = small_model(), tokens(1, 7)
    expected = greedy(model, ids)
    for assistant, calls_at_most in ((small_model(seed=1), NEW + 1), (small_model(), NEW // (drafts + 1) + 2)):
        assistant.generation_config.num_assistant_tokens = drafts
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
        calls: list[int] = []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found = greedy(model, ids, assistant_model=assistant)
        hook.remove()
        assert torch.equal(found, expected)
        assert 0 < len(calls) <= calls_at_most


@torch.no_grad()
def test_prompt_lookup() -> None:
    model, ids = small_model(), tokens(1, 4).repeat(1, 3)
    assert torch.equal(greedy(model, ids, prompt_lookup_num_tokens=3), greedy(model, ids))


@torch.no_grad()
def test_generate_from_embeddings() -> None:
    model, ids = small_model(), tokens(2, 6)
    embeddings = model.get_input_embeddings()(ids)
    found = model.generate(inputs_embeds=embeddings, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD)
    assert torch.equal(found, greedy(model, ids))


@torch.no_grad()
def test_stops_at_any_end_token_and_pads_the_rest() -> None:
    model, ids = small_model(), tokens(3, 5)
    free = greedy(model, ids)
    ends = [int(free[0, 3]), int(free[1, 6])]
    found = greedy(model, ids, eos_token_id=ends)
    for row in range(3):
        hits = [i for i, token in enumerate(free[row].tolist()) if token in ends]
        stop = hits[0] + 1 if hits else NEW
        assert torch.equal(found[row, :stop], free[row, :stop])
        assert (found[row, stop:] == PAD).all()
    assert any(int((row == PAD).sum()) for row in found)


def test_generation_defaults_come_from_the_configuration() -> None:
    model = small_model(eos_token_id=[5, 9])
    assert isinstance(model.generation_config, GenerationConfig)
    assert model.generation_config.eos_token_id == [5, 9] and model.generation_config.pad_token_id == PAD


@torch.no_grad()
def test_generation_outputs() -> None:
    """Scores are the logits of each step; hidden states and attentions come a step and a layer."""
    model, ids = small_model(attn_implementation="eager"), tokens(1, 5)
    output = model.generate(
        ids,
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    full = model(output.sequences).logits[0, 4:7]
    assert (torch.cat(output.logits) - full).abs().max() < 1e-4
    assert len(output.hidden_states) == len(output.attentions) == 3
    assert [tuple(state.shape) for state in output.hidden_states[1]] == [(1, 1, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions[2]] == [(1, 2, 1, 7)] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "layers"), [("aot_eager", ["dense", "sparse"]), ("inductor", ["sparse"])])
@torch.no_grad()
def test_compiled_decode_step_equals_eager(backend: str, layers: list[str]) -> None:
    """``torch.compile(fullgraph=True)`` of a decode step on a static cache: same logits, one graph, no recompilation.
    The compiler itself (inductor) takes long on a CPU, so it gets one layer."""
    from torch._dynamo.testing import CompileCounterWithBackend

    def new_model() -> Any:
        return small_model(mlp_layer_types=layers, num_hidden_layers=len(layers))

    ids, counter = tokens(2, 9), CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        model, parts = new_model(), []
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :5], past_key_values=cache, position_ids=torch.arange(5)[None])
        step = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
        for position in range(5, 9):
            token, positions = ids[:, position : position + 1].clone(), torch.tensor([[position]])
            parts.append(step(token, past_key_values=cache, position_ids=positions).logits)
        found.append(torch.cat(parts, dim=1))
    assert counter.frame_count == 1
    assert found[0].shape == (2, 4, VOCAB)
    assert (found[1] - found[0]).abs().max() < 1e-4
    assert (found[1] - new_model()(ids).logits[:, 5:]).abs().max() < 1e-4


@pytest.mark.parametrize("sample", [False, True])
def test_scores_that_are_not_finite_choose_no_token(sample: bool) -> None:
    model = small_model()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model.generate(tokens(1, 4), max_new_tokens=2, do_sample=sample)
