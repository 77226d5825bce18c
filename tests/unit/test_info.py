"""`axk1 info`, `axk1 verify` and docs/weights.md: the published numbers."""

import importlib.util
import json
from pathlib import Path

import pytest
import typer
from tiny import small_model
from typer.testing import CliRunner

from axk1.cli.info import info, size_text
from axk1.cli.verify import verify
from axk1.plan.describe import describe

ROOT = Path(__file__).parents[2]


def run(command, *arguments: str):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


def test_k1():
    found = describe("k1")
    assert (found.total, found.active) == (518_983_059_456, 32_779_332_608)
    assert found.active_without_embedding == 31_604_927_488
    assert (found.tensors, found.mtp_layers, found.layout, found.dtypes) == (976, 0, "released", ("BF16",))
    assert found.bytes["bf16"] == 1_037_966_118_912
    assert found.bytes_per_token["bf16"] == 2 * 31_604_927_488
    per_token = found.cache_bytes_per_token
    assert (per_token.latent, per_token.expanded) == (70_272, 2_498_560)
    assert [cache.context for cache in found.cache] == [4_096, 32_768, 131_072]
    assert found.cache[-1].latent == 70_272 * 131_072
    assert found.parts["routed experts"] == 60 * 192 * 3 * 7_168 * 2_048
    assert sum(found.parts.values()) == found.total


@pytest.mark.parametrize("layout", ["released", "per_expert"])
def test_folder(tmp_path, layout):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path, layout=layout, max_shard_size="20KB")
    found = describe(str(tmp_path))
    stored = dict(model.named_parameters())
    assert found.total == sum(tensor.numel() for tensor in stored.values()) == model.num_parameters()
    assert (found.layout, found.mtp_layers, found.dtypes) == (layout, 1, ("F32",))
    assert found.files == len(list(tmp_path.glob("*.safetensors")))
    mtp = [tensor.numel() for name, tensor in stored.items() if ".layers.3." in name]
    assert found.parts["MTP"] == sum(mtp)
    experts = [
        tensor.numel() for name, tensor in stored.items() if ".mlp.experts." in name and ".layers.3." not in name
    ]
    assert found.parts["routed experts"] == sum(experts)
    idle = sum(experts) * (8 - 3) // 8
    assert found.active == found.total - sum(mtp) - idle - model.model.layers[0].post_mlp_layernorm.weight.numel()


def test_presets_and_unknown_names():
    assert describe("nano").mtp_layers == 1
    assert 0.4e9 < describe("mini").total < 0.7e9
    assert describe("nano").cache[-1].context == 2_048
    with pytest.raises(ValueError, match="neither a folder nor a preset"):
        describe("nowhere")


def test_info_command(tmp_path):
    result = run(info, "k1")
    assert result.exit_code == 0, result.output
    for text in ("518,983,059,456", "32,779,332,608", "976 tensors", "70,272 B", "9.21 GB", "1.04 TB", "no MTP layer"):
        assert text in result.output
    small_model().save_pretrained(tmp_path, layout="per_expert")
    assert "per-expert layout" in run(info, str(tmp_path)).output
    assert json.loads(run(info, "k1", "--json").output)["parts"]["head"] == 163_840 * 7_168


def test_verify_command(tmp_path):
    small_model().save_pretrained(tmp_path)
    result = run(verify, str(tmp_path))
    assert result.exit_code == 0 and "sound" in result.output and "all values finite" in result.output
    assert "values not read" in run(verify, str(tmp_path), "--headers-only").output
    assert json.loads(run(verify, str(tmp_path), "--json").output)["ok"] is True
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    result = run(verify, str(tmp_path), "--json")
    assert result.exit_code == 1
    fault = json.loads(result.output)
    assert fault["ok"] is False and fault["file"] == str(file) and "truncated" in fault["error"]
    plain = run(verify, str(tmp_path))
    assert plain.exit_code == 1 and plain.stderr.startswith(f"Error: {file}: is truncated")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (70_272, "70,272 B"), (1_000_000, "1.00 MB"), (9_210_691_584, "9.21 GB"), (2 * 10**12, "2.00 TB")],
)
def test_sizes(size, text):
    assert size_text(size) == text


def test_weights_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("weights", ROOT / "docs/weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    assert page == module.weights_page(), "run: python docs/weights.py"
    for text in ("518,983,059,456", "8,705,060,864", "`mlp.experts.gate_up_proj` | [192, 4,096, 7,168]"):
        assert text in page
