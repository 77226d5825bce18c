"""Quantised checkpoints: written from either layout, resumed, loaded without compressed-tensors, saved bit for bit."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from checkpoints import INDEX, edit_json, edit_tensors, file_of, tensors_of
from tiny import small_model, tokens
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from axk1 import AXK1ForCausalLM, AXK1Model
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.convert import STATE, convert_checkpoint
from axk1.checkpoint.files import load_config
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.streaming import Reader
from axk1.modeling.moe import AXK1Experts, AXK1Router
from axk1.plan.describe import describe
from axk1.plan.weights import weight_sizes
from axk1.quantized import KINDS, QuantizedExperts, QuantizedLinear
from axk1.quantized.formats import dequantize, quantize
from axk1.quantized.plan import FP8, plan_of

# widths of 64 and 32, and one (q_lora_rank) that int4 has no group for
SHAPE: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    q_lora_rank=20,
    v_head_dim=32,
    attention_bias=True,
    num_nextn_predict_layers=1,
)
EXPERT = "model.layers.2.mlp.experts.3.up_proj"
KEPT = ("mlp.gate.weight", "embed_tokens.weight", "lm_head.weight")
PACKED = ("int4", "int3")


def save(folder: Path, dtype: torch.dtype, **kwargs: Any) -> Path:
    model = small_model(**SHAPE).to(dtype)
    for router in (part for part in model.modules() if isinstance(part, AXK1Router)):
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    model.save_pretrained(folder, **kwargs)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("source"), torch.bfloat16, max_shard_size="40KB")


@pytest.fixture(scope="module")
def quantized(source, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantized")
    for kind in KINDS:
        quantize_checkpoint(source, root / kind, kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def copy(quantized, tmp_path):
    return lambda kind: Path(shutil.copytree(quantized[kind], tmp_path / kind))


def load(folder: Path, **kwargs: Any) -> Any:
    return AXK1ForCausalLM.from_pretrained(folder, **kwargs)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, 7)).logits.float()


def raw(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    data = tensor.contiguous().flatten().view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), data.numpy().tobytes()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Same names, types, shapes and bits, fp8 and its NaN included."""
    return one.keys() == other.keys() and all(raw(tensor) == raw(other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_file(source, quantized, kind):
    """Matrices rounded as by `quantize`, with the names of compressed-tensors; all other tensors as they were."""
    plain = {**tensors_of(source)}
    for name in [name for name in plain if ".experts." in name]:
        fused, base = plain.pop(name), name.rpartition(".")[0]
        for expert, matrix in enumerate(fused):
            parts = zip(("gate", "up"), matrix.chunk(2), strict=True) if "gate_up" in name else [("down", matrix)]
            plain.update({f"{base}.{expert}.{part}_proj.weight": rows for part, rows in parts})
    stored, plan = tensors_of(quantized[kind]), plan_of(load_config(quantized[kind]))
    expected: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        module = name.removesuffix(".weight")
        inside = ".layers." in name and tensor.dim() == 2 and not name.endswith(KEPT)
        scheme = plan.scheme(module) if plan and inside else None
        kept = module.endswith("kv_b_proj") if kind in FP8 else kind in PACKED and tensor.shape[-1] == 20
        assert bool(scheme) == (inside and not kept), name
        if scheme is None:
            expected[name] = tensor
            continue
        values, scale = quantize(tensor, scheme)
        expected[f"{module}.weight_scale"] = scale.bfloat16()
        expected[f"{module}.weight_packed" if scheme.packed else name] = values
        if scheme.packed:
            expected[f"{module}.weight_shape"] = torch.tensor(tensor.shape)
    assert same(stored, expected)
    assert {path.name for path in quantized[kind].iterdir()} == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "README.md",
        "axk1-manifest.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_give_the_same_file(source, quantized, tmp_path, kind):
    convert_checkpoint(source, tmp_path / "per_expert", "per_expert", "25KB")
    quantize_checkpoint(tmp_path / "per_expert", tmp_path / "new", kind, max_shard_size="25KB")
    assert (tmp_path / "new" / INDEX).exists()
    assert same(tensors_of(tmp_path / "new"), tensors_of(quantized[kind]))
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "new", quantized[kind]))
    assert one == other and one["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize("size", ["50GB", "20KB"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loaded_and_saved_bit_for_bit(tmp_path, dtype, kind, size):
    folder = save(tmp_path / "source", dtype)
    quantize_checkpoint(folder, tmp_path / "one", kind)
    model = load(tmp_path / "one")
    assert model.dtype == dtype and not model.training and "compressed_tensors" not in sys.modules
    kinds = [type(module) for module in model.modules() if type(module) in (QuantizedLinear, QuantizedExperts)]
    assert kinds.count(QuantizedExperts) == 3
    model.save_pretrained(tmp_path / "two", max_shard_size=size)
    assert (tmp_path / "two" / INDEX).exists() == (size != "50GB")
    assert same(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    again = load(tmp_path / "two")
    assert same(again.state_dict(), model.state_dict()) and torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_the_dequantised_weights_do(quantized, kind):
    model, plain = load(quantized[kind], dtype=torch.float32), load(quantized[kind], dtype=torch.float32)
    assert model.is_quantized and model.model.layers[1].self_attn.o_proj.weight_scale.dtype == torch.float32
    plain.dequantize()
    assert not plain.is_quantized and plan_of(plain.config) is None
    assert not [module for module in plain.modules() if isinstance(module, QuantizedLinear | QuantizedExperts)]
    assert any(isinstance(module, AXK1Experts) for module in plain.modules())
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-4)
    stored = tensors_of(quantized[kind])
    values = stored.get(f"{EXPERT}.weight_packed", stored.get(f"{EXPERT}.weight"))
    assert values is not None
    expected = dequantize(values, stored[f"{EXPERT}.weight_scale"])
    assert torch.equal(plain.model.layers[2].mlp.experts.gate_up_proj[3, 32:], expected)
    ids = tokens(2, 5)
    generated = [m.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None) for m in (model, plain)]
    assert torch.equal(*generated)
    with torch.no_grad():
        drafts = [m(ids, output_mtp_logits=True).mtp_logits[0] for m in (model, plain)]
    torch.testing.assert_close(*drafts, rtol=1e-4, atol=1e-4)


def test_close_to_the_source(source, quantized):
    full = logits(load(source, dtype=torch.float32))
    errors = {kind: (logits(load(quantized[kind], dtype=torch.float32)) - full).norm() for kind in KINDS}
    assert (
        errors["int8"] < errors["fp8"] < errors["int4"] < errors["int3"] < full.norm()
        and errors["fp8-block"] < errors["int4"] < 0.5 * full.norm()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_models_are_saved_as_ordinary_ones(quantized, tmp_path, kind):
    plain = load(quantized[kind], dtype=torch.float32).dequantize()
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    report = verify_checkpoint(tmp_path)
    assert report.layout == "released" and set(report.dtypes) == {"F32"}
    assert same(load(tmp_path).state_dict(), plain.state_dict())
    torch.testing.assert_close(logits(load(tmp_path)), logits(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_ways_of_loading(quantized, kind):
    reference = load(quantized[kind])
    for model in (
        AutoModelForCausalLM.from_pretrained(quantized[kind]),
        load(quantized[kind], config=load_config(quantized[kind])),
        load(quantized[kind], config=reference.config),
        load(quantized[kind], device_map="cpu"),
    ):
        assert same(model.state_dict(), reference.state_dict())
    trunk = AutoModel.from_pretrained(quantized[kind])
    assert isinstance(trunk, AXK1Model)
    bare = {name.removeprefix("model."): tensor for name, tensor in reference.state_dict().items()}
    bare.pop("lm_head.weight")
    assert same(trunk.state_dict(), bare)
    head = AutoModelForSequenceClassification.from_pretrained(quantized[kind], num_labels=3)
    assert type(head.score) is torch.nn.Linear and head.score.out_features == 3
    fewer = load(quantized[kind], num_nextn_predict_layers=0)
    assert not fewer.model.mtp_layers and torch.equal(logits(fewer), logits(reference))
    half = load(quantized[kind], dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_is_saved_and_loaded_alone(quantized, tmp_path, kind):
    trunk = AXK1Model.from_pretrained(quantized[kind])
    trunk.save_pretrained(tmp_path)
    assert not [name for name in tensors_of(tmp_path) if name.startswith("model.")]
    assert same(AXK1Model.from_pretrained(tmp_path).state_dict(), trunk.state_dict())
    verify_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_offload_to_disk(quantized, tmp_path, kind):
    places = {f"model.layers.{i}": "disk" if i > 1 else "cpu" for i in range(4)}
    rest = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    model = load(quantized[kind], device_map={**places, **rest}, offload_folder=tmp_path / "offload")
    experts = model.model.layers[2].mlp.experts
    assert {buffer.device.type for buffer in experts.buffers()} == {"meta"}
    torch.testing.assert_close(logits(model), logits(load(quantized[kind])), rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "saved")
    assert same(tensors_of(tmp_path / "saved"), tensors_of(quantized[kind]))


def test_activations(source, quantized, tmp_path):
    for kind in ("int8", "fp8"):
        quantize_checkpoint(source, tmp_path / kind, kind, activations=kind)
        assert same(tensors_of(tmp_path / kind), tensors_of(quantized[kind]))
        group = json.loads((tmp_path / kind / "config.json").read_text())["quantization_config"]["config_groups"]
        number = "int" if kind == "int8" else "float"
        asked = {"num_bits": 8, "type": number, "symmetric": True, "strategy": "token", "dynamic": True}
        assert group["group_0"]["input_activations"] == asked
    exact, rounded = (logits(load(root / "int8", dtype=torch.float32)) for root in (quantized["int8"].parent, tmp_path))
    assert torch.equal(exact, rounded)  # two rows of seven tokens are few
    many = tokens(4, 20)
    with torch.no_grad():
        exact, rounded = (
            load(root / "int8", dtype=torch.float32)(many).logits for root in (quantized["int8"].parent, tmp_path)
        )
    assert 0 < (exact - rounded).norm() < 0.1 * exact.norm()


class Crash(Exception):
    """Stands for a power cut."""


def test_resumes_after_a_crash(source, quantized, tmp_path):
    def crash(done, total):
        if done > 0.5 * total:
            raise Crash

    with pytest.raises(Crash):
        quantize_checkpoint(source, tmp_path / "new", "int4", max_shard_size="10KB", progress=crash)
    with pytest.raises(CheckpointError):
        load(tmp_path / "new")
    finished = {file: file.stat().st_ino for file in (tmp_path / "new").glob("model-*.safetensors")}
    assert finished
    others: list[dict[str, Any]] = [{"scheme": "int8"}, {"scheme": "int4", "group_size": 32}]
    for other in others:
        with pytest.raises(CheckpointError, match="not empty"):
            quantize_checkpoint(source, tmp_path / "new", max_shard_size="10KB", **other)
    seen = []
    quantize_checkpoint(
        source, tmp_path / "new", "int4", max_shard_size="10KB", progress=lambda n, t: seen.append(n / t)
    )
    assert {file: file.stat().st_ino for file in finished} == finished
    assert seen[0] > 0.3 and seen[-1] == 1
    assert same(tensors_of(tmp_path / "new"), tensors_of(quantized["int4"]))
    assert not (tmp_path / "new" / STATE).exists()


@pytest.mark.parametrize("layout", ["released", "per_expert"])
def test_memory_stays_at_one_matrix(source, tmp_path, monkeypatch, layout):
    convert_checkpoint(source, tmp_path / "source", layout)
    read, sizes = Reader.__call__, []

    def watch(self, piece):
        tensor = read(self, piece)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(Reader, "__call__", watch)
    quantize_checkpoint(tmp_path / "source", tmp_path / "new", "int4")
    assert max(sizes) == max(tensor.numel() for tensor in tensors_of(source).values() if tensor.dim() == 2)
    assert sum(sizes) == sum(tensor.numel() for tensor in tensors_of(source).values())


def refused(call: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and text.count(". ") <= 1, text
    return text


def change_group(config: dict[str, Any], **changes: Any) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)


DAMAGE: list[tuple[str, Any, str]] = [
    ("int8", lambda t: t.pop(f"{EXPERT}.weight_scale"), "lacks tensor 'model.layers.2.mlp.experts.3.up_proj.weight_s"),
    ("int4", lambda t: t.pop(f"{EXPERT}.weight_packed"), "lacks tensor"),
    ("int4", lambda t: t.update({f"{EXPERT}.weight_g_idx": torch.zeros(4)}), "holds tensor"),
    (
        "int3",
        lambda t: t.update({f"{EXPERT}.weight_packed": torch.zeros(32, 6, dtype=torch.int32)}),
        "as I32, expected",
    ),
    ("int3", lambda t: t[f"{EXPERT}.weight_scale"].fill_(torch.inf), "holds infinity"),
    ("int8", lambda t: t.update({f"{EXPERT}.weight": torch.zeros(32, 64)}), "stored as F32, expected one of I8"),
    ("fp8", lambda t: t.update({f"{EXPERT}.weight_scale": torch.ones(1)}), "has shape [1]"),
    (
        "int4",
        lambda t: t.update({f"{EXPERT}.weight_packed": torch.zeros(32, 4, dtype=torch.int32)}),
        "has shape [32, 4]",
    ),
    ("int8", lambda t: t[f"{EXPERT}.weight_scale"].fill_(torch.nan), "holds NaN"),
    ("fp8", lambda t: t[f"{EXPERT}.weight"].view(torch.uint8)[3, 4].fill_(255), "holds NaN"),
]


@pytest.mark.parametrize(("kind", "damage", "words"), DAMAGE)
def test_damaged_files_are_refused_by_verify_and_by_loading(copy, kind, damage, words):
    folder = copy(kind)
    edit_tensors(file_of(folder, "lm_head.weight"), damage)
    assert words in refused(lambda: verify_checkpoint(folder))
    assert words in refused(lambda: load(folder, check_values=True))


@pytest.mark.parametrize("kind", PACKED)
def test_a_wrong_shape_beside_a_weight_is_refused(copy, kind):
    folder = copy(kind)
    edit_tensors(file_of(folder, "lm_head.weight"), lambda t: t[f"{EXPERT}.weight_shape"].add_(1))
    assert "says [33, 65]" in refused(lambda: verify_checkpoint(folder))


def test_truncated_and_alien_files(copy, source, tmp_path):
    folder = copy("int8")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    for call in (verify_checkpoint, load, lambda path: describe(str(path))):
        assert "truncated or damaged" in refused(lambda call=call: call(folder))
    folder = copy("int4")
    edit_json(folder / "config.json", lambda config: change_group(config, symmetric=False))
    for call in (verify_checkpoint, load, lambda path: describe(str(path))):
        text = refused(lambda call=call: call(folder))
        assert text.startswith(str(folder / "config.json")) and "'symmetric': False" in text
    folder = copy("fp8")
    edit_json(folder / "config.json", lambda config: config["quantization_config"].update(quant_method="gptq"))
    for call in (verify_checkpoint, lambda path: describe(str(path))):
        assert "is quantised by 'gptq'" in refused(lambda call=call: call(folder))
    edit_json(folder / "config.json", lambda config: config.pop("quantization_config"))
    assert "lacks" in refused(lambda: verify_checkpoint(folder)) or "surplus"
    folder = Path(shutil.copytree(source, tmp_path / "plain"))
    plan = json.loads((copy_of(tmp_path, "int8") / "config.json").read_text())["quantization_config"]
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=plan))
    assert "lacks tensor" in refused(lambda: load(folder))


def copy_of(root: Path, kind: str) -> Path:
    return root / kind


def test_mixed_formats_load(copy, quantized):
    """Two formats in one file, as other tools write them: int8 experts, and the rest in fp8."""
    folder = copy("fp8")
    int8 = tensors_of(quantized["int8"])
    edit_tensors(folder / "model.safetensors", lambda t: t.update({k: v for k, v in int8.items() if ".experts." in k}))
    groups = json.loads((quantized["int8"] / "config.json").read_text())["quantization_config"]["config_groups"]
    experts = {**groups["group_0"], "targets": [r"re:.*mlp\.experts\.\d+\..*"]}
    edit_json(
        folder / "config.json",
        lambda config: config["quantization_config"]["config_groups"].update(group_1=experts),
    )
    assert describe(str(folder)).quantization == "fp8, int8"
    model = load(folder)
    assert model.model.layers[1].mlp.experts.gate_up_values.dtype == torch.int8
    assert model.model.layers[1].self_attn.o_proj.values.dtype == torch.float8_e4m3fn
    edit_json(
        folder / "config.json",
        lambda config: config["quantization_config"]["config_groups"]["group_1"].update(targets=["re:.*[0-9].up_proj"]),
    )
    assert "do not go together" in refused(lambda: load(folder))


def test_wrong_requests(source, quantized, tmp_path):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"scheme": "int2"}, "scheme='int2' must be one of int8, int4, int3, fp8, fp8-block"),
        ({"scheme": "int8", "activations": "fp8"}, "activations='fp8' does not go with scheme='int8'"),
        ({"scheme": "int4", "activations": "int4"}, "does not go with"),
        ({"scheme": "int3", "activations": "int8"}, "does not go with"),
        ({"scheme": "fp8-block", "activations": "fp8-block"}, "does not go with"),
        ({"scheme": "int4", "group_size": 256}, "group_size=256"),
        ({"scheme": "fp8", "group_size": 128}, "group_size=128 does not go with fp8: .* fp8-block one for 128 x 128"),
    ]
    for arguments, words in wrong:
        with pytest.raises(ValueError, match=words):
            quantize_checkpoint(source, tmp_path / "new", **arguments)
    text = refused(lambda: quantize_checkpoint(quantized["int8"], tmp_path / "new", "int8"))
    assert "only unquantised checkpoints can be quantised" in text
    text = refused(lambda: convert_checkpoint(quantized["int8"], tmp_path / "new"))
    assert "only unquantised checkpoints can be converted" in text
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="not empty"):
        quantize_checkpoint(source, quantized["fp8"], "int8")
    with pytest.raises(ValueError, match="layout='per_expert'"):
        load(quantized["int8"]).save_pretrained(tmp_path / "new", layout="released")


def test_a_source_with_nan_is_refused(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    key = "model.layers.1.mlp.experts.gate_up_proj"
    edit_tensors(file_of(folder, key), lambda t: t[key][2, 40, 3].fill_(torch.nan))
    text = refused(lambda: quantize_checkpoint(folder, tmp_path / "new", "int4"))
    assert f"tensor {key!r} holds NaN or infinity" in text and str(folder) in text


@pytest.mark.parametrize("kind", KINDS)
def test_info_counts_the_models_own_parameters(source, quantized, kind):
    plain, found = describe(str(source)), describe(str(quantized[kind]))
    assert (found.parts, found.active, found.mtp_layers) == (plain.parts, plain.active, 1)
    assert found.layout == "per_expert" and plain.quantization is None and kind in str(found.quantization)
    stored = tensors_of(quantized[kind])
    assert found.tensors == len(stored)
    assert found.bytes["stored"] == sum(tensor.nbytes for tensor in stored.values()) < plain.bytes["stored"]
    assert found.bytes_per_token["stored"] < plain.bytes_per_token["stored"]
    assert plain.bytes_per_token["stored"] == pytest.approx(plain.bytes_per_token["bf16"], rel=1e-3)  # biases are fp32
    config = load_config(quantized[kind])
    biases = sum(tensor.nbytes for name, tensor in stored.items() if "e_score" in name)
    assert weight_sizes(config, plan_of(config)).total == found.bytes["stored"] - biases
    report = verify_checkpoint(quantized[kind])
    assert (report.parameters, report.tensors, report.finite) == (found.total, len(stored), True)


def test_command_line(source, quantized, tmp_path):
    from axk1.cli.info import info
    from axk1.cli.quantize import quantize as command
    from axk1.cli.verify import verify

    app = typer.Typer()
    for function in (command, info, verify):
        app.command()(function)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    target = str(tmp_path / "new")
    output = run("quantize", str(source), target, "--scheme", "int4", "--group-size", "32", "--max-shard-size", "40KB")
    assert "int4" in output and "weight file(s)" in output
    assert "quantised: int4 in groups of 32" in run("info", target) and "as stored" in run("info", target)
    assert "sound" in run("verify", target)
    target = str(tmp_path / "w8a8")
    run("quantize", str(source), target, "--scheme", "int8", "--activations", "int8")
    assert "quantised: int8 with eight-bit activations" in run("info", target)
    assert "--group-size" in run("quantize", "--help")
