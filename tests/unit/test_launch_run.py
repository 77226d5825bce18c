"""`axk1 serve`: what it prints, what it starts, signals, exit codes."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.integrations.launch import run as runner
from axk1.integrations.launch.order import Command

K1 = ["serve", "skt/A.X-K1", "--weights", "bf16", "--gpus", "8", "--gpu-memory", "80", "--nodes", "4"]


def serve(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"AXK1_VLLM_PYTHON": "", "RAY_ADDRESS": ""})


def python(code: str, **options) -> Command:
    return Command((sys.executable, "-c", textwrap.dedent(code)), **options)


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(runner, "find_engine", lambda engine: None)


@pytest.fixture
def fake_engine(tmp_path, monkeypatch):
    """A Python whose `-m vllm.entrypoints.openai.api_server` writes down its arguments and ends with code 7."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    code = f"import pathlib, sys; pathlib.Path({str(tmp_path / 'seen')!r}).write_text(repr(sys.argv[1:])); sys.exit(7)"
    (package / "api_server.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(runner, "find_engine", lambda engine: Path(sys.executable))
    return tmp_path / "seen"


@pytest.mark.usefixtures("no_engine")
def test_dry_run_prints_plan_and_commands_of_every_machine():
    result = serve(*K1, "--engine", "vllm", "--dry-run", "--", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "1,037.97 GB in bf16" in result.stdout and "pipeline parallel 4" in result.stdout
    head, rest = result.stdout.split("machine 0:\n")[1].split("machines 1 to 3, each:\n")
    assert "--head --port=6379" in head and "RAY_ADDRESS=HEAD:6379" in head and head.strip().endswith("--seed 1")
    assert rest.startswith("$ python -m ray.scripts.scripts start --address=HEAD:6379")


@pytest.mark.usefixtures("no_engine")
def test_the_example_of_the_page_is_what_is_printed():
    page = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("axk1 serve") and line.endswith("--dry-run"))
    example = page.split(command)[1].split("```text\n")[1].split(" ...\n```")[0]
    result = serve(*shlex.split(command)[1:])
    assert result.exit_code == 0 and result.stdout.startswith(example)


@pytest.mark.usefixtures("no_engine")
def test_the_plan_for_a_cpu_speaks_of_processes():
    machine = ["--weights", "bf16", "--engine", "vllm", "--device", "cpu", "--dry-run"]
    plan = serve("serve", "k1", *machine, "--gpus", "8", "--gpu-memory", "900").stdout.partition("$ ")[0]
    assert "each process" in plan and "GPU" not in plan and "CUDA" not in plan
    refused = serve("serve", "k1", *machine, "--gpus", "1", "--gpu-memory", "9").stderr
    assert "each process would hold" in refused and "GPU" not in refused


@pytest.mark.usefixtures("no_engine")
def test_json_and_secrets():
    result = serve(*K1, "--engine", "sglang", "--json", "--api-key", "k3y", "--think", "--node-rank", "3")
    found = json.loads(result.stdout)
    assert "k3y" not in result.stdout and list(found["machines"]) == ["3"]
    words = found["machines"]["3"][0]["arguments"]
    assert words[words.index("--node-rank") + 1] == "3" and '{"enable_thinking": true}' in words
    assert found["parallel"] == {"tensor": 8, "pipeline": 4, "data": 1, "expert": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tgi"], "--engine is 'tgi'; use vllm or sglang"),
        ([], "--engine is missing; use vllm or sglang"),
        (["--engine", "vllm"], "needs --head"),
        (
            ["--engine", "vllm", "--head", "a"],
            "vllm is not installed here. In a clone of axk1, pip install '.[vllm]' does it",
        ),
        (["--engine", "vllm", "--dtype", "fp8", "--dry-run"], "--dtype is 'fp8'; use auto, bfloat16"),
        (["--engine", "vllm", "--mtp", "-1"], "--mtp is -1; it must be at least 0"),
        (["--engine", "vllm", "--fraction", "1.5"], "--fraction is 1.5"),
        (
            ["--engine", "vllm", "--node-rank", "-1", "--dry-run"],
            "--node-rank is -1; with --nodes 4 it goes from 0 to 3",
        ),
        (["--engine", "vllm", "--data", "64", "--dry-run", "--head", "a"], "is not the number of GPUs"),
        (["--engine", "vllm", "--data", "0"], "--data is 0; it must be at least 1"),
        (["--engine", "vllm", "--port", "70000"], "--port is 70000; it must be at least 1 and at most 65535"),
        (
            ["--engine", "vllm", "--gpu-memory", "nan"],
            "--gpu-memory is nan; it must be at least 1 and at most 1,000,000",
        ),
        (["--engine", "vllm", "--gpu-memory", "inf"], "--gpu-memory is inf; it must be at least 1 and at most"),
        (["--engine", "vllm", "--nodes", "9" * 30], "it must be at least 1 and at most 1,000,000"),
    ],
)
@pytest.mark.usefixtures("no_engine")
def test_mistakes_are_one_line(arguments, message):
    result = serve(*K1, *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.usefixtures("no_engine")
def test_checkpoint_here_or_elsewhere(tiny_checkpoint):
    machine = ["--engine", "vllm", "--gpus", "2", "--gpu-memory", "80", "--dry-run"]
    assert "There is no checkpoint at nowhere" in serve("serve", "nowhere", *machine).stderr
    here = serve("serve", str(tiny_checkpoint), *machine, "--mtp", "1")
    assert here.exit_code == 0 and "num_speculative_tokens" in here.stdout and "in fp32" in here.stdout
    both = serve("serve", str(tiny_checkpoint), *machine, "--weights", "bf16")
    assert both.exit_code == 2 and "says itself how it is stored" in both.stderr


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_three_bits_are_refused_in_one_sentence(engine):
    result = serve("serve", "skt/A.X-K1", "--weights", "int3", "--engine", engine, "--dry-run")
    assert result.exit_code == 2 and f"{engine} reads no weights of three bits" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_engine_gets_its_arguments_and_its_exit_code_is_ours(fake_engine, tiny_checkpoint):
    machine = ["--engine", "vllm", "--device", "cpu", "--gpus", "2"]
    result = serve("serve", str(tiny_checkpoint), *machine, "--port", "8123", "--", "--enforce-eager")
    assert result.exit_code == 7, result.output
    seen = fake_engine.read_text()
    assert seen.startswith(f"['--model', '{tiny_checkpoint}', '--host', '127.0.0.1', '--port', '8123'")
    assert seen.endswith("'--enforce-eager']") and "--gpu-memory-utilization" not in seen


def test_exit_codes_and_background_processes(tmp_path):
    mark = tmp_path / "ended"
    beside = python(
        f"""
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(0)))
        pathlib.Path({str(tmp_path / "ready")!r}).touch()
        time.sleep(60)
        """,
        background=True,
    )
    main = python(
        f"""
        import os, pathlib, sys, time
        while not pathlib.Path({str(tmp_path / "ready")!r}).exists():
            time.sleep(0.05)
        sys.exit(int(os.environ["CODE"]))
        """,
        environment={"CODE": "3"},
    )
    assert runner.run([beside, main]) == 3
    assert mark.exists()
    assert runner.run([python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")]) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_engine_once(tmp_path, number):
    script = f"""
        import sys
        from axk1.integrations.launch.order import Command
        from axk1.integrations.launch.run import run
        code = '''
        import signal, sys, time
        count = []
        signal.signal({int(number)}, lambda *_: count.append(1))
        print("ready", flush=True)
        while not count:
            time.sleep(0.05)
        time.sleep(0.5)
        sys.exit(40 + len(count))
        '''
        import textwrap
        sys.exit(run([Command((sys.executable, "-c", textwrap.dedent(code)))]))
    """
    script = textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)  # as a terminal or a batch system does: to the whole group
    assert process.wait(20) == 41


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGHUP)"
        assert runner.run([python(code)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_waiting_for_the_first_machine(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        monkeypatch.setattr(runner, "HEAD_SECONDS", 1.0)
        told: list[str] = []
        with pytest.raises(TimeoutError, match=r"did not answer within 1 seconds .* Is the first machine started"):
            runner.run([python("", wait_for=address)], told.append)
        assert told == [f"Waiting for 127.0.0.1:{address[1]} ..."]
        server.listen()
        assert runner.run([python("import sys; sys.exit(5)", wait_for=address)]) == 5


def test_a_helper_that_dies_is_reported(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        commands = [
            python("import sys; sys.exit(9)", background=True),
            python("print('never')", wait_for=server.getsockname()),
        ]
        start = time.monotonic()
        assert runner.run(commands, lambda text: None) == 9
        assert time.monotonic() - start < 20


def test_finding_the_engine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "environment_python", lambda name, variable: None)
    monkeypatch.delenv("AXK1_SGLANG_PYTHON", raising=False)
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    assert runner.find_engine("sglang") is None
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: object())
    assert runner.find_engine("sglang") == Path(sys.executable)
    monkeypatch.undo()
    monkeypatch.setenv("AXK1_SGLANG_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"AXK1_SGLANG_PYTHON names .*nowhere, which is no Python that has sglang"):
        runner.find_engine("sglang")


def test_files_of_a_command_are_its_users_alone(tmp_path):
    """What SGLang's key is given by: there while the command runs, gone afterwards, readable for nobody else."""
    script = "import os, pathlib, stat, sys; file = pathlib.Path(sys.argv[1]); out = pathlib.Path(sys.argv[2]);"
    script += "modes = [oct(stat.S_IMODE(p.stat().st_mode)) for p in (file, file.parent)];"
    script += "out.write_text(chr(10).join([str(file), file.read_text(), *modes]))"
    command = Command((sys.executable, "-c", script, "key.yaml", str(tmp_path / "out")), files={"key.yaml": "k3y"})
    assert runner.run([command]) == 0
    place, text, *modes = (tmp_path / "out").read_text().splitlines()
    assert (text, modes) == ("k3y", ["0o600", "0o700"])
    assert not Path(place).exists() and not Path(place).parent.exists()


def test_no_python_of_the_current_folder_is_run(tmp_path, monkeypatch):
    """It may be a checkpoint's folder."""
    python = tmp_path / ".venv-sglang" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AXK1_SGLANG_PYTHON", raising=False)
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    found = runner.find_engine("sglang")
    assert found is None or not found.is_relative_to(tmp_path)
    assert not (tmp_path / "executed").exists()
    monkeypatch.setenv("AXK1_SGLANG_PYTHON", str(python))
    assert runner.find_engine("sglang") == python  # named by the user


def test_a_fast_loader_is_found_beside_the_engine(tmp_path, monkeypatch):
    assert runner.fast_loader("vllm", Path(sys.executable)) is None and runner.fast_loader("vllm", None) is None
    (tmp_path / f"{runner.DIRECT}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert runner.fast_loader("vllm", Path(sys.executable)) == "instanttensor"
    assert runner.fast_loader("sglang", Path(sys.executable)) is None
