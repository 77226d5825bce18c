"""Schemes mixed by layer: what a recipe says, what a budget chooses, and that loading reads both back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import small_model, tokens
from typer.testing import CliRunner

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.budget import LADDER, Budget, Step, choose
from axk1.checkpoint.compare import compare_with_source
from axk1.checkpoint.compressed import LAYER_PARTS, Wanted, matrices, mixed_formats, mixed_plan
from axk1.checkpoint.files import load_config
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.recipe import Recipe, Rule, read_recipe
from axk1.cli.main import app
from axk1.plan.describe import describe
from axk1.plan.weights import read_weights, weight_sizes
from axk1.quantized import Plan, Scheme
from axk1.quantized.plan import plan_of

SHAPE: dict[str, Any] = dict(
    hidden_size=64,
    moe_intermediate_size=64,
    num_hidden_layers=4,
    mlp_layer_types=["dense", *["sparse"] * 3],
    num_nextn_predict_layers=1,
)
"""Layers 0 to 4, the last one an MTP module."""
RECIPE = """
scheme = "int4"
group_size = 64

[[rules]]
layers = ["1-2"]
parts = "experts"
scheme = "int3"

[[rules]]
parts = ["attention", "eh_proj"]
scheme = "int8"

[[rules]]
layers = 0
scheme = "full"
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "source"
    small_model(**SHAPE).bfloat16().save_pretrained(folder)
    return folder


def written(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def name_of(layer: int, key: str) -> str:
    return f"model.layers.{layer}.{key.replace('{e}', '3').removesuffix('.weight')}"


def test_the_last_rule_that_names_a_part_decides(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, RECIPE))
    assert recipe.wanted(1, "experts") == Wanted("int3") and recipe.wanted(3, "experts") == Wanted("int4", 64)
    assert recipe.wanted(1, "attention") == Wanted("int8") and recipe.wanted(0, "attention") == Wanted(None)
    values = {"scheme": "int4", "group_size": 64, "rules": [{"layers": [1, 2], "parts": ["experts"], "scheme": "int3"}]}
    same = read_recipe(written(tmp_path, json.dumps(values), "recipe.json"))
    assert same.rules == recipe.rules[:2]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 1))
def test_plans_say_of_every_matrix_what_was_wanted(data: st.DataObject, mtp: int) -> None:
    """Whatever is mixed, through `config.json` and back: groups by name, and vLLM's one scheme for an expert."""
    config = AXK1Config.preset("nano", num_hidden_layers=4, num_nextn_predict_layers=mtp)
    wish = st.sampled_from(
        [Wanted("int8"), Wanted("int4", 64), Wanted("int4", 32), Wanted("int3"), Wanted("fp8-block"), Wanted(None)]
    )
    chosen = {(layer, part): data.draw(wish) for layer in range(4 + mtp) for part in LAYER_PARTS}
    chosen[1, "experts"] = Wanted("int3")  # something is quantised
    plan = mixed_plan(config, lambda layer, part: chosen[layer, part])
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for matrix in matrices(config):
        wanted = chosen[matrix.layer, matrix.part].scheme(matrix.key, matrix.width)
        assert plan.scheme(name_of(matrix.layer, matrix.key)) == wanted
        assert plan.scheme(name_of(matrix.layer, matrix.key).removeprefix("model.")) == wanted
    assert plan.scheme("lm_head") is None and plan.scheme("model.layers.2.mlp.gate") is None


def test_a_recipe_is_written_loaded_described_and_verified(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "mixed"
    command = ["quantize", str(source), str(target), "--recipe", str(written(tmp_path, RECIPE))]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "by " in done.output, done.output
    config = load_config(target)
    plan = plan_of(config)
    assert plan is not None
    assert plan.expert_schemes("model.layers.1.mlp.experts") == (Scheme("int3", 64), Scheme("int3", 64))
    assert plan.expert_schemes("model.layers.3.mlp.experts") == (Scheme("int4", 64), Scheme("int4", 64))
    assert plan.scheme("model.layers.0.mlp.up_proj") is None
    manifest = json.loads((target / "axk1-manifest.json").read_text())
    formats = {(each["part"], each["format"]): each["layers"] for each in manifest["wish"]["formats"]}
    assert formats["experts", "int3 in groups of 64"] == "1-2" and formats["experts", "int4 in groups of 64"] == "3-4"
    assert formats["attention", "int8"] == "1-4" and formats["attention", "full"] == "0"
    found = describe(str(target))
    assert [vars(each) for each in found.formats] == manifest["wish"]["formats"]
    shown = CliRunner().invoke(app, ["info", str(target)], env={"COLUMNS": "120"})
    assert shown.exit_code == 0 and "Formats" in shown.output and "int3 in groups of 64" in shown.output
    assert "formats" in json.loads(CliRunner().invoke(app, ["info", str(target), "--json"]).output)
    held = read_weights(target)
    assert held.sizes.total == found.bytes["stored"] and held.group_size == 64
    verify_checkpoint(target)
    assert compare_with_source(target, source).otherwise == 0
    model: Any = AXK1ForCausalLM.from_pretrained(target, dtype=torch.float32)
    plain: Any = AXK1ForCausalLM.from_pretrained(target, dtype=torch.float32)
    plain.dequantize()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(2, 7)).logits, plain(tokens(2, 7)).logits, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again").quantization_config == config.quantization_config  # pyright: ignore
    assert describe(str(tmp_path / "again")).formats == found.formats


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scheme = ", "cannot be read as a recipe"),
        ('scheme = "int2"', "scheme is 'int2'; use int8, int4, int3, fp8, fp8-block or full"),
        ('rules = [{scheme = "int3"}]', "scheme is None"),
        ('scheme = "int4"\nbits = 3', "has 'bits'; known are scheme, group_size, activations"),
        ('scheme = "int4"\nlayers = 3', "has 'layers'"),
        ('scheme = "int4"\nrules = 3', "'rules' is no list of tables"),
        ('scheme = "int4"\nrules = [{scheme = "int3", layers = "3-"}]', "rule 1: layers are numbers and ranges"),
        ('scheme = "int4"\nrules = [{scheme = "int3", layers = "7-3"}]', "rule 1 names no layer"),
        ('scheme = "int4"\nrules = [{scheme = "int3", layers = true}]', "not True"),
        (
            'scheme = "int4"\nrules = [{scheme = "int3", parts = "up_proj"}]',
            "there is no part 'up_proj'; use attention",
        ),
        ('scheme = "int4"\nrules = [{scheme = "int3", parts = []}]', "names no part"),
        ('scheme = "int8"\ngroup_size = 64', "group_size=64 does not go with int8"),
        ('scheme = "full"\ngroup_size = 64', "group_size=64 does not go with full"),
        ('scheme = "int4"\ngroup_size = 48', "group_size=48 must be one of"),
        ('scheme = "int4"\nactivations = true', "eight-bit ones"),
        ('scheme = "full"\nactivations = true', "activations is true or false"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_recipe(file)
    assert words in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_for_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    recipe = Recipe((Rule(Wanted("int4")), Rule(Wanted("int3"), frozenset({5}))))
    with pytest.raises(ValueError, match="Rule 1 names layer 5; this model has layers 0 to 4"):
        quantize_checkpoint(source, tmp_path / "new", recipe)
    with pytest.raises(ValueError, match="Nothing would be quantised"):
        quantize_checkpoint(source, tmp_path / "new", Recipe((Rule(Wanted(None)),)))
    with pytest.raises(ValueError, match="leave these arguments out"):
        quantize_checkpoint(source, tmp_path / "new", Recipe((Rule(Wanted("int4")),)), group_size=64)
    for command in ([], ["--scheme", "int4", "--budget", "1GB"]):
        done = CliRunner().invoke(app, ["quantize", str(source), str(tmp_path / "new"), *command])
        assert done.exit_code == 2 and "Give one of --scheme, --recipe and --budget" in done.stderr


steps = st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1)), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, min_size=1, max_size=6), st.integers(0, 600))
def test_a_budget_is_kept_and_used(units: list[list[tuple[int, float]]], budget: int) -> None:
    given_steps = {
        (i, "experts"): [Step(Wanted("int8"), size, error) for size, error in of] for i, of in enumerate(units)
    }
    least = sum(min(size for size, _ in of) for of in units)
    if budget < least:
        with pytest.raises(ValueError, match="take"):
            choose(given_steps, budget)
        return
    chosen = choose(given_steps, budget)
    left = budget - sum(step.bytes for step in chosen.values())
    assert left >= 0
    for unit, step in chosen.items():  # nothing that helps would still fit
        assert not [s for s in given_steps[unit] if 0 < s.bytes - step.bytes <= left and s.error < step.error]


def test_a_budget_by_hand() -> None:
    """The layer whose error falls most for a byte goes first, and what does not fit is passed over."""
    few, more = Wanted("int3"), Wanted("int4")
    given_steps = {
        (1, "experts"): [Step(few, 100, 0.04), Step(more, 140, 0.01)],
        (2, "experts"): [Step(few, 100, 0.08), Step(more, 140, 0.01)],
        (2, "attention"): [Step(few, 10, 0.03), Step(more, 14, 0.01)],
    }
    taken = [choose(given_steps, budget) for budget in (210, 214, 250, 254, 300)]
    found = [{unit for unit, step in each.items() if step.wanted == more} for each in taken]
    both = {(2, "attention"), (2, "experts")}
    assert found == [set(), {(2, "attention")}, {(2, "attention")}, both, {*both, (1, "experts")}]


def test_a_build_within_a_budget(source: Path, tmp_path: Path) -> None:
    """Sizes are those of the files; more bytes never mean a larger error; the same command goes on with the same."""
    config = load_config(source)
    sizes = [weight_sizes(config, mixed_plan(config, lambda *_, w=wanted: w)).total for wanted in LADDER]
    spent, errors = [], []
    for part in (0.0, 0.1, 0.7, 1.0):
        budget = int(sizes[0] + part * (sizes[-1] - sizes[0])) + 256  # and the routers' biases
        target = tmp_path / f"{part}"
        done = CliRunner().invoke(app, ["quantize", str(source), str(target), "--budget", str(budget)])
        assert done.exit_code == 0, done.output
        stored = describe(str(target)).bytes["stored"]
        assert stored <= budget
        spent.append(stored)
        manifest = json.loads((target / "axk1-manifest.json").read_text())
        errors.append(sum(error**2 for error in manifest["errors"].values()))
    assert spent == sorted(spent) and errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 100
    kinds = [{each.format.split()[0] for each in describe(str(tmp_path / part)).formats} for part in ("0.1", "0.7")]
    assert "int3" in kinds[0] and len(kinds[0]) > 1 and {"int4", "int8"} <= kinds[1], kinds
    assert mixed_formats(config, mixed_plan(config, lambda *_: LADDER[0])) == ()
    with pytest.raises(CheckpointError, match="with three bits for every matrix it takes"):
        quantize_checkpoint(source, tmp_path / "small", Budget(1000))
