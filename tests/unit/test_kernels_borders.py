"""Shapes come from files and callers: whatever the kernels are given, they compute it or refuse it."""

import shutil
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, get_peft_model

import axk1.kernels
from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.kernels import native
from axk1.modeling.cache import LatentCache

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
IDS = torch.randint(1, 90, (1, 9), generator=torch.Generator().manual_seed(0))


def make_model(**fields: Any) -> AXK1ForCausalLM:
    torch.manual_seed(0)
    config = AXK1Config.preset("nano", **{"num_hidden_layers": 2, "initializer_range": 0.1, **fields})
    return AXK1ForCausalLM(config).eval()


def check_cached_equals_plain(model: Any, ids: torch.Tensor = IDS) -> None:
    """Prompt and one more token through the cache, against the modules over the whole sequence."""
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[:, -1]
        cache = LatentCache(model.config)
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        found = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rope", [1024, 1026, 2048, 4098])
def test_rotary_keys_of_any_width(rope: int) -> None:
    """Above 1,024 they once ran over a buffer on the stack."""
    check_cached_equals_plain(make_model(qk_rope_head_dim=rope))


def test_frequencies_of_another_width_are_refused() -> None:
    assert axk1.kernels.available()
    model = make_model()
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:1].clone()
    cache = LatentCache(model.config)
    with torch.no_grad(), pytest.raises(ValueError, match="frequencies for another width"):
        model(input_ids=IDS, past_key_values=cache, use_cache=True)


def test_a_cache_of_another_configuration_is_refused() -> None:
    model, other = make_model(), make_model(kv_lora_rank=16)
    with torch.no_grad(), pytest.raises(ValueError, match="cache of another configuration"):
        model(input_ids=IDS, past_key_values=LatentCache(other.config), use_cache=True)


@pytest.mark.parametrize("width", [1, 32, 4096])
def test_embeddings_of_another_width_are_refused(width: int) -> None:
    model = make_model()
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model(inputs_embeds=torch.zeros(1, 3, width), past_key_values=LatentCache(model.config), use_cache=True)


@pytest.mark.parametrize("positions", [torch.empty(1, 0, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)])
def test_positions_of_another_number_are_refused(positions: Any) -> None:
    model = make_model()
    cache = LatentCache(model.config)
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model(input_ids=IDS, position_ids=positions, past_key_values=cache, use_cache=True)


def test_weights_replaced_after_the_first_step_are_not_read_after_they_are_freed() -> None:
    model = make_model()
    cache = LatentCache(model.config)
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=cache, use_cache=True)
        for parameter in model.parameters():
            parameter.data = torch.full_like(parameter.data, torch.nan)
        logits = model.model(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
    assert logits.shape == (1, 1, model.config.hidden_size)


@pytest.mark.parametrize(
    ("x", "weight", "scale"),
    [
        (torch.zeros(2, 8), torch.zeros(4, 16), None),
        (torch.zeros(2, 8), torch.zeros(2, 4, 8), None),
        (torch.zeros(2, 8), torch.zeros(4, 0), None),
        (torch.zeros(2, 0), torch.zeros(4, 8), None),
        (torch.zeros(2, 8), torch.zeros(4, 8, dtype=torch.int8), torch.ones(3, 1)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 0)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(4, 3)),
        (torch.zeros(2, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.ones(1, 2)),
        (torch.zeros(2, 64), torch.zeros(4, 96, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_linear_refuses_shapes_that_do_not_fit(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None
) -> None:
    assert axk1.kernels.available()
    with pytest.raises((ValueError, RuntimeError)):
        native.linear(x, weight, scale, True)


def test_norms_with_adapters_or_another_eps_are_seen() -> None:
    """PEFT's LayerNorm tuning wraps norms, whose ``weight`` attribute still answers with the base weight."""
    model = make_model()
    adapted = get_peft_model(model, LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]))  # pyright: ignore
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ln_tuning_layers" in name:
                parameter.mul_(1.5)
    check_cached_equals_plain(adapted.eval())
    other = make_model()
    other.model.layers[0].input_layernorm.eps = 0.5  # pyright: ignore
    check_cached_equals_plain(other)
