"""What `axk1 train --dry-run` says, beside what `axk1 info` counts by shapes, and beside a real optimizer."""

from __future__ import annotations

import re
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
from axk1.train.estimate import estimate, graft_sentences, sentences
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


def test_the_example_of_longer_contexts_is_a_recipe(tmp_path: Path) -> None:
    """K1's lengths as docs/recipes.md has them: the same tokens a step, positions and rotary settings by stage."""
    page = (RECIPES.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    (text,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if 'preset = "k1"' in block)
    (tmp_path / "k1.toml").write_text(text)
    recipe = Recipe.load(tmp_path / "k1.toml")
    found = [recipe.config(stage) for stage in recipe.stage]
    assert [config.max_position_embeddings for config in found] == [4_096, 16_384, 32_768]
    assert [(config.rope_parameters or {})["rope_type"] for config in found] == ["default", "yarn", "yarn"]
    assert [(config.rope_parameters or {}).get("factor") for config in found] == [None, 4.0, 8.0]
    shapes = [recipe.at(stage) for stage in recipe.stage]
    assert {shape.row_tokens * shape.batch_rows for shape in shapes} == {2**22}
    for stage, shape, config in zip(recipe.stage, shapes, found, strict=True):
        assert shape.row_tokens == config.max_position_embeddings, stage.name
    lines = sentences(estimate(recipe))
    assert lines[0].startswith("518,983,059,456 parameters")
    assert "16k: 100 steps, 419,430,400 tokens in rows of 16,384, " in lines[3]
    assert "5,033,164,800 tokens, 20,133 MB of disk for them" in lines[-1]


def test_a_dry_run_of_a_module_needs_no_checkpoint() -> None:
    result = CliRunner().invoke(app, ["train", "mtp", "k1", "--dry-run"])
    assert result.exit_code == 0 and "a module of 8,705,060,864 parameters" in result.output
