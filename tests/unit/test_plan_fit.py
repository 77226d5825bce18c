"""What fits where and how fast it can be, against sums worked out by hand and files that `axk1 quantize` writes."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from typer.testing import CliRunner

from axk1 import AXK1Config
from axk1.bench.models import write_random
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.cli.main import app
from axk1.plan import disks
from axk1.plan.advice import changes, limit
from axk1.plan.describe import describe
from axk1.plan.fit import ENGINES, EXPERTS, STREAMING, Load, default_engine, default_format, fit
from axk1.plan.formats import known_formats, tensor_bytes
from axk1.plan.machines import PRESETS, Machine, Unit, described, find_machine
from axk1.plan.memory import GB
from axk1.plan.process import group_limits
from axk1.plan.speed import curve, decode, expert_bytes, prefill
from axk1.plan.weights import config_weights, read_weights, weights_as
from axk1.quantized.plan import KINDS

K1 = AXK1Config.preset("k1")
INT4 = weights_as(K1, "int4-128")
SMALL = AXK1Config(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=128,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    n_routed_experts=8,
    n_group=2,
    topk_group=1,
    num_experts_per_tok=2,
    q_lora_rank=32,
    kv_lora_rank=32,
    num_nextn_predict_layers=1,
)
LOAD = Load(8192)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "source"
    write_random(SMALL, folder, 0)
    return folder


def stored_bytes(folder: Path) -> int:
    """All tensors but the router's biases, which the released file lacks."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if not name.endswith("e_score_correction_bias")]  # noqa: SIM118
            total += sum(opened.get_tensor(name).nbytes for name in names)
    return total


@pytest.mark.parametrize("kind", ["bf16", *KINDS, "int4-32", "int4-64", "int3-32"])
def test_sizes_are_those_of_the_files(source, tmp_path, kind):
    """`axk1 plan`, `axk1 info` and `axk1 quantize` agree to the byte."""
    folder = source
    if kind != "bf16":
        name, _, group = (kind, "", "") if kind in KINDS else kind.partition("-")
        folder = tmp_path / kind
        quantize_checkpoint(source, folder, name, int(group) if group else None)  # pyright: ignore[reportArgumentType]
    found = stored_bytes(folder)
    assert weights_as(SMALL, kind).sizes.total == found
    held = read_weights(folder)
    biases = sum(tensor_bytes(spec) for spec in held.tensors if spec.name.endswith("e_score_correction_bias"))
    assert held.sizes.total - biases == found
    info = describe(str(folder))
    assert info.bytes["stored"] - biases == found
    if kind in info.bytes:
        assert describe(str(source)).bytes[kind] == found
    values = json.loads((folder / "config.json").read_text())
    assert config_weights(values).sizes.total == found  # what a hub's config.json alone says


@pytest.mark.parametrize(
    ("name", "size"),
    [("int4-128", 22_708_224), ("int4-64", 23_396_352), ("int4-32", 24_772_608), ("int3-64", 17_891_328)],
)
def test_an_expert_of_k1_is_a_whole_number_of_pages(name, size):
    found = fit(weights_as(K1, name), PRESETS["laptop-24"], "axk1", LOAD)
    assert expert_bytes(found) == size and size % 4096 == 0


@pytest.mark.parametrize(
    ("bits", "size"), [(3, 227_186_400_256), (4, 292_048_780_288), (6, 421_773_540_352), (8, 551_498_300_416)]
)
def test_sizes_of_mlx_are_those_that_it_wrote(bits, size):
    """docs/mlx.md has them from mlx-lm's own functions; tests/integration/mlx_engine compares."""
    assert weights_as(K1, f"mlx-{bits}").sizes.total == size
    assert f"{size:,}" in (Path(__file__).parents[2] / "docs/mlx.md").read_text(encoding="utf-8")


def test_gguf_types_are_those_of_the_package():
    sizes = pytest.importorskip("gguf").constants.GGML_QUANT_SIZES
    named = {kind.name.lower(): pair for kind, pair in sizes.items()}
    from axk1.plan.formats import GGUF

    assert {name: named[name] for name in GGUF} == GGUF


def test_k1_by_hand():
    """The facts: parameters, bytes and latents of the released model."""
    found = fit(weights_as(K1, "bf16"), PRESETS["8xh200"], "axk1", LOAD)
    assert found.weights.sizes.total == 1_037_966_118_912
    assert found.weights.sizes.per_token == 2 * 31_604_927_488
    (memory,) = found.places
    assert memory.latents == 8192 * 70_272 and memory.weights[EXPERTS] == 60 * 192 * 3 * 7168 * 2048 * 2
    step = decode(found)
    idle = 2 * 7168  # the dense layer's norm after its MLP is stored and never applied
    assert step.bytes["memory"] == pytest.approx(2 * 31_604_927_488 + idle + memory.latents, abs=1)
    attention = 61 * 2 * 64 * (512 + 64 + 512) * 8192
    assert step.flops == 2 * 31_604_927_488 + attention
    assert step.bound == pytest.approx(614e9 / step.bytes["memory"])


@pytest.mark.parametrize(("hits", "bound"), [(0.0, 0.642), (0.5, 1.284), (0.9, 6.42)])
def test_streaming_from_a_disk_by_hand(hits, bound):
    """480 experts of 22.7 MB at 7 GB/s."""
    machine = replace(PRESETS["laptop-24"], host=Unit(24 * GB, 1e15, 1e18))
    step = decode(fit(INT4, machine, "axk1", LOAD), hits)
    assert step.limit == "disk" and step.bytes["disk"] == pytest.approx((1 - hits) * 480 * 22_708_224)
    assert step.bound == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_byte_lies_somewhere(name, engine):
    """On one machine parts and the disk add up to the model; nothing holds more than it may."""
    machine, cluster = PRESETS[name], engine in ("vllm", "sglang")
    weights = weights_as(K1, default_format(engine))
    if cluster and not machine.gpus:
        with pytest.raises(ValueError, match="has no GPU"):
            fit(weights, machine, engine, LOAD)
        return
    found = fit(weights, machine, engine, LOAD)
    streams = not found.on_disk or engine in STREAMING
    assert (found.problem is None) == (bool(found.places) and all(p.free >= 0 for p in found.places) and streams)
    if not cluster:
        held = sum(sum(place.weights.values()) * place.count for place in found.places) + found.on_disk
        assert held == pytest.approx(weights.sizes.total, abs=100)  # shares of several GPUs are whole bytes
    if found.problem is None:
        for step in (decode(found), prefill(found)):
            assert step.bound is not None and step.in_turns is not None and 0 < step.in_turns <= step.bound
    assert limit(found)


@settings(deadline=None, max_examples=30)
@given(memory=st.integers(20, 400), more=st.integers(0, 200), hits=st.floats(0, 0.99))
def test_more_memory_and_more_hits_are_never_slower(memory, more, hits):
    def bound(size: int, share: float | None = None) -> float:
        machine = described(PRESETS["laptop-24"], memory=size)
        return decode(fit(INT4, machine, "axk1", LOAD), share).bound or 0.0

    assert bound(memory) <= bound(memory + more) * (1 + 1e-9)
    assert bound(20, hits) <= bound(20, min(1.0, hits + 0.01)) * (1 + 1e-9)


def test_the_curve_ends_at_the_bound_of_memory():
    found = fit(INT4, PRESETS["laptop-24"], "axk1", LOAD)
    points = curve(found)
    assert points[0].cache == 0 and points[-1].cache == found.experts and points[-1].disk_bytes == 0
    whole = fit(INT4, described(PRESETS["laptop-24"], memory=400), "axk1", LOAD)
    assert points[-1].bound == pytest.approx(decode(whole).bound)
    assert not curve(whole) or whole.on_disk == 0


def test_stages_of_a_cluster_wait_for_each_other():
    """One sequence goes through four stages in turn; four keep all of them busy."""
    bf16 = weights_as(K1, "bf16")
    one, four = (decode(fit(bf16, PRESETS["4x8-h100"], "vllm", Load(8192, n))) for n in (1, 4))
    assert one.bound is not None and four.bound == pytest.approx(4 * one.bound, rel=1e-6)


def test_what_would_change_it():
    found = fit(INT4, PRESETS["laptop-24"], "axk1", LOAD)
    now, names = decode(found).bound or 0.0, [change.what for change in changes(found)]
    assert limit(found) == "reads from the disk" and names[0] == "a disk of 14 GB/s"
    assert all((change.bound or 0.0) > now for change in changes(found))
    small = fit(weights_as(K1, "mlx-4"), PRESETS["mac-128"], "mlx", LOAD)
    assert small.problem and all(change.fits for change in changes(small)) and changes(small)


def test_fp8_on_eight_h100_takes_the_share_that_it_needs():
    fp8 = weights_as(K1, "fp8")
    (usual,) = fit(fp8, PRESETS["8xh100"], "vllm", Load(2048)).places
    (more,) = fit(fp8, PRESETS["8xh100"], "vllm", Load(32_768)).places
    assert usual.usable == 72 * GB < more.usable < 80 * GB
    assert "do not fit" in str(fit(fp8, PRESETS["8xh100"], "vllm", Load(32_768), 0.9).problem)


def test_a_control_group_limits_memory(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    for name, text in (("a/b/memory.max", "max"), ("a/memory.max", "5000"), ("memory/c/memory.limit_in_bytes", "7000")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    groups.write_text("4:memory:/c\n1:cpu:/x\n0::/a/b\n")
    assert sorted(group_limits(groups, root)) == [5000, 7000]
    assert group_limits(tmp_path / "none", root) == []


def test_a_disk_is_measured_by_direct_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "SCRATCH", 2**26)
    try:
        rate = disks.read_rate(tmp_path, block=2**20, seconds=0.2)
    except ValueError as error:  # a file system in memory
        assert "--disk" in str(error)
        return
    assert 10**6 < rate < 10**12 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine", "laptop"], "--machine is 'laptop'; use here, laptop-24"),
        (["nowhere"], "is no checkpoint, no config.json and no preset"),
        (["--scheme", "q7"], "The format 'q7' is unknown"),
        (["--scheme", "mlx-7"], "MLX has bits"),
        (["--engine", "trtllm"], "--engine is 'trtllm'"),
        (["--machine", "laptop-24", "--engine", "vllm"], "laptop-24 has no GPU"),
        (["--hit-rate", "1.5"], "--hit-rate is 1.5"),
        (["--memory", "-1"], "--memory is -1.0"),
        (["--gpus", "2"], "--gpus needs --gpu-memory"),
        (["--context", "200000"], "--context is 200000"),
        (["--machine", "mac-128", "--measure"], "--measure is for this machine"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, words):
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and words in result.stderr


def test_the_command(source, tmp_path):
    result = CliRunner().invoke(app, ["plan", str(source), "--context", "512", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["fits"] and data["machine"]["name"] == "this machine" and data["decode"]["bound"] is None
    assert data["model"]["bytes"] == describe(str(source)).bytes["stored"]
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    quantized = CliRunner().invoke(app, ["plan", str(tmp_path), "--scheme", "int8", "--context", "512", "--json"])
    assert json.loads(quantized.stdout)["model"]["bytes"] == weights_as(SMALL, "int8").sizes.total
    shown = CliRunner().invoke(app, ["plan", "--machine", "laptop-24", "--scheme", "int4-128"], env={"COLUMNS": "120"})
    for text in ("271.46 GB", "70,272 B per token", "First limit: reads from the disk", "90%"):
        assert text in shown.stdout
    listed = CliRunner().invoke(app, ["plan", "--machines"], env={"COLUMNS": "120"})
    assert all(name in listed.stdout for name in PRESETS)


def test_names():
    assert {"bf16", "int4-64", "int3", "mlx-4", "q4_k"} <= set(known_formats())
    assert [default_engine(PRESETS[name]) for name in ("laptop-24", "mac-128", "1x24-256", "8xh100")] == [
        *("axk1", "mlx", "ktransformers", "vllm")
    ]
    assert find_machine("mac-512").unified and isinstance(find_machine(None), Machine)


def test_pages_are_up_to_date():
    module = runpy.run_path(str(Path(__file__).parents[2] / "docs/k1.py"))
    for page in module["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert text == module["with_figures"](text), "run: python docs/k1.py"
