"""`axk1 serve` on two "machines" of one real Ray cluster: starts, places, answers, stops (`make ray`).

vLLM on CPU refuses Ray, because its CPU platform names no device for it: the first test shows that, and that the
refusal comes back as an exit code with nothing left running. Given that one attribute, all the rest is vLLM's own.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axk1.bench.engines import environment_python

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
PYTHON = environment_python("ray", "AXK1_RAY_PYTHON")
AXK1 = [sys.executable, "-c", "from axk1.cli.main import main; main()"]
PORT = 8124
OPTIONS = ["--engine", "vllm", "--device", "cpu", "--gpus", "1", "--nodes", "2", "--head", "127.0.0.1"]
OPTIONS += ["--tensor", "2", "--context", "512", "--max-requests", "4", "--step-tokens", "512", "--port", str(PORT)]
ENVIRONMENT = {
    "AXK1_VLLM_PYTHON": str(PYTHON),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_ADDRESS": "",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="no environment with vLLM and Ray: `make ray` sets one up"),
]


@pytest.fixture
def platform(tmp_path) -> dict[str, str]:
    """Variables that make vLLM find the platform with a device for Ray, as any platform plugin."""
    info = tmp_path / "axk1_ray_test-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: axk1-ray-test\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.platform_plugins]\naxk1_ray_test = axk1_ray_test:platform\n")
    (tmp_path / "axk1_ray_test.py").write_text(
        "def platform():\n    return 'cpu_ray_platform.RayCpuPlatform'\n", encoding="utf-8"
    )
    return {"PYTHONPATH": f"{tmp_path}:{HERE}:{os.environ.get('PYTHONPATH', '')}"}


@contextmanager
def machines(folder: Path, variables: dict[str, str], *options: str) -> Iterator[list[subprocess.Popen]]:
    """`axk1 serve` of the nano as machine 0 and machine 1; both are stopped at the end if they still run."""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    processes = []
    try:
        for rank in (0, 1):
            command = [*AXK1, "serve", str(ROOT / "models/nano"), *OPTIONS, "--node-rank", str(rank), *options]
            with (folder / f"machine{rank}.log").open("w") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(90)


def log(folder: Path, rank: int) -> str:
    return (folder / f"machine{rank}.log").read_text(errors="replace")


def ask(path: str, data: dict | None = None) -> dict:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"{}")


def wait_until_ready(processes: list[subprocess.Popen], folder: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert [process.poll() for process in processes] == [None, None], log(folder, 0)[-5000:]
        try:
            ask("/health")
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log(folder, 0)[-5000:])


def processes_of_ray() -> set[str]:
    """Command lines of Ray's own processes on this machine."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended
            continue
        if "gcs_server" in words or "raylet/raylet" in words:
            found.add(f"{file.parent.name} {words[:80]}")
    return found


def test_what_stops_vllm_on_cpu_is_its_platform_and_the_exit_code_says_so(tmp_path):
    before = processes_of_ray()
    with machines(tmp_path, {}) as (head, worker):
        assert head.wait(150) == 1
        assert "current platform cpu does not support ray." in log(tmp_path, 0)
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)  # with 1: Ray cannot sign off from a head that is gone
    assert processes_of_ray() <= before


def test_starts_places_answers_and_stops(tmp_path, platform):
    before = processes_of_ray()
    with machines(tmp_path, platform, "--think", "--", "--enforce-eager") as (head, worker):
        wait_until_ready([head, worker], tmp_path)
        question = {"role": "user", "content": "What is 17 + 25 - 9?"}
        body = {
            "model": ask("/v1/models")["data"][0]["id"],
            "messages": [question],
            "temperature": 0,
            "max_tokens": 100,
        }
        answers = {
            think: ask("/v1/chat/completions", {**body, "chat_template_kwargs": {"enable_thinking": think}})
            for think in (True, False)
        }
        default = ask("/v1/chat/completions", body)["choices"][0]["message"]  # --think, where the template says not
        nodes = ray_nodes_of_workers(platform)
        head.send_signal(signal.SIGINT)
        assert head.wait(90) == 0, log(tmp_path, 0)[-3000:]
    text = {think: answer["choices"][0]["message"] for think, answer in answers.items()}
    assert text[True]["reasoning"] and "33" in text[True]["content"]
    assert not text[False]["reasoning"] and text[False]["content"]
    assert (default["reasoning"], default["content"]) == (text[True]["reasoning"], text[True]["content"])
    assert len(nodes) == 2 and len(set(nodes)) == 2
    assert processes_of_ray() <= before


def ray_nodes_of_workers(variables: dict[str, str]) -> list[str]:
    """The Ray node of every bundle that vLLM placed a worker in."""
    code = """
import json, ray
ray.init(address="127.0.0.1:6379", logging_level="error", log_to_driver=False)
groups = ray.util.placement_group_table().values()
placed = [group["bundles_to_node_id"].values() for group in groups if group["state"] == "CREATED"]
print(json.dumps([node for nodes in placed for node in nodes]))
"""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    done = subprocess.run([str(PYTHON), "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
