"""The plugin for vLLM where vLLM is not installed, or is another version: it stops nobody."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from axk1.integrations import vllm as plugin
from axk1.integrations.vllm import versions
from axk1.integrations.vllm.hooks import map_experts, with_expert_map


@pytest.fixture
def untested(monkeypatch) -> dict[str, str]:
    """A vLLM of another version whose registry is all that is there; returns the registry."""
    registered: dict[str, str] = {}
    models = ModuleType("vllm.model_executor.models")
    models.ModelRegistry = SimpleNamespace(register_model=registered.__setitem__)  # pyright: ignore
    for name in ("vllm", "vllm.model_executor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, models.__name__, models)
    monkeypatch.setattr(versions, "installed_version", lambda: ("vllm", "0.99.0"))
    monkeypatch.delenv(versions.OVERRIDE, raising=False)
    return registered


def test_another_version_refuses_our_models_only_and_only_when_they_are_resolved(untested):
    plugin.register()
    assert set(untested) == {"AXK1ForCausalLM", "AXK1MTPModel"}
    for where in untested.values():
        module, _, _ = where.partition(":")
        sys.modules.pop(module, None)
        with pytest.raises(RuntimeError, match=r"vllm 0\.99\.0 is installed.*AXK1_VLLM_UNTESTED=1"):
            __import__(module)


def test_a_registry_that_is_another_stops_nobody(untested, monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "vllm.model_executor.models")
    plugin.register()
    assert "could not register" in caplog.text and not untested


def compute(topk_weights, topk_ids, expert_map, output=None):
    return topk_weights, topk_ids


def test_experts_of_other_processes_count_nothing():
    here = torch.tensor([-1, 0, 1, -1], dtype=torch.int32)
    weights, ids = torch.tensor([[0.7, 0.3], [0.6, 0.4]]), torch.tensor([[1, 3], [2, 1]], dtype=torch.int32)
    mapped = with_expert_map(compute)
    found, local = mapped(weights, ids, expert_map=here)
    assert torch.equal(found, torch.tensor([[0.7, 0.0], [0.6, 0.4]]))
    assert torch.equal(local, torch.tensor([[0, 0], [1, 0]], dtype=torch.int32))
    assert mapped(weights, ids, None) == (weights, ids)


def test_only_experts_of_our_own_model_are_changed(monkeypatch):
    class CPUUnquantizedExperts:
        def apply(self, topk_weights, topk_ids, expert_map):
            return topk_ids

    place = "vllm.model_executor.layers.fused_moe.experts.cpu_moe"
    for name in ("vllm", "vllm.platforms", "vllm.model_executor", "vllm.model_executor.layers", place):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in ("vllm.model_executor.layers.fused_moe", "vllm.model_executor.layers.fused_moe.experts"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.platforms"].current_platform = SimpleNamespace(is_cpu=lambda: True)  # pyright: ignore
    sys.modules[place].CPUUnquantizedExperts = CPUUnquantizedExperts  # pyright: ignore

    def layer() -> torch.nn.Module:
        module = torch.nn.Module()
        module.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=CPUUnquantizedExperts()))  # pyright: ignore
        return module

    ours, theirs, known = torch.nn.Sequential(layer(), torch.nn.Linear(1, 1)), layer(), CPUUnquantizedExperts.apply
    map_experts(ours)
    map_experts(ours)  # weights may be loaded again
    assert CPUUnquantizedExperts.apply is known
    changed, kept = (m.quant_method.moe_kernel.fused_experts for m in (ours[0], theirs))  # pyright: ignore
    here, ids = torch.tensor([-1, 0]), torch.tensor([[1, 0]])
    assert changed.apply(torch.ones(1, 2), ids, here).tolist() == [[0, 0]]
    assert kept.apply(torch.ones(1, 2), ids, here) is ids
