"""Checkpoints in fp8 with blocks of 128 x 128, of widths that 128 does and does not divide, through every command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, edit_tensors, file_of, tensors_of
from tiny import small_model, tokens
from typer.testing import CliRunner

from axk1 import AXK1ForCausalLM
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.compare import compare_with_source
from axk1.checkpoint.compressed import Wanted
from axk1.checkpoint.files import load_config
from axk1.checkpoint.journal import MANIFEST
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.recipe import Recipe, Rule
from axk1.checkpoint.source import open_source
from axk1.cli.main import app
from axk1.cli.quantize import Kind
from axk1.integrations.llamacpp import tensors as gguf_tensors
from axk1.integrations.llamacpp.tensors import Matrices, Tensor, blocks
from axk1.layerwise.weights import Weights
from axk1.modeling.moe import AXK1Router
from axk1.plan.describe import describe
from axk1.plan.weights import read_weights, weights_as
from axk1.quantized import KINDS, QuantizedExperts, QuantizedLinear, Scheme
from axk1.quantized.formats import dequantize, quantize
from axk1.train.states import trunk_weights

BLOCKS = Scheme("fp8-block")
SHAPE: dict[str, Any] = dict(
    hidden_size=256,
    intermediate_size=300,
    moe_intermediate_size=136,
    q_lora_rank=130,
    kv_lora_rank=144,
    attention_bias=True,
    num_nextn_predict_layers=1,
)
"""Two blocks of inputs; gate and up of 136 rows, a block and eight rows each."""
UP = "model.layers.2.mlp.experts.3.up_proj"
SCALE = f"{UP}.weight_scale"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "source"
    model = small_model(**SHAPE).bfloat16()
    with torch.no_grad():  # blocks of one matrix differ
        for layer in model.model.layers[1:3]:
            layer.mlp.experts.gate_up_proj[:, 136:264] *= 30
            layer.mlp.experts.down_proj[:, :128, 128:] *= 1000
    for router in (part for part in model.modules() if isinstance(part, AXK1Router)):
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    model.save_pretrained(folder, max_shard_size="2MB")
    return folder


@pytest.fixture(scope="module")
def build(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blocks") / "build"
    quantize_checkpoint(source, folder, "fp8-block", activations="fp8", max_shard_size="2MB")
    return folder


def load(folder: Path, **kwargs: Any) -> Any:
    return AXK1ForCausalLM.from_pretrained(folder, **kwargs)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(tokens(2, 9)).logits.float()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Same names, types, shapes and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and torch.equal(tensor.flatten().view(torch.uint8), other[name].flatten().view(torch.uint8))
        for name, tensor in one.items()
    )


def test_what_the_files_hold(source, build):
    stored, plain = tensors_of(build), tensors_of(source)
    fused = plain["model.layers.2.mlp.experts.gate_up_proj"][3]
    for name, exact in (
        ("model.layers.0.self_attn.q_a_proj", plain["model.layers.0.self_attn.q_a_proj.weight"]),
        ("model.layers.0.mlp.up_proj", plain["model.layers.0.mlp.up_proj.weight"]),
        (UP.replace("up", "gate"), fused[:136]),
        (UP, fused[136:]),
        (UP.replace("up", "down"), plain["model.layers.2.mlp.experts.down_proj"][3]),
    ):
        values, scale = quantize(exact, BLOCKS)
        assert same({"": stored[f"{name}.weight"]}, {"": values}) and scale.numel() > 1
        assert same({"": stored[f"{name}.weight_scale"]}, {"": scale.bfloat16()})
    kv_b = "model.layers.0.self_attn.kv_b_proj.weight"
    assert same({"": stored[kv_b]}, {"": plain[kv_b]})


def test_loaded_saved_and_dequantised(build, tmp_path):
    model, plain = load(build, dtype=torch.float32), load(build, dtype=torch.float32)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(QuantizedExperts) == 3 and kinds.count(QuantizedLinear) > 10
    assert model.model.layers[2].mlp.experts.gate_up_proj_scale.shape == (8, 4, 2)
    load(build).save_pretrained(tmp_path / "again", max_shard_size="1MB")
    assert same(tensors_of(tmp_path / "again"), tensors_of(build))
    groups = [json.loads((folder / "config.json").read_text()) for folder in (build, tmp_path / "again")]
    assert groups[0]["quantization_config"] == groups[1]["quantization_config"]
    plain.dequantize()
    assert not [module for module in plain.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)]
    stored = tensors_of(build)
    expected = dequantize(stored[f"{UP}.weight"], stored[SCALE])
    assert torch.equal(plain.model.layers[2].mlp.experts.gate_up_proj[3, 136:], expected)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    asked: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    replies = [each.generate(tokens(2, 5), **asked) for each in (model, plain)]
    assert torch.equal(*replies)


def test_verify_and_the_source(source, build, tmp_path):
    report = verify_checkpoint(build)
    assert report.finite and report.dtypes["F8_E4M3"] > 0 and report.sums
    assert compare_with_source(build, source).otherwise == 0
    folder = Path(shutil.copytree(build, tmp_path / "copy"))
    edit_tensors(file_of(folder, SCALE), lambda t: t.update({SCALE: t[SCALE][:1].clone()}))
    with pytest.raises(CheckpointError, match=r"up_proj.weight_scale' has shape \[1, 2\], .* asks for \[2, 2\]"):
        verify_checkpoint(folder)


def test_a_block_of_another_matrix_is_found(source, build, tmp_path):
    """Whoever wrote the build: a scale in the place of another."""
    folder = Path(shutil.copytree(build, tmp_path / "copy"))
    (folder / MANIFEST).unlink()
    edit_tensors(file_of(folder, SCALE), lambda t: t.update({SCALE: t[SCALE].flip(0).contiguous()}))
    with pytest.raises(CheckpointError, match=r"experts\.3\.up_proj.* no rounding of this source"):
        compare_with_source(folder, source)


def test_sizes_to_the_byte(source, build):
    found, held = describe(str(build)), read_weights(build)
    stored = tensors_of(build)
    assert found.quantization == "fp8-block with eight-bit activations" and held.stored == "fp8-block"
    assert found.bytes["stored"] == sum(tensor.nbytes for tensor in stored.values()) == held.sizes.total
    biases = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith("e_score_correction_bias"))
    assert weights_as(load_config(source), "fp8-block").sizes.total == held.sizes.total - biases
    assert held.group_size == 128 and found.parts == describe(str(source)).parts


def test_layer_by_layer_and_gguf_read_the_same_numbers(build, monkeypatch):
    """In parts, of which each has whole blocks."""
    monkeypatch.setattr(gguf_tensors, "BLOCK", 1)
    plain = load(build, dtype=torch.float32).dequantize().state_dict()
    fused = plain["model.layers.2.mlp.experts.gate_up_proj"]
    with open_source(build) as opened:
        weights = Weights(opened)
        assert torch.equal(weights.tensor("model.layers.2.mlp.experts.gate_up_proj", torch.float32), fused)
        names = ("model.layers.0.mlp.up_proj.weight", f"{UP}.weight", "model.layers.0.self_attn.kv_b_proj.weight")
        for name, exact in zip(names, (plain[names[0]], fused[3, 136:], plain[names[2]]), strict=True):
            tensor = Tensor("", tuple(exact.shape), (name,))
            parts = list(blocks(tensor, Matrices(opened, weights.config), {name: tensor.shape}))
            assert torch.equal(torch.cat(parts), exact) and len(parts) == -(-len(exact) // 128)


def test_mixed_with_other_formats(source, tmp_path):
    recipe = Recipe((Rule(Wanted("int8")), Rule(Wanted("fp8-block", activations=True), parts=frozenset({"experts"}))))
    quantize_checkpoint(source, tmp_path / "mixed", recipe)
    assert "fp8-block with eight-bit activations" in str(describe(str(tmp_path / "mixed")).quantization)
    model = load(tmp_path / "mixed", dtype=torch.float32)
    experts, attention = model.model.layers[1].mlp.experts, model.model.layers[1].self_attn
    assert experts.schemes["down_proj"].in_blocks and attention.o_proj.scheme.kind == "int8"
    plain = load(tmp_path / "mixed", dtype=torch.float32)
    plain.dequantize()
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)


def test_other_blocks_are_refused(build, tmp_path):
    folder = Path(shutil.copytree(build, tmp_path / "copy"))
    edit_json(
        folder / "config.json",
        lambda config: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(
            block_structure=[64, 128]
        ),
    )
    for call in (verify_checkpoint, load, lambda path: describe(str(path))):
        with pytest.raises(CheckpointError, match=r"'block_structure': \[64, 128\].* a scale for 128 x 128 weights"):
            call(folder)


def test_it_is_not_trained(build):
    with pytest.raises(CheckpointError, match="only unquantised checkpoints can be trained"):
        trunk_weights(build)


def test_on_the_command_line(source, tmp_path):
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result.output

    target = str(tmp_path / "build")
    asked = ["quantize", str(source), target, "--scheme", "fp8-block"]
    assert "group_size=128 does not go with fp8-block" in run(*asked, "--group-size", "128", code=2)
    assert "fp8-block" in run(*asked, "--activations", "fp8")
    assert "quantised: fp8-block with eight-bit activations" in run("info", target)
    assert "sound" in run("verify", target)
    assert "this is a rounding of it" in run("verify", target, "--source", str(source))
    planned = json.loads(run("plan", target, "--machine", "8xh200", "--json"))
    assert planned["model"]["stored"] == "fp8-block" and planned["model"]["group_size"] == 128
    new = str(tmp_path / "new")
    merge = ["merge", target, target, "--weights", "0.5,0.5", "--out", new]
    for command in (["convert", target, new, "--layout", "released"], merge):
        assert "is quantised; only unquantised checkpoints can be" in run(*command, code=2)
    assert tuple(kind.value for kind in Kind) == KINDS
