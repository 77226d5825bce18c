"""The `axk1` command itself: speed of --help, one-line errors, exit codes, quiet libraries."""

import os
import pty
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import axk1
from axk1.cli.main import app

COMMANDS = [
    "demo",
    "chat",
    "generate",
    "info",
    "verify",
    "convert",
    "quantize",
    "merge",
    "train",
    "eval",
    "tokenizer",
    "corpus",
    "data",
    "serve",
]
AXK1 = [sys.executable, "-c", "from axk1.cli.main import main; main()"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The command sets variables; they end with the test."""
    for name in ("AXK1_DEBUG", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(*arguments: str, **options):
    return subprocess.run([*AXK1, *arguments], capture_output=True, text=True, check=False, **options)


HOOK = """
import os, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            os.write(2, b"[slow]")
            os._exit(7)
sys.meta_path.insert(0, Hook())
from axk1.cli.main import main
main()
"""
"""The command line, up to the first import that takes seconds."""


@pytest.mark.parametrize("recipe", ["nope.toml", "/", "/dev/zero"])
def test_a_recipe_that_is_not_there_is_said_before_the_slow_imports(recipe):
    command = [sys.executable, "-c", HOOK, "train", recipe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {recipe} does not exist, or is no") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["chat"], ["generate", "hi"], ["eval"], ["demo"]], ids=" ".join)
def test_a_terminal_shows_what_goes_on_from_the_start(command):
    screen, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", HOOK, *command], stdin=terminal, stderr=terminal) as program:
        assert program.wait(timeout=60) == 7
    shown = os.read(screen, 10_000)
    os.close(screen)
    os.close(terminal)
    assert b"Loading" in shown.partition(b"[slow]")[0]


def test_help_lists_every_command_and_needs_no_heavy_import():
    code = f"""
import sys
from typer.testing import CliRunner
from axk1.cli.main import app
runner = CliRunner()
listing = runner.invoke(app, ["--help"])
assert listing.exit_code == 0, listing.output
for command in {COMMANDS}:
    assert command in listing.output, command
    assert runner.invoke(app, [command, "--help"]).exit_code == 0, command
heavy = {{"torch", "transformers", "tokenizers", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"axk1 {axk1.__version__}\n")


def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = CliRunner().invoke(app, ["chat", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no checkpoint at ") and result.stderr.count("\n") == 1


def test_a_message_of_several_lines_becomes_one(monkeypatch):
    def fails(name):
        raise ValueError("first\n  second")

    monkeypatch.setattr("axk1.plan.describe.describe", fails)
    assert CliRunner().invoke(app, ["info", "k1"]).stderr == "Error: first second\n"


def test_what_the_system_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["corpus", "problems", str(tmp_path / "file" / "below.jsonl"), "--count", "1"])
    assert result.exit_code == 2
    assert "Not a directory" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments,variable", [(["--debug"], None), ([], "1")])
def test_debug_shows_the_traceback(tmp_path, arguments, variable):
    environment = {**os.environ, **({"AXK1_DEBUG": variable} if variable else {})}
    done = run(*arguments, "chat", str(tmp_path / "nowhere"), env=environment)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "resolve_model_path" in done.stderr


def test_a_wrong_option_is_exit_code_2():
    result = CliRunner().invoke(app, ["info", "--no-such-option"])
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_ctrl_c_is_quiet_and_exit_code_130(monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("axk1.plan.describe.describe", interrupted)
    result = CliRunner().invoke(app, ["info", "k1"])
    assert (result.exit_code, result.output) == (130, "")


def test_libraries_are_quiet(closing_checkpoint):
    done = run("generate", str(closing_checkpoint), "Hello", "--temperature", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Yes\n", "")


def test_a_closed_pipe_is_no_traceback():
    command = f'{sys.executable} -c "from axk1.cli.main import main; main()" info k1 | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("k1") and done.stderr == ""


def test_info_imports_half_of_what_a_model_needs(tiny_checkpoint):
    """It reads headers: neither transformers' models nor the compilers that they import."""
    code = f"""
import sys
from typer.testing import CliRunner
from axk1.cli.main import app
result = CliRunner().invoke(app, ["info", {str(tiny_checkpoint)!r}])
assert result.exit_code == 0, result.output
heavy = {{"torch._dynamo", "torch.distributed.tensor", "sympy", "transformers.modeling_utils"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_info_names_the_path_that_this_machine_takes():
    done = run("info", "--paths", env=os.environ | {"AXK1_KERNELS": "0"})
    assert done.returncode == 0 and done.stdout.strip() == "all: PyTorch's operators (AXK1_KERNELS=0)"
    done = run("info", "--paths", "--json", env=os.environ | {"AXK1_KERNELS": "nope"})
    assert done.returncode == 2 and "AXK1_KERNELS=nope: this processor has" in done.stderr
    done = run("info")
    assert done.returncode == 2 and "Name a checkpoint folder or a preset" in done.stderr


INTERRUPTED = """
import os, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Hook())
from axk1.__main__ import main
main()
"""


def test_ctrl_c_before_the_command_line_is_imported_ends_without_a_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
