"""Recorded steps of GPUs. Without one, the recording is left out: what it holds runs at every replay, on the CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import VOCAB, build, random_fields, small_model, tokens
from transformers.cache_utils import Cache

from axk1.kernels.graphs import NARROWEST, PLAIN_STEPS, CUDARunner, Inputs, Window, can_record, compute
from axk1.modeling.attention import absorbing_pays
from axk1.modeling.cache import LatentCache
from axk1.modeling.runners import RUNNERS, Step


class Recorder:
    """Stands for ``record_graph``; like a graph, it returns the same memory from every replay."""

    def __init__(self) -> None:
        self.recordings, self.replays = 0, 0

    def __call__(self, compute: Callable[[], Step]) -> Callable[[], Step]:
        self.recordings += 1
        held = compute()

        def replay() -> Step:
            self.replays += 1
            for kept, new in zip(held, compute(), strict=True):
                kept.copy_(new)
            return held

        return replay


def on_cpu(recorder: Any) -> Any:
    return patch.dict(RUNNERS, {"cpu": CUDARunner(recorder)}, clear=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.data())
@torch.inference_mode()
def test_recorded_steps_equal_plain_ones(seed: int, batch: int, width: int, padded: bool, data: Any) -> None:
    """Random architectures, batches, padding, holes and rejected tokens, at widths that change."""
    model = build(random_fields(seed), seed)
    recorder, columns = Recorder(), 9
    assume(absorbing_pays(model.config, width, columns + width))
    caches = [LatentCache(model.config, capacity=64) for _ in range(2)]
    mask = torch.ones(batch, columns, dtype=torch.int64)
    if padded:
        mask[:, : data.draw(st.integers(0, 4))] = 0
        mask[0, :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ids = tokens(batch, columns, seed)
    for cache in caches:
        model.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    with on_cpu(recorder):
        decoder = model.step_decoder(caches[0])
    assert decoder is not None
    steps = 0
    for turn in range(12):
        new = tokens(batch, width, seed + turn)
        mask = torch.cat([mask, torch.ones(batch, width, dtype=torch.int64)], 1)
        positions = mask.cumsum(1)[:, -width:] - 1
        given_mask = mask if padded else None
        with patch.dict(RUNNERS, clear=True):
            expected = model.model(new, attention_mask=mask, position_ids=positions, past_key_values=caches[1])
            found = decoder.step(new, positions, given_mask, 1)
            if found is None:
                model.model(new, attention_mask=mask, position_ids=positions, past_key_values=caches[0])
            else:
                steps += 1
                states = expected.last_hidden_state
                assert (found.states - states).abs().max() < 1e-4
                logits = model.lm_head(states[:, -1:])
                assert (found.logits - logits).abs().max() < 1e-4 and found.logits.dtype == torch.float32
                assert torch.equal(found.best, found.logits.argmax(-1))
        rejected = data.draw(st.integers(0, width - 1))
        for cache in caches:
            for layer in cache.layers[: model.config.num_hidden_layers]:
                layer.crop(-rejected)
        mask = mask[:, : mask.shape[1] - rejected]
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == mask.shape[1]
        if padded and batch > 1:
            mask[-1, -1] = data.draw(st.integers(0, 1))  # a hole
    assert steps == 12 - PLAIN_STEPS and recorder.recordings == 1
    for one, other in zip(*(cache.layers[: model.config.num_hidden_layers] for cache in caches), strict=True):
        assert (one.joint - other.joint).abs().max() < 1e-4


def test_a_step_is_recorded_again_where_its_window_ends_or_the_cache_moves() -> None:
    model, recorder = small_model(), Recorder()
    with on_cpu(recorder), torch.inference_mode():
        cache = LatentCache(model.config, capacity=2 * NARROWEST + 1)
        model.model(tokens(2, NARROWEST - 9), past_key_values=cache)
        decoder = model.step_decoder(cache)

        made: list[Step] = []

        def advance(steps: int) -> None:
            for _ in range(steps):
                new, positions = tokens(2, 1, cache.get_seq_length()), torch.tensor([[cache.get_seq_length()]])
                if (found := decoder.step(new, positions, None, 1)) is None:
                    model.model(new, position_ids=positions, past_key_values=cache)
                else:
                    made.append(found)

        advance(9)
        assert recorder.recordings == 1
        advance(1 + PLAIN_STEPS)
        assert recorder.recordings == 2
        cache.batch_select_indices(torch.tensor([1, 0]))  # other memory
        advance(1 + PLAIN_STEPS)
        assert recorder.recordings == 3
    assert len({tuple(step.logits.flatten().tolist()) for step in made}) == len(made), "each has memory of its own"


@torch.inference_mode()
def test_failed_recordings_leave_the_modules(caplog: pytest.LogCaptureFixture) -> None:
    """Every step is declined, and the log says so once."""
    model = small_model()

    def fails(compute: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with on_cpu(fails):
        cache = LatentCache(model.config, capacity=64)
        model.model(tokens(1, 9), past_key_values=cache)
        decoder = model.step_decoder(cache)
        for _ in range(PLAIN_STEPS + 5):
            new, positions = tokens(1, 1), torch.tensor([[cache.get_seq_length()]])
            assert decoder.step(new, positions, None, 1) is None
            model.model(new, position_ids=positions, past_key_values=cache)
    assert caplog.text.count("could not be recorded") == 1


def angles_that_depend_on_the_length() -> Any:
    return small_model(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})


def experts_that_are_counted() -> Any:
    model = small_model()
    model.set_experts_implementation("eager")
    return model


def a_hook() -> Any:
    model = small_model()
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("make", [angles_that_depend_on_the_length, experts_that_are_counted, a_hook])
def test_what_would_wait_for_the_gpu_is_not_recorded(make: Callable[[], Any]) -> None:
    assert not can_record(make())
    assert can_record(small_model())


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
@torch.inference_mode()
def test_a_step_needs_no_look_at_a_value(monkeypatch: pytest.MonkeyPatch, implementation: str) -> None:
    """Tensors without data stand for a GPU's: whatever would wait for one of them, or mix in the CPU's, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **how: nullcontext())  # which knows no such device
    model, meta = small_model().to(torch.bfloat16).to("meta"), torch.device("meta")
    model.set_experts_implementation(implementation)
    cache = LatentCache(model.config, capacity=64)
    for layer in cache.layers:
        layer.append_space(2, 9, torch.bfloat16, meta)
    numbers = {"dtype": torch.int64, "device": meta}
    kept = torch.ones(2, 64, dtype=torch.bool, device=meta)
    inputs = Inputs(torch.zeros(2, 3, **numbers), torch.zeros(2, 3, **numbers), torch.zeros(3, **numbers), kept)
    inputs.set(torch.zeros(2, 3, **numbers), torch.zeros(1, 3, **numbers), kept[:, :12], 9)
    windows = Cache(layers=[Window(layer, inputs.columns, 64) for layer in cache.layers])
    states, logits, best = compute(model, inputs, windows, 1, True)
    assert states.is_meta and states.shape == (2, 3, model.config.hidden_size)
    assert logits.is_meta and logits.shape == (2, 1, VOCAB) and best.shape == (2, 1)
    model.set_experts_implementation("eager")
    with pytest.raises(NotImplementedError):
        compute(model, inputs, windows, 1, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_graphs_on_a_gpu() -> None:
    model, ids = small_model().to("cuda"), tokens(2, 9).to("cuda")
    caches = [LatentCache(model.config, capacity=64) for _ in range(2)]
    for cache in caches:
        model.model(ids, past_key_values=cache)
    with patch.dict(RUNNERS, {"cuda": CUDARunner()}, clear=True):
        decoder = model.step_decoder(caches[0])
    recorded = 0
    for turn in range(20):
        new, positions = tokens(2, 1, turn).to("cuda"), torch.tensor([[9 + turn]], device="cuda")
        expected = model.model(new, position_ids=positions, past_key_values=caches[1]).last_hidden_state
        found = decoder.step(new, positions, None, 1)
        if found is None:
            model.model(new, position_ids=positions, past_key_values=caches[0])
        else:
            recorded += 1
            assert (found.states - expected).abs().max() < 1e-3
    assert recorded == 20 - PLAIN_STEPS
