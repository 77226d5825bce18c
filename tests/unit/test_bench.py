"""`axk1 bench`: statistics and bounds against numbers made by hand, the weights, the workers, the report."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.bench import meter, plot, report
from axk1.bench.cases import FULL, PATIENCE, QUICK, Case, Clock, Settings
from axk1.bench.client import Worker, WorkerError
from axk1.bench.engines import BASE, WORKERS, environment, parse_engines, python_of, start, weights_for
from axk1.bench.models import (
    BENCH_MODELS,
    Model,
    cache_root,
    check_weights,
    find_model,
    quantized,
    stored_bytes,
    write_random,
)
from axk1.bench.prompts import prompts_for
from axk1.bench.run import Measured, run
from axk1.bench.summary import rotated, summarise
from axk1.bench.turns import patience
from axk1.checkpoint.convert import STATE
from axk1.checkpoint.errors import CheckpointError
from axk1.cli import bench as command
from axk1.cli.main import app
from axk1.plan.bounds import Rates, decode_bound, experts_touched, latent_bytes, prefill_bound, weight_bytes
from axk1.plan.describe import describe

LOAD: dict[str, Any] = dict(dtype="bfloat16", device="cpu", threads=1, max_context=256, max_batch=4, vocabulary=512)
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Model:
    return find_model("bench-tiny", tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def engines(tiny, tmp_path_factory):
    """The workers of axk1 and of transformers, loaded with the same weights."""
    logs = tmp_path_factory.mktemp("logs")
    workers = {name: start(BASE[name], 1, logs) for name in ("axk1", "transformers")}
    for worker in workers.values():
        worker.request("load", path=str(tiny.folder), **LOAD)  # pyright: ignore[reportArgumentType]
    yield workers
    for worker in workers.values():
        worker.close()


# statistics


def test_a_summary_is_median_and_extremes():
    found = summarise([5.0, 1.0, 3.0, 4.0])
    assert (found.median, found.low, found.high, found.rounds) == (3.5, 1.0, 5.0, 4)
    assert found.spread == pytest.approx(4 / 3.5)
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise([])


def test_turns_rotate():
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


# bounds

SMALL: dict[str, Any] = dict(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=8,
    moe_intermediate_size=2,
    num_hidden_layers=2,
    num_attention_heads=1,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    q_lora_rank=3,
    kv_lora_rank=5,
    qk_nope_head_dim=2,
    qk_rope_head_dim=2,
    v_head_dim=3,
    num_nextn_predict_layers=1,
)


def test_bytes_of_a_step_by_hand(tmp_path):
    config = AXK1Config(**SMALL)  # pyright: ignore[reportArgumentType]
    write_random(config, tmp_path / "model", 0)
    sizes = stored_bytes(tmp_path / "model", 2)
    # q_a 12, its norm 3, q_b 12, kv_a 28, its norm 5, kv_b 25, o 12, and three norms of 4
    attention = 12 + 3 + 12 + 28 + 5 + 25 + 12 + 3 * 4
    dense, router, shared, expert = 3 * 32, 4 * 4 + 4, 3 * 8, 3 * 8
    head, final_norm = 40, 4
    both = 2 * attention + dense + router + shared + head + final_norm
    assert weight_bytes(sizes, config) == pytest.approx(2 * (both + 2 * expert))
    assert experts_touched(config, 2) == pytest.approx(3.0)  # 4 x (1 - 1/2 x 1/2)
    assert weight_bytes(sizes, config, 2) == pytest.approx(2 * (both + 3 * expert))
    assert latent_bytes(config) == 2 * 2 * (5 + 2)


def test_bounds_by_hand(tmp_path):
    config, rates = AXK1Config(**SMALL), Rates(1e9, {"bfloat16": 1e6})  # pyright: ignore[reportArgumentType]
    sizes = {"lm_head.weight": 1_000, "model.layers.1.mlp.experts.down_proj": 400, "model.embed_tokens.weight": 9_999}
    assert decode_bound(rates, sizes, config, 100, 1) == pytest.approx(1e9 / (1_000 + 200 + 100 * 28))
    assert decode_bound(rates, sizes, config, 100, 2) == pytest.approx(2e9 / (1_000 + 300 + 2 * 100 * 28))
    assert decode_bound(rates, sizes, config, 0, 1, scale=0.5) == pytest.approx(1e9 / 600)
    # 90 weights besides the head of 40, three tokens; 6 pairs over 2 layers, keys of 4 and values of 3
    flops = 2 * 90 * 3 + 2 * 40 + 2 * 2 * (4 + 3) * 6
    assert prefill_bound(rates, "bfloat16", config, 130, 3) == pytest.approx(3 * 1e6 / flops)
    widened = Rates(1e9, {"bfloat16": 1e6, "float32": 4e6})
    assert prefill_bound(widened, "bfloat16", config, 130, 3) == pytest.approx(3 * 4e6 / flops)


def test_the_bench_model_is_the_issues():
    """440M parameters, 127M of them active; in bf16 and at 24.3 GB/s about 96 tokens per second."""
    config = AXK1Config(**BENCH_MODELS["bench-440m"])
    from axk1.checkpoint.names import expected_tensors

    sizes = {spec.name: 2 * spec.size for spec in expected_tensors(config)}
    assert sum(sizes.values()) / 2 == pytest.approx(440e6, rel=0.01)
    assert weight_bytes(sizes, config) / 2 == pytest.approx(127e6, rel=0.01)
    assert decode_bound(Rates(24.3e9, {}), sizes, config, 0, 1) == pytest.approx(96, rel=0.01)


# weights


def test_random_weights_are_the_same_every_time_and_loadable(tiny, tmp_path):
    write_random(tiny.config, tmp_path / "again", 0)
    for file in sorted(tiny.folder.glob("*.safetensors")):
        first, second = load_file(file), load_file(tmp_path / "again" / file.name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    model = AXK1ForCausalLM.from_pretrained(tiny.folder)
    ids = torch.arange(3, 67)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert 0.3 < logits.float().std() < 3  # neither vanishing nor exploding
    assert describe(str(tiny.folder)).total > 0


@pytest.mark.parametrize(
    "name,value,words",
    [
        ("model.layers.1.mlp.experts.down_proj", 0.0, "is all zero"),
        ("lm_head.weight", float("nan"), "NaN or infinity"),
        ("model.norm.weight", float("inf"), "NaN or infinity"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", 0.0, None),
    ],
)
def test_zeros_and_nans_are_refused(tiny, tmp_path, name, value, words):
    tensors = load_file(tiny.folder / "model-00001.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if words is None:
        check_weights(tmp_path)
        return
    with pytest.raises(ValueError, match=words) as caught:
        check_weights(tmp_path)
    assert name in str(caught.value)


def test_a_checkpoint_of_zeros_is_one_line_on_the_command_line(tiny, tmp_path):
    tensors = {name: torch.zeros_like(t) for name, t in load_file(tiny.folder / "model-00001.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny.folder / "config.json").read_text())
    result = CliRunner().invoke(app, ["bench", str(tmp_path), "--engines", "axk1", "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 2
    assert "is all zero; a benchmark of it would mean nothing" in result.stderr and result.stderr.count("\n") == 1


def test_the_per_expert_copy_is_the_same_model(tiny):
    copy = weights_for(BASE["vllm"], tiny)
    ours, theirs = (AXK1ForCausalLM.from_pretrained(folder).state_dict() for folder in (tiny.folder, copy))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = stored_bytes(copy)
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names  # vLLM reads random memory without it
    assert "model.layers.0.post_mlp_layernorm.weight" in names


def test_quantised_copies_are_made_once(tiny):
    folder = quantized(tiny, "int8")
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert folder / "config.json" in written
    assert quantized(tiny, "int8") == folder != quantized(tiny, "int4")
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written
    (folder / STATE).write_text("{}")
    with pytest.raises(CheckpointError, match="no unfinished conversion"):  # somebody else's: not taken for finished
        quantized(tiny, "int8")


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("AXK1_BENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "axk1" / "bench"
    monkeypatch.setenv("AXK1_BENCH_CACHE", str(tmp_path / "named"))
    assert cache_root() == tmp_path / "named"
    assert cache_root(tmp_path / "given") == tmp_path / "given"


# workers


def test_workers_answer_and_agree(engines):
    replies = {name: worker.request("answers", prompts=8, tokens=32)["ids"] for name, worker in engines.items()}
    same = sum(a == b for a, b in zip(replies["axk1"], replies["transformers"], strict=True))
    assert same >= 7  # bf16 decides near ties differently
    for worker in engines.values():
        assert worker.request("prefill", tokens=40, batch=2, seed=1)["seconds"] > 0
        for context, batch in ((1, 1), (50, 1), (50, 3), (50, 3)):
            assert worker.request("decode", context=context, batch=batch, tokens=2)["seconds"] > 0
        cached = worker.request("memory")["cache_bytes_per_token"]
        assert cached == latent_bytes(AXK1Config(**BENCH_MODELS["bench-tiny"]))
        assert 10**8 < worker.peak_rss < 10**11


def test_a_worker_stands_still_between_its_turns(engines):
    worker = engines["axk1"]
    worker.request("memory")
    state = Path(f"/proc/{worker._process.pid}/stat")
    if state.exists():
        assert _soon(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def test_a_failed_operation_is_one_sentence_and_the_worker_lives(engines):
    with pytest.raises(WorkerError, match=r"transformers failed at 'prefill': TypeError: .*\.log\)\.$"):
        engines["transformers"].request("prefill", nonsense=1)
    assert engines["transformers"].request("memory")["peak_rss"] > 0


def test_a_worker_that_ends_or_hangs_is_reported(tmp_path):
    code = "import sys; sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(1)"
    worker = Worker("Peer", [sys.executable, "-c", code], os.environ, tmp_path / "log")
    with pytest.raises(WorkerError, match=r"Peer ended during 'load' \(out of luck\); see "):
        worker.request("load")
    worker.close()
    with pytest.raises(WorkerError, match=r"ended before it was asked|ended during"):
        worker.request("load")
    worker = Worker("Peer", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ, tmp_path / "log")
    with pytest.raises(WorkerError, match="did not answer 'load' in 1 s"):
        worker.request("load", timeout=1)
    worker.close()


def test_what_libraries_print_does_not_disturb_the_answers(tmp_path):
    code = (
        "import os; from protocol import serve\n"
        "serve({'noise': lambda: (print('x'), os.write(1, b'y'), os.system('echo z'), {'n': 1})[-1]})"
    )
    environment = {**os.environ, "PYTHONPATH": str(WORKERS)}
    worker = Worker("Noisy", [sys.executable, "-u", "-c", code], environment, tmp_path / "log")
    assert worker.request("noise")["n"] == 1
    worker.close()
    assert sorted((tmp_path / "log").read_text().split()) == ["x", "yz"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise")
def test_a_stopped_worker_ends_with_the_benchmark(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom axk1.bench.client import Worker\n"
        f"worker = Worker('w', [sys.executable, '-c', 'from protocol import serve; serve(dict(a=dict))'], "
        f"{{**os.environ, 'PYTHONPATH': {str(WORKERS)!r}}}, Path({str(tmp_path / 'log')!r}))\n"
        "worker.request('a')\nprint(worker._process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert _soon(lambda: not Path(f"/proc/{done.stdout.strip()}").exists())


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within ten seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_filled_context_takes_the_same_step_as_a_computed_one():
    """What a long context is timed by: the cache has its length, and a step after it sees all of it."""
    sys.path.insert(0, str(WORKERS))
    try:
        from torch_engine import TorchEngine  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    engine = TorchEngine(AXK1ForCausalLM(AXK1Config(**BENCH_MODELS["bench-tiny"])).eval())
    with torch.inference_mode():
        cache = engine.context(37, 2)
    assert cache.get_seq_length() == 37 and engine.context(37, 2) is cache
    engine.decode(37, 5, 2)
    assert cache.get_seq_length() == 37 and engine.context(38, 2) is not cache


def test_replies_with_drafts_are_those_without(tmp_path):
    model = find_model("bench-tiny-mtp", tmp_path)
    worker = start(BASE["axk1"], 1, tmp_path)
    try:
        worker.request("load", path=str(model.folder), **LOAD | {"dtype": "float32"})  # pyright: ignore[reportArgumentType]
        prompts = [[5, 6, 7], [40, 41]]
        plain = worker.request("reply", prompts=prompts, tokens=6)
        drafted = worker.request("reply", prompts=prompts, tokens=6, drafts=2)
        end = plain["replies"][0][2]
        ended = worker.request("reply", prompts=prompts, tokens=6, drafts=2, stop_ids=[end])
    finally:
        worker.close()
    assert [len(reply) for reply in plain["replies"]] == [6, 6]
    assert drafted["replies"] == plain["replies"]
    assert plain["acceptance"] is None and 0 <= drafted["acceptance"] <= 1
    first = plain["replies"][0]
    assert ended["replies"][0] == first[: first.index(end) + 1] and plain["seconds"] > 0


def test_replies_of_trained_models_end(tmp_path):
    nano = find_model(str(Path(__file__).parents[2] / "models/nano"), tmp_path)
    random = find_model("bench-tiny-mtp", tmp_path)
    assert len(prompts_for(nano, 3).ids) == 3 and set(prompts_for(nano, 3).stop_ids) == {6080, 6093}
    assert prompts_for(random, 2).stop_ids == []


# engines


@pytest.mark.parametrize(
    "text,words",
    [
        ("axk1,nonsense", "there are axk1, transformers, vllm, llamacpp"),
        ("axk1,axk1", "name each engine once"),
        ("", "name each engine once"),
        ("llamacpp:q2", "there are: llamacpp:f16, llamacpp:q8_0, llamacpp:q4_0"),
        ("axk1@nowhere", "the folder of a checkpoint"),
        ("vllm", r"run `make bench-peers` in a clone of axk1, or let AXK1_BENCH_VLLM name a Python"),
    ],
)
def test_wrong_engines_are_explained(monkeypatch, text, words):
    monkeypatch.setenv("AXK1_BENCH_VLLM", "/nowhere/python")
    with pytest.raises(ValueError, match=words):
        parse_engines(text)


def test_engines_by_default_are_those_that_are_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("AXK1_BENCH_VLLM", "/nowhere/python")
    (tmp_path / "libllama.so").touch()
    monkeypatch.setenv("AXK1_LLAMACPP", str(tmp_path))
    monkeypatch.setenv("AXK1_BENCH_MLX", "/nowhere/python")
    assert [engine.name for engine in parse_engines(None)] == ["axk1", "transformers", "llamacpp"]
    assert [engine.scale for engine in parse_engines("llamacpp:q8_0,llamacpp:q4_0")] == [8.5 / 16, 4.5 / 16]


def test_vllm_is_measured_without_our_plugin(monkeypatch):
    monkeypatch.setenv("AXK1_BENCH_VLLM", sys.executable)
    monkeypatch.setenv("VLLM_PLUGINS", "axk1")
    assert environment(BASE["vllm"], threads=1)["VLLM_PLUGINS"] == ""


@pytest.mark.skipif(python_of(BASE["llamacpp"]) is None, reason="llama.cpp is not installed: make bench-peers")
def test_llamacpp_computes_the_same_model(tiny, tmp_path):
    _assert_same_answers("llamacpp", tiny, AXK1ForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(python_of(BASE["vllm"]) is None, reason="vLLM is not installed: make bench-peers")
def test_vllm_computes_the_same_model(tiny, tmp_path):
    _assert_same_answers("vllm", tiny, AXK1ForCausalLM.from_pretrained(tiny.folder, dtype=torch.bfloat16), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(python_of(BASE["mlx"]) is None, reason="mlx-lm is not installed: make bench-peers")
def test_mlx_computes_the_same_model(tiny, tmp_path):
    _assert_same_answers("mlx", tiny, AXK1ForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32), tmp_path)


def _assert_same_answers(name: str, model: Model, ours: AXK1ForCausalLM, logs: Path) -> None:
    """Most probable next tokens, where ours is not nearly tied."""
    sys.path.insert(0, str(WORKERS))
    try:
        from torch_engine import TorchEngine  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    ids = TorchEngine(ours).prompt(16, 48, seed=3)
    with torch.inference_mode():
        best = ours(input_ids=ids, logits_to_keep=1).logits[:, -1].float().topk(2)
    worker = start(BASE[name], 1, logs)
    try:
        how = LOAD | BASE[name].load_options
        worker.request("load", path=str(weights_for(BASE[name], model)), **how)  # pyright: ignore[reportArgumentType]
        theirs = worker.request("answers", prompts=16, tokens=48)["ids"]
    finally:
        worker.close()
    sure = (best.values[:, 0] - best.values[:, 1] > 0.1).tolist()
    pairs = [(a, b) for a, b, counts in zip(best.indices[:, 0].tolist(), theirs, sure, strict=True) if counts]
    assert len(pairs) >= 8 and all(a == b for a, b in pairs), pairs


# the whole run

SHORT = Settings((20, 150), (30,), (3,), 20, rounds=1, tokens=3, seconds=9.0, prefilled_to=100, meter_seconds=0.05)


@pytest.fixture(scope="module")
def measured(tiny) -> Measured:
    patch = pytest.MonkeyPatch()
    patch.setitem(meter.BANDWIDTH_BYTES, "cpu", 2**22)
    patch.setitem(meter.MATMUL_SIZE, "cpu", 64)
    patch.setattr(meter, "BESIDE_BYTES", 2**22)
    patch.setattr(meter, "BESIDE_SECONDS", 0.01)
    settings = replace(SHORT, rounds=2)
    steps: list[tuple[str, int, int]] = []
    lines: list[str] = []
    try:
        found = run(tiny, parse_engines("axk1,transformers"), settings, lambda *step: steps.append(step), lines.append)
    finally:
        patch.undo()
    assert all(done <= total for _, done, total in steps) and len(steps) > 20
    assert sum("round 2" in line for line in lines) == 8 and lines[1].startswith("axk1: loaded in ")
    return found


def test_the_json_holds_everything(measured):
    data = json.loads(json.dumps(report.to_dict(measured)))
    assert list(data) == [
        *("schema", "date", "commit", "machine", "settings", "limits", "model", "reference", "engines", "results"),
        "same_replies",
    ]
    assert (data["schema"], data["reference"], data["model"]["name"]) == (1, "axk1", "bench-tiny")
    cases = ["decode at 20", "decode at 150", "prefill of 30", "decode at 20, batch 3"]
    assert [(row["case"], row["engine"]) for row in data["results"]] == [
        (case, engine) for case in cases for engine in ("axk1", "transformers")
    ]
    for row in data["results"]:
        assert len(row["values"]) == row["rounds"] == 2 and row["low"] <= row["median"] <= row["high"]
        assert row["share_of_bound"] == pytest.approx(row["median"] / row["bound"])
        assert len(row.get("beside", "")) == (2 if row["kind"] == "decode" else 0)
        if row["kind"] == "decode":  # the same bound, of another bandwidth each turn
            best = max(data["limits"]["bandwidth"].values())
            shares = [row["share_of_bound"] * value / row["median"] * best for value in row["values"]]
            shares = [share / rate for share, rate in zip(shares, row["beside"], strict=True)]
            assert min(shares) <= row["share_at_the_time"] <= max(shares)
    ours, theirs = data["results"][:2]
    assert theirs["ratio"] == pytest.approx(ours["median"] / theirs["median"]) and ours["ratio"] == 1
    for engine in data["engines"]:
        assert engine["load_seconds"] > 0 and engine["error"] == ""
        assert engine["cache_bytes_per_token"] == data["model"]["latent_bytes_per_token"]
        assert engine["same_answers"] >= 7 and engine["answers"] == 8


@pytest.fixture
def quick_meter(monkeypatch):
    monkeypatch.setitem(meter.BANDWIDTH_BYTES, "cpu", 2**22)
    monkeypatch.setitem(meter.MATMUL_SIZE, "cpu", 64)
    monkeypatch.setattr(meter, "BESIDE_BYTES", 2**22)
    monkeypatch.setattr(meter, "BESIDE_SECONDS", 0.01)


class StoppedAfter(Clock):
    """A clock on which a number of finished measurements is all the time that there is."""

    def __init__(self, lines: list[str], count: int) -> None:
        super().__init__(1e6)
        self.lines, self.count = lines, count

    @property
    def left(self) -> float:
        return 0.0 if sum("round" in line for line in self.lines) >= self.count else 1e6

    def part(self, parts: int) -> Clock:
        return self


def test_what_does_not_fit_into_the_time_is_left_out_and_said(tiny, quick_meter):
    lines: list[str] = []
    settings = replace(SHORT, rounds=2, budget=60.0)
    found = run(tiny, parse_engines("axk1"), settings, lambda *_: None, lines.append, StoppedAfter(lines, 3))
    data = report.to_dict(found)
    assert [len(row["values"]) for row in data["results"]] == [2, 1, 0, 0]
    notes = report.notes(data)
    assert any(note.startswith("axk1: not measured: the time of a quick run was over; --full") for note in notes)
    assert any("1 to 2 rounds" in note for note in notes) and any("A quick run of 60 s" in note for note in notes)
    assert "stopped" not in data and data["settings"]["budget"] == 60.0


def test_an_engine_whose_time_is_over_has_not_failed(tiny, quick_meter, monkeypatch):
    """The clock ends while it measures: nothing is wrong with it, and what it measured before stays."""
    lines: list[str] = []
    clock = StoppedAfter(lines, 3)
    request = Worker.request

    def slow(self, operation, timeout=600.0, **arguments):
        if operation == "prefill" and clock.count == 3:
            clock.count = 0
            raise WorkerError("axk1 did not answer 'prefill' in 1 s; see its log.")
        return request(self, operation, timeout, **arguments)

    monkeypatch.setattr(Worker, "request", slow)
    found = run(tiny, parse_engines("axk1"), replace(SHORT, budget=60.0), lambda *_: None, lines.append, clock)
    data = report.to_dict(found)
    assert [len(row["values"]) for row in data["results"]] == [1, 1, 0, 0]
    notes = report.notes(data)
    assert any("the time of a quick run was over" in note for note in notes)
    assert not any(note.startswith("Failed") for note in notes) and data["engines"][0]["error"] == ""


def test_a_quick_run_ends_in_time():
    clock = Clock(0.2)
    assert 0 < clock.part(4).left <= 0.05 and Clock().left == Clock().part(3).left == float("inf")
    assert 0 < patience(QUICK, clock) <= 1.0 and patience(QUICK, Clock(100.0)) == 40.0
    assert patience(QUICK, Clock(100.0), first=True) == pytest.approx(100, abs=1)  # kernels may have to be built
    assert patience(FULL, Clock()) == PATIENCE
    assert QUICK.budget is not None and QUICK.budget < 180 - 20  # the rest is for what begins before and ends after


def test_a_peer_that_cannot_be_prepared_is_left_out(tiny, quick_meter, monkeypatch):
    def weights(engine, model):
        if engine.base == "transformers":
            raise ValueError("bench-tiny could not be written for it")
        return weights_for(engine, model)

    monkeypatch.setattr("axk1.bench.run.weights_for", weights)
    lines: list[str] = []
    engines = parse_engines("axk1,transformers")
    found = run(tiny, engines, replace(SHORT, contexts=(20,)), lambda *_: None, lines.append)
    data = report.to_dict(found)
    assert "transformers: left out: bench-tiny could not be written for it" in lines
    assert "Failed: bench-tiny could not be written for it." in report.notes(data)
    assert [bool(row["values"]) for row in data["results"]] == [True, False] * 3


def test_an_engine_that_hangs_is_ended(tmp_path):
    worker = Worker("Peer", [sys.executable, "-c", "while True: pass"], os.environ, tmp_path / "log")
    with pytest.raises(WorkerError, match="did not answer 'load' in 1 s"):
        worker.request("load", timeout=1)
    assert worker._process.wait(10) == -signal.SIGKILL  # it would take the time of the others
    worker.close()
    command = [sys.executable, "-c", "input(); print('Hello!'); input()"]
    worker = Worker("Peer", command, os.environ, tmp_path / "log")
    with pytest.raises(WorkerError, match="answered 'load' with no JSON"):
        worker.request("load")
    worker.close()


def test_the_results_page_keeps_other_sections(measured, tmp_path):
    page, data = tmp_path / "benchmarks" / "RESULTS.md", report.to_dict(measured)
    report.write_results(page, data)
    other = {**data, "model": {**data["model"], "name": "another"}}
    report.write_results(page, other)
    elsewhere = {**data, "machine": {**data["machine"], "instruction_set": "NEON"}}
    report.write_results(page, elsewhere)
    report.write_results(page, {**data, "commit": "1234567890ab"})
    text = page.read_text()
    assert text.startswith("# Results\n") and text.count("## bench-tiny on ") == 2 and text.count("## another on ") == 1
    assert text.count("(NEON)\n") == 1 and f"({data['machine']['instruction_set']})\n" in text
    assert "commit 1234567890ab" in text and data["machine"]["processor"] in text and data["date"] in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1  # both tables have six columns
    assert any("| decode at 150 | axk1 |" in line for line in rows)


def test_the_plot_is_an_svg_with_a_curve_an_engine(measured):
    root = ET.fromstring(plot.draw(report.to_dict(measured)))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"axk1", "transformers", "bandwidth bound", "20", "150"} <= set(texts)
    assert plot.decode_curves(report.to_dict(measured)).keys() == {"axk1", "transformers", "bound"}
    with pytest.raises(ValueError, match="no decoding at batch 1"):
        plot.draw({"results": [], "reference": "axk1"})


def test_an_engine_that_fails_or_does_not_reach_is_said(measured):
    failed = replace(measured.entries[1], error="transformers ended during 'decode'; see log.", values={})
    case = measured.cases[1]
    failed.notes = {case: "not measured beyond 100 tokens, which it has to compute"}
    data = report.to_dict(replace(measured, entries=[measured.entries[0], failed]))
    notes = report.notes(data)
    assert "Failed: transformers ended during 'decode'; see log." in notes
    assert "transformers: not measured beyond 100 tokens, which it has to compute." in notes
    assert all(cell == "-" for row in report.tables(data)[0].rows if row[1] == "transformers" for cell in row[2:])


def test_cases_fit_into_the_models_context():
    settings = Settings((264, 2_048, 4_096), (2_048, 4_096), (1, 8), tokens=32)
    assert settings.cases(2_048) == [
        Case("decode", 264),
        Case("decode", 2_048 - 34),
        Case("prefill", 2_048),
        Case("decode", 264, 8),
    ]


def test_the_command_writes_what_it_is_asked_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(meter.BANDWIDTH_BYTES, "cpu", 2**22)
    monkeypatch.setitem(meter.MATMUL_SIZE, "cpu", 64)
    files = [tmp_path / name for name in ("out.json", "out.svg", "out.md")]
    arguments = ["bench", "bench-tiny", "--engines", "axk1", "--contexts", "10", "--prefill", "0", "--batch", "1"]
    arguments += ["--rounds", "1", "--tokens", "2", "--threads", "1", "--cache", str(tiny.cache.parent)]
    for option, file in zip(("--json", "--plot", "--write"), files, strict=True):
        arguments += [option, str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "decode at 10" in result.stdout and "Limits measured in this run" in result.stdout
    assert all(file.stat().st_size > 100 for file in files)
    progress = (tmp_path / "out.progress").read_text()
    assert "decode at 10: axk1, round 1: " in progress and all(line in result.stderr for line in progress.splitlines())


def test_ctrl_c_keeps_what_was_measured(tiny, tmp_path, quick_meter, monkeypatch):
    seen: list[str] = []

    def finished(self, text: str) -> None:
        seen.append(text)
        if sum("round" in line for line in seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command._Watch, "finished", finished)
    arguments = ["bench", "bench-tiny", "--engines", "axk1", "--contexts", "10,20", "--rounds", "2", "--tokens", "2"]
    result = CliRunner().invoke(app, [*arguments, "--threads", "1", "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 130, result.output
    assert "Not complete: stopped by Ctrl-C" in result.stdout and "decode at 10" in result.stdout
    (file,) = (tmp_path / "cache" / "results").glob("*.json")
    data = json.loads(file.read_text())
    assert file.stem == report.file_name("bench-tiny", "bfloat16", data["machine"]["instruction_set"])
    assert [len(row["values"]) for row in data["results"]] == [2, 0, 0, 0] and data["stopped"]
    assert data["engines"][0]["peak_rss"] > 10**8


def test_ctrl_c_before_anything_is_measured_ends_the_command(tiny, quick_meter):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, parse_engines("axk1"), SHORT, lambda *_: None, interrupt)


def test_files_are_named_by_the_instruction_set():
    assert report.file_name("bench-440m", "bfloat16", "AVX-512+bf16") == "bench-440m-bfloat16-avx-512-bf16"
    assert report.file_name("nano", "float32", "NEON") == "nano-float32-neon"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--rounds", "0"], "--rounds is 0; it must be at least 1."),
        (["--seconds", "nan"], "--seconds is nan; it must be a number above 0."),
        (["--seconds", "-1"], "--seconds is -1.0; it must be a number above 0."),
        (["--contexts", "a"], "--contexts is 'a'; give whole numbers, separated by commas."),
        (["--dtype", "int3"], "--dtype is 'int3'"),
        (["--engines", "sglang"], "'sglang' is unknown"),
        (["--sweep"], "--sweep measures long contexts, which do not fit into a quick run; add --full."),
        (["nowhere"], "neither a checkpoint folder nor a bench model"),
    ],
)
def test_wrong_options_are_one_line(arguments, words, tmp_path):
    result = CliRunner().invoke(app, ["bench", "--cache", str(tmp_path), *arguments])
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
