"""Hardware, sizes of parallelism and the exact commands: pure functions, no engine."""

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from axk1.integrations.launch import sglang, vllm
from axk1.integrations.launch.order import SPARE, Engine, Order
from axk1.plan import hardware as machines
from axk1.plan.hardware import Hardware, find_hardware, parse_nvidia_smi
from axk1.plan.memory import GB, Parallel, Step
from axk1.plan.placement import Wish, broken_rules, candidates, choose, choose_with_share
from axk1.plan.weights import released_weights

STEP = Step(8192, 64)
H100, H200 = Hardware(8, 80 * GB, name="H100"), Hardware(8, 141 * GB, name="H200")
CLUSTER = Hardware(8, 80 * GB, 4, "H100")
WEIGHTS = {stored: released_weights(stored) for stored in ("bf16", "fp8", "int4")}
DRAFTING = released_weights("bf16", mtp=True)


def order(hardware=CLUSTER, stored="bf16", engine: Engine = "vllm", wish=None, weights=None, **values) -> Order:
    wish = wish or Wish(drafts=values.get("drafts", 0))
    choice = choose(weights or WEIGHTS[stored], hardware, wish, STEP, spare=SPARE[engine])
    return Order("skt/A.X-K1", engine, hardware, choice, STEP, **{"head": "node0", **values})


def pairs(words: list[str]) -> dict[str, str]:
    """Options and their values; a flag has none."""
    following = [*words[1:], "--"]
    return {word: "" if after.startswith("--") else after for word, after in zip(words, following, strict=True)}


@pytest.mark.parametrize(
    ("hardware", "stored", "wish", "expected"),
    [
        (CLUSTER, "bf16", Wish(), Parallel(8, 4)),
        (CLUSTER, "bf16", Wish(drafts=1), Parallel(32, 1, 1, True)),
        (CLUSTER, "bf16", Wish(tensor=32), Parallel(32, 1, 1, True)),
        (CLUSTER, "bf16", Wish(tensor=32, expert=False), Parallel(32)),
        (H200, "fp8", Wish(), Parallel(8)),
        (H200, "fp8", Wish(data=8), Parallel(1, 1, 8, True)),
        (H100, "int4", Wish(), Parallel(8)),
        (H100, "int4", Wish(expert=True), Parallel(8, 1, 1, True)),
        (Hardware(32, 80 * GB, device="cpu"), "bf16", Wish(), Parallel(32)),
        (Hardware(32, 80 * GB), "bf16", Wish(), Parallel(32, 1, 1, True)),
        (Hardware(6, 141 * GB), "int4", Wish(), Parallel(2, 3)),  # 64 heads are not divisible by 6
    ],
)
def test_choice(hardware, stored, wish, expected):
    weights = DRAFTING if wish.drafts else WEIGHTS[stored]
    assert choose(weights, hardware, wish, STEP).parallel == expected


def test_context_is_cut_to_what_fits_only_when_none_is_asked_for():
    tight = Hardware(8, 45 * GB)
    choice = choose(WEIGHTS["int4"], tight, Wish(), STEP)
    assert choice.context == choice.memory.tokens < 131_072
    assert "context cut from 131,072" in "\n".join(choice.reasons)
    assert choose(WEIGHTS["int4"], tight, Wish(context=4096), STEP).context == 4096
    with pytest.raises(ValueError, match=r"does not fit on 8 x GPU of 45.0 GB: each GPU would hold 44.5 GB"):
        choose(WEIGHTS["int4"], tight, Wish(context=131_072), STEP)


@pytest.mark.parametrize(
    ("hardware", "stored", "wish", "message"),
    [
        (H100, "bf16", Wish(), r"each GPU would hold .* \(weights 130"),
        (CLUSTER, "bf16", Wish(tensor=6), "is not the number of GPUs"),
        (Hardware(3, 600 * GB), "bf16", Wish(tensor=3), "64 attention heads cannot be divided by 3"),
        (H100, "int4", Wish(context=200_000), "the model was made for 1 to 131072 tokens"),
        (Hardware(8, 80 * GB, 4), "int4", Wish(tensor=32, expert=False), "into multiples of 128, which share a scale"),
    ],
)
def test_what_cannot_be_is_said(hardware, stored, wish, message):
    with pytest.raises(ValueError, match=message):
        choose(WEIGHTS[stored], hardware, wish, STEP)


def test_rules():
    assert broken_rules(WEIGHTS["bf16"], Parallel(8, 4)) == []
    assert broken_rules(WEIGHTS["bf16"], Parallel(1, 1, 5, True)) == ["192 experts cannot be divided by 5"]
    rest = "cannot be divided by 32 into multiples of 128, which share a scale"
    assert broken_rules(WEIGHTS["int4"], Parallel(32, 1, 1, True)) == [
        f"18432 columns of the dense MLP {rest}",  # 576 each: four groups and a half
        f"2048 columns of the shared experts {rest}",
    ]
    assert broken_rules(WEIGHTS["bf16"], Parallel(1, 62)) == ["61 layers cannot fill 62 stages"]


@pytest.mark.parametrize("drafts", [0, 1])
def test_candidates_use_all_gpus_once(drafts):
    found = list(candidates(CLUSTER, Wish(drafts=drafts)))
    assert len(found) == len(set(found)) and {parallel.gpus for parallel in found} == {32}
    assert found[0] == (Parallel(32) if drafts else Parallel(8, 4))


def test_vllm_on_one_machine():
    (command,) = vllm.commands(order(H200, "fp8", think=True, api_key="k3y", port=9000, extra=("--seed", "1")))
    options = pairs(list(command.arguments))
    assert command.arguments[:5] == ("python", "-m", "vllm.entrypoints.cli.main", "serve", "skt/A.X-K1")
    assert options["--tensor-parallel-size"] == "8" and options["--port"] == "9000" and options["--seed"] == "1"
    assert options["--reasoning-parser"] == options["--tool-call-parser"] == "axk1"
    assert json.loads(options["--default-chat-template-kwargs"]) == {"enable_thinking": True}
    assert not {"--pipeline-parallel-size", "--distributed-executor-backend", "--speculative-config"} & set(options)
    assert command.environment == {"VLLM_API_KEY": "k3y"}
    assert "k3y" not in str(command) and "VLLM_API_KEY=***" in str(command)


def test_vllm_on_four_machines_through_ray():
    head, serve = vllm.commands(order(api_key="k3y"))
    assert head.background and head.arguments[-1] == "--block" and "--num-gpus=8" in head.arguments
    options = pairs(list(serve.arguments))
    assert (options["--tensor-parallel-size"], options["--pipeline-parallel-size"]) == ("8", "4")
    assert options["--distributed-executor-backend"] == "ray"
    assert serve.environment["RAY_ADDRESS"] == "node0:6379" and serve.wait_for == ("node0", 6379)
    (join,) = vllm.commands(order(rank=3))
    assert join.arguments[3:] == ("start", "--address=node0:6379", "--num-gpus=8", "--block")
    assert join.wait_for == ("node0", 6379)
    (alone,) = vllm.commands(order(head=None, ray_address="10.0.0.1:6379"))
    assert alone.environment["RAY_ADDRESS"] == "10.0.0.1:6379" and alone.arguments == serve.arguments


def test_vllm_drafts_and_data_parallel():
    drafts = pairs(vllm.arguments(order(drafts=2, weights=DRAFTING)))
    assert json.loads(drafts["--speculative-config"]) == {"method": "mtp", "num_speculative_tokens": 2}
    options = pairs(vllm.arguments(order(H200, "fp8", wish=Wish(data=8))))
    assert (options["--tensor-parallel-size"], options["--data-parallel-size"]) == ("1", "8")
    assert "--enable-expert-parallel" in options


def test_sglang_on_four_machines():
    (command,) = sglang.commands(order(engine="sglang", drafts=1, weights=DRAFTING, rank=2, api_key="k3y"))
    options = pairs(list(command.arguments))
    assert (options["--tp-size"], options["--ep-size"]) == ("32", "32")
    assert (options["--nnodes"], options["--node-rank"]) == ("4", "2")
    assert options["--dist-init-addr"] == "node0:20000"
    assert options["--speculative-num-draft-tokens"] == "2"
    assert json.loads(options["--default-chat-template-kwargs"]) == {"enable_thinking": False}
    assert options["--config"] == "api-key.yaml" and yaml.safe_load(command.files["api-key.yaml"]) == {"api-key": "k3y"}
    assert "k3y" not in str(command) and "k3y" not in " ".join(command.arguments)


@pytest.mark.parametrize("key", ["k3y", "12345", "true", "a: b # c", '"', "\\", "null", "- x", "ключ"])
def test_sglang_gets_any_key_by_a_file(key):
    (command,) = sglang.commands(order(engine="sglang", rank=0, api_key=key))
    assert yaml.safe_load(command.files["api-key.yaml"]) == {"api-key": key}
    assert key not in command.arguments and "--api-key" not in command.arguments


def test_sglang_reads_one_file_only():
    with pytest.raises(ValueError, match="one --config only"):
        sglang.commands(order(engine="sglang", rank=0, api_key="k", extra=("--config", "mine.yaml")))


def test_sglang_copies_of_the_attention_lie_inside_the_tensor_group():
    options = pairs(sglang.arguments(order(H200, "fp8", "sglang", Wish(data=4))))
    assert (options["--tp-size"], options["--attn-dp-size"], options["--ep-size"]) == ("8", "4", "8")
    assert options["--chunked-prefill-size"] == str(4 * STEP.tokens)


def test_sglang_leaves_room_for_activations():
    made = order(H200, "fp8", "sglang")
    memory, share = made.choice.memory, float(pairs(sglang.arguments(made))["--mem-fraction-static"])
    left = (1 - share) * made.hardware.memory
    assert left > memory.activations + memory.reserve and share * made.hardware.memory > memory.weights


def test_order_checks():
    with pytest.raises(ValueError, match="--node-rank is 4; with --nodes 4 it goes from 0 to 3"):
        order(rank=4)
    with pytest.raises(ValueError, match="--nodes 4 needs --head"):
        order(head=None)


@pytest.mark.parametrize(
    ("text", "visible", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559\n" * 8, None, (8, 81559 * 2**20, "NVIDIA H100 80GB HBM3")),
        ("A, 10\n" * 4, "1,3", (2, 10 * 2**20, "A")),
        ("A, 10\n" * 4, "GPU-1f2e,GPU-77aa", (2, 10 * 2**20, "A")),
        ("A, 10\n" * 4, "2,7,1", (1, 10 * 2**20, "A")),  # CUDA stops at the first that does not exist
        ("A, 10\n", "", None),
        ("No devices were found\n", None, None),
    ],
)
def test_nvidia_smi(text, visible, expected):
    found = parse_nvidia_smi(text, visible)
    assert (found and (found.gpus, found.memory, found.name)) == expected


def test_unequal_gpus():
    with pytest.raises(ValueError, match="differ in memory"):
        parse_nvidia_smi("A, 10\nB, 20\n")
    assert parse_nvidia_smi("A, 10\nB, 20\n", "1") is not None


def test_found_and_given_hardware(monkeypatch):
    monkeypatch.setattr(machines, "_from_torch", lambda: None)
    monkeypatch.setattr(machines, "_from_nvidia_smi", lambda: None)
    with pytest.raises(ValueError, match="No GPU is found here"):
        find_hardware()
    assert find_hardware(4, 8, 80) == Hardware(8, 80 * GB, 4)
    assert str(find_hardware(4, 8, 80)) == "4 machines with 8 x GPU of 80.0 GB"
    monkeypatch.setattr(machines, "_from_nvidia_smi", lambda: H100)
    assert find_hardware() == H100 and find_hardware(gpus=4).gpus == 4
    with pytest.raises(ValueError, match="--gpus is 16, but this machine has 8"):
        find_hardware(gpus=16)
    cpu = find_hardware(device="cpu", gpus=2)
    assert (cpu.gpus, cpu.device) == (2, "cpu") and cpu.memory > GB
    wrong: list[dict[str, Any]] = [{"nodes": 0}, {"gpus": 0}, {"memory_gb": 0.5}, {"device": "tpu"}]
    for each in wrong:
        with pytest.raises(ValueError, match="--"):
            find_hardware(**each)


def test_gpus_read_only_their_own_experts_where_files_have_them_one_by_one():
    """vLLM filters by names: fused experts, as released in bf16, have none of their own."""
    own = Wish(expert=True)
    for stored, filtered in (("int4", True), ("bf16", False)):
        hardware = H100 if stored == "int4" else Hardware(8, 300 * GB)
        made = order(hardware, stored, wish=own, per_expert=WEIGHTS[stored].per_expert)
        assert ("--enable-ep-weight-filter" in vllm.arguments(made)) is filtered
    assert "--enable-ep-weight-filter" not in vllm.arguments(order(H100, "int4", per_expert=True))  # slices of all


def test_direct_reads_where_the_package_for_them_is_installed():
    made = order(H100, "int4", loader="instanttensor")
    assert pairs(vllm.arguments(made))["--load-format"] == "instanttensor"
    chosen = vllm.arguments(replace(made, extra=("--load-format", "safetensors")))
    assert chosen.count("--load-format") == 1 and "instanttensor" not in chosen
    assert "--load-format" not in vllm.arguments(order(H100, "int4"))


def test_more_of_the_memory_is_taken_only_where_it_is_needed():
    """fp8 on eight H100: 66 GB of weights each, and of the usual 90% hardly anything left."""
    choice, share = choose_with_share(WEIGHTS["fp8"], H100, Wish(), STEP, None)
    assert share == 0.93 and choice.context >= 32_768
    assert choose_with_share(WEIGHTS["fp8"], H100, Wish(context=2048), STEP, None)[1] == 0.9
    assert choose_with_share(WEIGHTS["fp8"], H100, Wish(), STEP, 0.9)[0].context < 32_768
    assert choose_with_share(WEIGHTS["int4"], H100, Wish(), STEP, None)[1] == 0.9
    with pytest.raises(ValueError, match="does not fit"):
        choose_with_share(WEIGHTS["bf16"], H100, Wish(), STEP, None)
