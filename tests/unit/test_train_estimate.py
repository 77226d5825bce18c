"""What `axk1 train --dry-run` says, beside what `axk1 info` counts by shapes, and beside a real optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted import SIZES
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.config import AXK1Config
from axk1.modeling import AXK1ForCausalLM
from axk1.plan.describe import describe
from axk1.plan.training import estimate_graft
from axk1.train.estimate import estimate, graft_sentences
from axk1.train.muon import MuonAdamW, parameter_groups
from axk1.train.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load(RECIPES / "nano.toml")


def test_parameters_are_those_of_info(recipe: Recipe) -> None:
    found, info = estimate(recipe), describe("nano")
    module = sum(
        p.numel() * (4 / 16 if ".mlp.experts." in name else 1)
        for name, p in AXK1ForCausalLM(recipe.config()).named_parameters()
        if name.startswith(f"model.layers.{recipe.config().num_hidden_layers}.")
    )
    assert found.parameters == info.total == 9_380_544
    assert found.active == info.active_without_embedding + module


def test_memory_is_that_of_a_real_step(recipe: Recipe) -> None:
    model = AXK1ForCausalLM(recipe.config())
    optimizer = MuonAdamW(parameter_groups(model, muon_lr=1e-3, lr=1e-3), betas=(0.9, 0.95), weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = sum(v.numel() for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    expected = 4 * (2 * sum(p.numel() for p in model.parameters()) + states)
    assert estimate(recipe).memory == pytest.approx(expected, rel=1e-3)  # step counters are scalars
    plain = replace(recipe, stage=[replace(recipe.stage[0], muon_learning_rate=0.0)])
    assert estimate(plain).memory == pytest.approx(16 * estimate(recipe).parameters, rel=1e-3)


def test_tokens_and_flops_by_stage(recipe: Recipe) -> None:
    found = estimate(recipe)
    assert [tokens for _, tokens, _ in found.stages] == [stage.steps * 4_096 for stage in recipe.stage]
    assert found.stages[0][2] == pytest.approx(6 * found.active * 100 * 4_096)
    _, tokens, flops = found.stages[-1]  # MTP modules alone
    assert 2 * found.active < flops / tokens < 6 * found.active


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    text = (RECIPES / "nano.toml").read_text(encoding="utf-8").replace("text = 0.5 ", "text = 0.0 ")
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "9,380,544 parameters" in result.stdout and "in all 21,053,440 tokens" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_module_for_k1_by_shapes(recipe: Recipe) -> None:
    """The published arithmetic: 8,705,060,864 parameters; memory beside that of a real module and optimizer."""
    found = estimate_graft(AXK1Config.preset("k1"), muon=True)
    assert found.parameters == 8_705_060_864
    assert found.layer == 2 * (8_705_060_864 - 2 * 7168 * 7168 - 3 * 7168)
    assert found.ends == 4 * 2 * 163_840 * 7168
    page = " ".join((Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8").split())
    for line in graft_sentences(found):
        assert line in page
    small = AXK1Config(**SIZES)
    model = AXK1ForCausalLM(small)
    own = sum(p.numel() for p in model.model.mtp_layers[0].parameters())
    assert estimate_graft(small, muon=False).parameters == own
    assert estimate_graft(small, muon=False).module == 4 * 4 * own


def test_a_dry_run_of_a_module_needs_no_checkpoint() -> None:
    result = CliRunner().invoke(app, ["train", "mtp", "k1", "--dry-run"])
    assert result.exit_code == 0 and "a module of 8,705,060,864 parameters" in result.output
