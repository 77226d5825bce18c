"""`axk1 verify BUILD --source SOURCE`: whether a quantised build is what its source gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import edit_json, edit_tensors, file_of
from typer.testing import CliRunner
from virtual_k1 import VirtualCheckpoint, serving, small

from axk1.checkpoint import CheckpointError
from axk1.checkpoint.compare import LIMIT, compare_with_source
from axk1.checkpoint.compressed import DEFAULT_GROUP
from axk1.checkpoint.journal import MANIFEST
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.cli.main import app
from axk1.kernels.rounding import rounded
from axk1.quantized import formats
from axk1.quantized.plan import KINDS

EXPERT = "model.layers.2.mlp.experts.{}.up_proj.weight_packed"


@pytest.fixture(scope="module")
def checkpoint() -> VirtualCheckpoint:
    return VirtualCheckpoint(small(), shards=12, table=1 << 20)


@pytest.fixture(scope="module")
def source(checkpoint, tmp_path_factory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("virtual") / "source")


@pytest.fixture(scope="module")
def int4(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("virtual") / "int4"
    quantize_checkpoint(source, folder, "int4", 32, max_shard_size="1MB")
    return folder


@pytest.fixture
def build(int4, tmp_path) -> Path:
    """A copy to damage, whose manifest is gone: any tool's."""
    folder = Path(shutil.copytree(int4, tmp_path / "build"))
    (folder / MANIFEST).unlink()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_has_the_bits_of_its_source(checkpoint, source, tmp_path, kind):
    quantize_checkpoint(source, tmp_path / kind, kind, 64 if kind in DEFAULT_GROUP else None)
    with serving(checkpoint) as server:
        done: list[int] = []
        found = compare_with_source(tmp_path / kind, server.address, lambda n, total: done.append(n), rounded)
    assert found.otherwise == found.worst == 0 and found.identical > 300
    assert done[-1] == sum(2 * spec.size for held in checkpoint.held.values() for spec in held)


def test_experts_in_each_others_place_are_found(source, build):
    def swap(tensors: dict[str, torch.Tensor]) -> None:
        one, other = EXPERT.format(3), EXPERT.format(4)
        tensors[one], tensors[other] = tensors[other], tensors[one]

    edit_tensors(file_of(build, EXPERT.format(3)), swap)
    with pytest.raises(CheckpointError, match=r"experts\.3\.up_proj.* has a row that is .* no rounding of this source"):
        compare_with_source(build, source)


def test_one_wrong_row_is_found(source, build):
    edit_tensors(file_of(build, EXPERT.format(5)), lambda tensors: tensors[EXPERT.format(5)][7].zero_())
    with pytest.raises(CheckpointError, match=r"experts\.5\.up_proj"):
        compare_with_source(build, source)


def test_a_copied_tensor_must_be_the_sources(source, build):
    name = "model.layers.1.input_layernorm.weight"
    edit_tensors(file_of(build, name), lambda tensors: tensors[name][3].add_(0.5))
    with pytest.raises(CheckpointError, match=r"input_layernorm.weight' is not what stands in .*source"):
        compare_with_source(build, source)


def test_a_build_of_another_tool_is_measured(source, tmp_path, monkeypatch):
    """Rounding without a searched clip: other bits, an error of up to half as much again in a row."""
    with monkeypatch.context() as patch:
        patch.setattr(formats, "CLIPS", {"int4": (1.0,)})
        quantize_checkpoint(source, tmp_path / "plain", "int4", 32)
    with pytest.raises(CheckpointError, match="is not what this version makes of"):
        compare_with_source(tmp_path / "plain", source)
    edit_json(tmp_path / "plain" / MANIFEST, lambda values: values.update(tool="other 1.0"))
    found = compare_with_source(tmp_path / "plain", source)
    assert found.otherwise > 100 and found.identical > 100 and 1.05 < found.worst < 0.6 * LIMIT


def test_what_cannot_be_compared_is_said(source, int4, tmp_path):
    with pytest.raises(CheckpointError, match="is not quantised, so there is no rounding"):
        compare_with_source(source, source)
    with pytest.raises(CheckpointError, match="quantised"):
        compare_with_source(int4, int4)
    other = VirtualCheckpoint(small(num_hidden_layers=5), shards=12, table=1 << 20).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"'model\.layers\.4\..* is missing, and would be"):
        compare_with_source(int4, other)


def test_on_the_command_line(source, int4, build):
    result = CliRunner().invoke(app, ["verify", str(int4), "--source", str(source)])
    assert result.exit_code == 0, result.output
    assert "this is a rounding of it" in result.output and "none otherwise" in result.output
    edit_tensors(file_of(build, EXPERT.format(0)), lambda tensors: tensors[EXPERT.format(0)].neg_())
    result = CliRunner().invoke(app, ["verify", str(build), "--source", str(source), "--json"])
    assert result.exit_code == 1 and "no rounding" in json.loads(result.stdout)["error"]
