"""Weighted sums of checkpoints: any layout, any cut, one shape."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import edit_json, edit_tensors, same_tensors, tensors_of
from scripted import make_model, make_tokenizer
from typer.testing import CliRunner

from axk1.checkpoint import streaming
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.merge import merge_checkpoints
from axk1.checkpoint.names import Layout
from axk1.cli.main import app
from axk1.modeling.moe import AXK1Router


def make(folder: Path, seed: int, layout: Layout = "released", bias: bool = True, **overrides) -> Path:
    model = make_model(**overrides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    for module in model.bfloat16().modules():
        if isinstance(module, AXK1Router):  # their biases are fp32 in any file
            noise = torch.rand(4, generator=generator)
            module.e_score_correction_bias = noise if bias else torch.zeros(4)
    model.save_pretrained(folder, layout=layout)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Two models; the second one in the other layout, and without router biases, which means zero."""
    folder = tmp_path_factory.mktemp("pair")
    return make(folder / "think", 1), make(folder / "plain", 2, "per_expert", bias=False)


def expected(pair: tuple[Path, Path], tmp_path: Path, weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    convert_checkpoint(pair[1], tmp_path / "same-layout", "released")
    one, two = tensors_of(pair[0]), tensors_of(tmp_path / "same-layout")
    sums = {name: weights[0] * value.float() for name, value in one.items()}
    for name, value in two.items():
        sums[name] = sums[name] + weights[1] * value.float()
    return {name: value.to(one[name].dtype) for name, value in sums.items()}


def test_it_is_the_weighted_sum(pair, tmp_path: Path) -> None:
    merge_checkpoints(pair, [0.8, 0.2], tmp_path / "merged")
    assert same_tensors(tensors_of(tmp_path / "merged"), expected(pair, tmp_path, (0.8, 0.2)))
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "# 0.8 x think + 0.2 x plain" in card and "base_model_relation: merge" in card
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_layout_shards_and_order_do_not_matter(pair, tmp_path: Path) -> None:
    """The sum of both in the other order, in many files of the other layout, brought back."""
    merge_checkpoints(pair, [0.8, 0.2], tmp_path / "one")
    merge_checkpoints(pair[::-1], [0.2, 0.8], tmp_path / "other", max_shard_size="20KB")
    assert len(list((tmp_path / "other").glob("model-*.safetensors"))) > 3
    convert_checkpoint(tmp_path / "other", tmp_path / "back", "released")
    assert same_tensors(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "back"))


def test_all_of_one_is_that_one(pair, tmp_path: Path) -> None:
    merge_checkpoints(pair, [1, 0], tmp_path / "first")
    assert same_tensors(tensors_of(pair[0]), tensors_of(tmp_path / "first"))


def test_the_sum_is_taken_in_fp32(pair, tmp_path: Path) -> None:
    """In bf16 three thirds of a model would not be it."""
    merge_checkpoints([pair[0]] * 3, [1 / 3] * 3, tmp_path / "same")
    for name, value in tensors_of(pair[0]).items():
        assert torch.allclose(tensors_of(tmp_path / "same")[name].float(), value.float(), rtol=2**-8, atol=0)
    merge_checkpoints([pair[0]] * 2, [0.5, 0.5], tmp_path / "halves")
    assert same_tensors(tensors_of(pair[0]), tensors_of(tmp_path / "halves"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_goes_on_where_it_was_cut_off(pair, tmp_path: Path, share: float) -> None:
    merge_checkpoints(pair, [0.8, 0.2], tmp_path / "whole", max_shard_size="20KB")

    def cut(written: int, total: int) -> None:
        if written > share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(pair, [0.8, 0.2], tmp_path / "cut", max_shard_size="20KB", progress=cut)
    assert (tmp_path / "cut" / streaming.STATE).is_file()
    with pytest.raises(CheckpointError, match="no unfinished conversion"):
        merge_checkpoints(pair, [0.7, 0.3], tmp_path / "cut", max_shard_size="20KB")
    written: list[int] = []
    merge_checkpoints(
        pair, [0.8, 0.2], tmp_path / "cut", max_shard_size="20KB", progress=lambda done, total: written.append(done)
    )
    assert written[0] > 0.5 * share * sum(f.stat().st_size for f in (tmp_path / "whole").glob("*.safetensors"))
    assert same_tensors(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.8], "2 checkpoints and 1 weights"), ([0.8, 0.3], "sum to 1.1"), ([float("nan"), 1], "must sum to 1")],
)
def test_weights_that_do_not_fit(pair, tmp_path: Path, weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(pair, weights, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_models_of_other_shapes_are_refused(pair, tmp_path: Path) -> None:
    wider = make(tmp_path / "wider", 3, moe_intermediate_size=8)
    with pytest.raises(CheckpointError, match=r"moe_intermediate_size is 8, and 16 in .*think: only models of one"):
        merge_checkpoints([pair[0], wider], [0.5, 0.5], tmp_path / "merged")
    without = make(tmp_path / "without", 3, num_nextn_predict_layers=0)
    with pytest.raises(CheckpointError, match="num_nextn_predict_layers is 0, and 1"):
        merge_checkpoints([pair[0], without], [0.5, 0.5], tmp_path / "merged")
    other = make(tmp_path / "other", 3)
    edit_json(other / "tokenizer.json", lambda values: values["added_tokens"].pop())
    with pytest.raises(CheckpointError, match="a token must mean the same"):
        merge_checkpoints([pair[0], other], [0.5, 0.5], tmp_path / "merged")


def test_command_line(pair, tmp_path: Path) -> None:
    arguments = ["merge", *map(str, pair), "--weights", "0.8,0.2", "--out", str(tmp_path / "merged")]
    result = CliRunner().invoke(app, [*arguments, "--layout", "per-expert"])
    assert result.exit_code == 0, result.output
    assert "parameters, all values finite" in result.output
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["num_hidden_layers"] == 2
    bad = CliRunner().invoke(app, ["merge", *map(str, pair), "--weights", "a,b", "--out", str(tmp_path / "x")])
    assert bad.exit_code == 2


def test_what_is_not_finite_is_found(pair, tmp_path: Path) -> None:
    broken = make(tmp_path / "broken", 4)
    edit_tensors(broken / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    arguments = ["merge", str(pair[0]), str(broken), "--weights", "0.8,0.2", "--out", str(tmp_path / "merged")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "NaN" in result.output + str(result.exception)
