"""Standard streams that are closed, full, no files or not UTF-8; paths that cannot be written; how errors look."""

import errno
import json
import os
import pty
import subprocess
import sys
import threading

import pytest

from axk1.cli.main import main
from axk1.terminal import sentence as terminal_sentence

AXK1 = [sys.executable, "-m", "axk1"]


def shell(command: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in which $AXK1 is the program and $1 ... are the arguments."""
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    command = command.replace("AXK1", '"$PYTHON" -m axk1')
    return subprocess.run(
        ["bash", "-c", command, "bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        ("AXK1 --help >/dev/full", 2, "No space left on device"),
        ("AXK1 info k1 --json >/dev/full", 2, "No space left on device"),
        ("AXK1 --version >&-", 2, "stream is closed"),
        ('AXK1 generate "$1" <&-', 2, "The prompt is empty"),
        ('AXK1 generate "$1" hi >&-', 2, "stream is closed"),
        ('AXK1 generate "$1" hi >/dev/full', 2, "No space left on device"),
        ('AXK1 generate "$1" hi 2>&-', 0, ""),
        ('AXK1 chat "$1" <&-', 0, ""),
    ],
)
def test_closed_and_full_streams(endless_checkpoint, command, code, error):
    done = shell(command, endless_checkpoint)
    assert done.returncode == code and error in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") == (1 if error else 0)


def test_python_m_and_h_and_completion():
    assert "Usage:" in shell("AXK1 -h").stdout and "Usage:" in shell("AXK1 generate -h").stdout
    code = "import sys; sys.argv = ['axk1']; from axk1.cli.main import main; main()"
    asked = {"_AXK1_COMPLETE": "complete_bash", "COMP_WORDS": "axk1 gene", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["generate"]


def test_an_output_that_is_a_pipe(closing_checkpoint, tmp_path):
    file, pipe = tmp_path / "in.jsonl", tmp_path / "pipe"
    file.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    done = shell('AXK1 generate "$1" --input "$2" --output /dev/stdout | cat', closing_checkpoint, file)
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == ["Yes", "Yes"]
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    code = 'AXK1 generate "$1" --input <(cat "$2") --output "$3"'
    assert shell(code, closing_checkpoint, file, pipe).returncode == 0
    reader.join(60)
    assert len(read[0].splitlines()) == 2


def test_letters_that_a_stream_cannot_hold_are_replaced(endless_checkpoint):
    done = shell('AXK1 generate "$1" hi', endless_checkpoint, PYTHONIOENCODING="euc-kr")
    assert (done.returncode, done.stdout) == (0, "Ys,42?\n")
    done = shell('AXK1 generate "$1" hi --json', endless_checkpoint, PYTHONIOENCODING="euc-kr")
    assert json.loads(done.stdout)["answer"] == "Ys,42é", "JSON has escapes for them"
    done = shell('printf "hi\\n/help\\n" | AXK1 chat "$1"', endless_checkpoint, PYTHONIOENCODING="euc-kr")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Ys,42?")
    done = shell("AXK1 generate \"$1\" $'h\\xff' --json", endless_checkpoint)
    assert json.loads(done.stdout)["prompt_tokens"] > 0, "bytes that are no text"


@pytest.fixture
def answer(monkeypatch, capsys):
    """Exit code and standard error of a command that must not get as far as loading a model."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("axk1.chat.load", lambda *_, **__: pytest.fail("the work began"), raising=False)
        monkeypatch.setattr(sys, "argv", ["axk1", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    "command", [["generate", "--input", "IN", "--output"], ["eval", "--problems", "1", "--details"]]
)
@pytest.mark.parametrize(("path", "error"), [("none/x.jsonl", "there is no folder"), (".", "which is a folder")])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(answer, tmp_path, monkeypatch, command, path, error):
    (tmp_path / "IN").write_text('{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path)
    code, err = answer(*command, path)
    assert code == 2 and error in err and path in err


@pytest.mark.parametrize("threads", ["0", "-1"])
@pytest.mark.parametrize("command", [["chat"], ["generate", "--", "hi"], ["eval"], ["demo"]])
def test_threads_are_at_least_one(answer, command, threads):
    code, err = answer(command[0], "--threads", threads, *command[1:])
    assert (code, err) == (2, f"Error: --threads is {threads}; it must be at least 1.")


def test_threads_are_no_more_than_machines_have(answer):
    assert answer("eval", "--threads", "9" * 23) == (2, f"Error: --threads is {'9' * 23}; it must be at most 4096.")


def test_a_budget_without_room_is_refused_before_the_work(answer):
    assert answer("generate", "--think", "--budget", "9", "--max-new-tokens", "9", "hi")[0] == 2
    assert answer("chat", "--think", "--budget", "9", "--max-new-tokens", "9")[0] == 2


def test_the_only_argument_of_generate(answer, tmp_path, monkeypatch):
    """A folder or a path is the model, other text the prompt, for the default model."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("axk1.chat.load", lambda folder, **_: (_ for _ in ()).throw(ValueError(f"loads {folder.name}")))
    for prompt in ("What is 17 + 25?", "Hello", "What is 6/2?"):
        assert "loads nano" in answer_default(monkeypatch, prompt)
    for model in ("folder", "no/such", "./none"):
        assert "loads nano" not in answer_default(monkeypatch, model)


def answer_default(monkeypatch, *arguments: str) -> str:
    from typer.testing import CliRunner

    from axk1.cli.main import app

    monkeypatch.delenv("AXK1_MODEL", raising=False)
    return CliRunner().invoke(app, ["generate", *arguments], input="from standard input").stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "nope/x.out"),
            "nope/x.out: No such file or direc",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some space"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link."),
        (OSError("two\n lines"), "two lines"),
        (ValueError("\x1b[31mred\x1b[0m"), "\ufffd[31mred\ufffd[0m"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_are_sentences(error, sentence):
    assert terminal_sentence(error).startswith(sentence)


@pytest.mark.parametrize(
    ("environment", "red"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_of_errors(environment, red):
    pid, fd = pty.fork()
    if pid == 0:
        clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        os.execve(AXK1[0], [*AXK1, "info", "no/such/thing"], {**clean, **environment})
    shown = b""
    try:
        while read := os.read(fd, 4096):
            shown += read
    except OSError:  # the end, on Linux
        pass
    os.waitpid(pid, 0)
    assert b"Error" in shown and (b"\x1b[31m" in shown) is red
