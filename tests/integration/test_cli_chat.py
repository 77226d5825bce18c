"""`axk1 chat`, piped and in a real terminal."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from contextlib import suppress

import pytest

from axk1.cli.main import main

COMMAND = [sys.executable, "-c", "from axk1.cli.main import main; main()", "chat"]


@pytest.fixture
def talk(endless_checkpoint, monkeypatch, capsys):
    """Runs `axk1 chat` on lines from standard input; gives its exit code and what it printed."""

    def run(lines: list[str], *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["axk1", "chat", str(endless_checkpoint), *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_piped_lines_in_both_modes(talk):
    code, out = talk(["hi", "/think", "/budget 6", "hi"])
    assert code == 0
    assert out == "Ys,42é\nThink, budget -1.\nThinking budget 6.\n[reasoning]\nabc ab\n[answer]\nYs,42é\n"


def test_ctrl_c_ends_a_chat_that_waits_for_a_pipe(endless_checkpoint, monkeypatch):
    class Pipe(io.StringIO):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["axk1", "chat", str(endless_checkpoint)])
    monkeypatch.setattr(sys, "stdin", Pipe())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


def test_saved_conversation_holds_everything_and_loads(talk, tmp_path):
    file = tmp_path / "talk.json"
    lines = [
        "/think",
        "/budget 2",
        "/system Be brief.",
        "first \\",
        "second",
        '"""/exit',
        "  block",
        '"""',
        f"/save {file}",
    ]
    talk(lines)
    saved = json.loads(file.read_text())
    assert (saved["system"], saved["think"], saved["budget"]) == ("Be brief.", True, 2)
    assert [turn["content"] for turn in saved["messages"]] == ["first \nsecond", "Ys,42é", "/exit\n  block", "Ys,42é"]
    assert saved["messages"][1]["reasoning_content"] == "ab"
    code, out = talk([f"/load {file}", "third", "/clear", f"/save {file}"])
    assert (code, "Loaded 4 turns") == (0, out.splitlines()[0][:14])
    assert "[reasoning]\nab\n[answer]\nYs,42é\n" in out  # the mode and the budget came along
    assert json.loads(file.read_text())["messages"] == []


def test_history_is_part_of_the_next_prompt(talk, tmp_path):
    """A context that holds the first turns and not the third, with an error that loses nothing."""
    file = tmp_path / "talk.json"
    code, out = talk(["x" * 1500, "y" * 1500, "z" * 1500, f"/save {file}"])
    assert code == 0
    assert "error: The prompt has 4" in out
    assert len(json.loads(file.read_text())["messages"]) == 4


def test_errors_leave_the_program_running(talk, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"system": null, "think": 1, "budget": 0, "messages": []}')
    lines = [
        "/fly",
        "/budget -2",
        "/budget x",
        "/save",
        f"/load {tmp_path}/none",
        f"/load {bad}",
        "/save /none/x",
        "hi",
    ]
    code, out = talk(lines)
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (0, 7)
    assert out.endswith("Ys,42é\n")


def test_exit_ends_and_help_lists_every_command(talk):
    code, out = talk(["/help", "/exit", "hi"])
    assert code == 0
    commands = ["think", "nothink", "budget", "system", "clear", "save", "load", "help", "exit"]
    assert all(f"/{name} " in out for name in commands)
    assert "Ys,42é" not in out


def test_unclosed_reasoning_is_marked(talk):
    assert "[no tokens left" in talk(["hi"], "--think", "--max-new-tokens", "4")[1]


def test_wrong_model_path_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["axk1", "chat", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "no checkpoint at" in captured.err
    assert "Traceback" not in captured.err


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program on a pseudo-terminal. ``seen`` is what it showed, without escape sequences; ``raw`` with them."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, os.environ | env)
        self.seen = ""
        self.raw = b""
        self._read_to = 0

    def expect(self, text: str, seconds: float = 90) -> None:
        """Reads until ``text`` appears after what was expected before."""
        deadline = time.monotonic() + seconds
        while (found := self.seen.find(text, self._read_to)) < 0:
            assert self._read(deadline), f"{text!r} did not come; the terminal shows {self.seen[-2000:]!r}"
        self._read_to = found + len(text)

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def _read(self, deadline: float) -> bool:
        """Reads what is there, waiting for it until the deadline; False when nothing came or the program has ended."""
        ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
        with suppress(OSError):  # the program has ended
            if ready and (read := os.read(self.fd, 65536)):
                self.raw += read
                self.seen = ESCAPE.sub("", self.raw.decode(errors="replace"))
                return True
        return False

    def wait(self, seconds: float = 60) -> int:
        """The exit code, once the program has closed the terminal."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"the program goes on; the terminal shows {self.seen[-2000:]!r}"
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """Ends the program if it still runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def terminal(endless_checkpoint, tmp_path):
    opened = []

    def start(*options: str) -> Terminal:
        env = {"TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
        opened.append(Terminal([*COMMAND, str(endless_checkpoint), *options], env))
        return opened[-1]

    yield start
    for program in opened:
        program.close()


def test_ctrl_c_stops_the_reply_and_not_the_program(terminal, tmp_path):
    file = tmp_path / "talk.json"
    program = terminal("--think")
    program.expect("think> ")
    time.sleep(0.5)  # readline writes its prompt a moment before it waits for keys
    program.send("\x03")  # at the prompt: nothing happens
    program.expect("think> ")
    program.send("hello\r")
    program.expect("abc abc abc")
    program.send("\x03\x03")  # twice: the second must not hurt either
    program.expect("[stopped]")
    program.expect("tokens/s")
    program.expect("think> ")
    time.sleep(0.5)  # the second may come as late as here, and take with it what has been typed
    program.send("/nothink\r")
    program.expect("\n> ")
    program.send("again\r")
    program.expect("Ys,42é")
    program.expect("0 reasoning + 7 answer tokens")
    program.send(f"/save {file}\r")
    program.expect("Saved to")
    program.expect("\n> ")
    program.send("\x04")
    assert program.wait() == 0
    assert b"\x1b[2mabc" in program.raw or b"\x1b[2ma" in program.raw  # reasoning is dimmed
    assert b"\x1b[2mY" not in program.raw  # the answer is not
    first, stopped, second, whole = json.loads(file.read_text())["messages"]
    assert (first["content"], second["content"]) == ("hello", "again")
    assert (stopped["content"], stopped["interrupted"]) == ("", True)
    assert stopped["reasoning_content"].startswith("abc abc abc")
    assert (whole["content"], "interrupted" in whole) == ("Ys,42é", False)


def test_line_history_and_blocks(terminal, tmp_path):
    history = tmp_path / "state" / "axk1" / "chat_history"
    history.parent.mkdir(parents=True)
    history.write_text("from an earlier day\n")
    program = terminal()
    program.expect("> ")
    program.send("\x1b[A\r")  # up
    program.expect("from an earlier day")
    program.expect("Ys,42é")
    program.expect("\n> ")
    program.send('"""two\r')
    program.expect("... ")
    program.send('lines"""\r')
    program.expect("Ys,42é")
    program.expect("\n> ")
    program.send("/exit\r")
    assert program.wait() == 0
    assert history.read_text().splitlines()[-3:] == ['"""two', 'lines"""', "/exit"]


def saved(talk, tmp_path, *lines: str) -> tuple[list[dict], str]:
    """The messages and the output of a conversation."""
    file = tmp_path / "kept.json"
    _, out = talk([*lines, f"/save {file}"])
    return json.loads(file.read_text())["messages"], out


def test_turns_can_be_answered_again_edited_taken_back_and_forgotten(talk, tmp_path):
    turns, out = saved(talk, tmp_path, "one", "/regenerate", "two", "/edit three", "four", "/undo", "five", "/forget")
    assert [turn["content"] for turn in turns] == ["three", "Ys,42é", "five", "Ys,42é"]
    assert out.count("Ys,42é") == 6 and "Taken back: four" in out and "2 turns left." in out


def test_what_fails_leaves_the_conversation_as_it_is(talk, tmp_path):
    lines = ["/undo", "/regenerate", "one", "/edit", f"/edit {'x' * 5000}", "/forget 0", "/forget x"]
    turns, out = saved(talk, tmp_path, *lines)
    assert [turn["content"] for turn in turns] == ["one", "Ys,42é"]
    assert out.count("error: ") == 6 and out.count("There is no turn to take back") == 2


def test_a_full_context_has_a_way_on(talk, tmp_path):
    turns, out = saved(talk, tmp_path, "x" * 1500, "y" * 1500, "z" * 1500, "/forget", "z" * 1500)
    assert "/forget drops the oldest turn" in out
    assert [turn["content"][0] for turn in turns] == ["y", "Y", "z", "Y"]


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_words_that_end_it(talk, word):
    assert talk([word, "hi"]) == (0, "")


def test_a_lone_question_mark_is_help(talk):
    assert talk(["?"])[1] == talk(["/help"])[1]
    assert "Ys,42é" in talk(["What?"])[1]


def test_settings_within_the_session(talk, tmp_path):
    lines = ["/set max_new_tokens 3", "hi", "/set max_new_tokens none", "hi", "/set seed=7", "/set"]
    _, out = talk(lines)
    assert out.startswith(
        "max_new_tokens 3\nYs,\n[no tokens left: the reply is cut off]\nmax_new_tokens None\nYs,42é\n"
    )
    assert "seed 7" in out and "temperature 0.6" in out
    bad = ["/set warmth 1", "/set temperature -1", "/set temperature hot", "/set top_k 0.5", "/set max_new_tokens 0"]
    code, out = talk([*bad, "/set markdown 3", "hi"])
    assert (code, out.count("error: "), out.splitlines()[-1]) == (0, 6, "Ys,42é")


def test_load_shows_what_it_loaded(talk, tmp_path):
    file = tmp_path / "talk.json"
    talk(["/system Be brief.", *(f"question {n}" for n in range(5)), f"/save {file}"])
    _, out = talk([f"/load {file}"])
    assert "system prompt: Be brief." in out and "(4 earlier turns)" in out
    assert [line for line in out.splitlines() if line.startswith("> ")] == [f"> question {n}" for n in (2, 3, 4)]


def test_save_writes_over_nothing_that_is_not_the_sessions(talk, tmp_path):
    precious, link, own = tmp_path / "precious", tmp_path / "link", tmp_path / "own.json"
    precious.write_text("notes")
    link.symlink_to(precious)
    _, out = talk(["hi", f"/save {precious}", f"/save {link}", f"/save {own}", "hi", f"/save {own}"])
    assert out.count("exists already") == 2 and precious.read_text() == "notes" and link.is_symlink()
    assert own.stat().st_mode & 0o777 == 0o600 and len(json.loads(own.read_text())["messages"]) == 4


@pytest.mark.parametrize(
    "messages",
    [5, [5], [{"role": "user"}], [{"role": "user", "content": 5}], [{"role": "system", "content": "x"}]],
)
def test_files_that_are_no_conversations(talk, tmp_path, messages):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"system": None, "think": False, "budget": -1, "messages": messages}))
    _, out = talk([f"/load {file}", "/load /dev/zero", f"/load {tmp_path}", "hi"])
    assert out.count("error: ") == 3 and out.count("is not a saved conversation") == 3
    assert out.endswith("Ys,42é\n")


def test_a_home_and_a_history_are_optional(monkeypatch, tmp_path):
    from axk1.cli import chat_input

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert chat_input.history_file() is None
    (tmp_path / "file").touch()
    for file in (None, tmp_path / "file" / "below", tmp_path):
        chat_input.write_history(file, "a")
        assert chat_input.read_history(file) == []
    kept = tmp_path / "state" / "history"
    chat_input.write_history(kept, "two\nlines")
    chat_input.write_history(kept, "one")
    assert chat_input.read_history(kept) == ["two\nlines", "one"] and kept.stat().st_mode & 0o777 == 0o600


def test_pasted_lines_are_one_message(terminal, tmp_path):
    file = tmp_path / "talk.json"
    program = terminal()
    program.expect("\n> ")
    program.send("\x1b[200~first\nsecond\n/exit\x1b[201~\r")
    program.expect("tokens/s")
    program.expect("\n> ")
    program.send("/und\t\r")  # completed
    program.expect("Taken back: first second /exit")
    program.expect("\n> ")
    program.send("hello\r")
    program.expect("tokens/s")
    program.expect("\n> ")
    program.send("/edit\r")
    program.expect("edit> ")
    program.send(" again\r")  # at the end of what was there
    program.expect("tokens/s")
    program.expect("\n> ")
    program.send(f"/save {file}\r")
    program.expect("Saved to")
    program.expect("\n> ")
    program.send("/quit\r")
    assert program.wait() == 0
    assert [turn["content"] for turn in json.loads(file.read_text())["messages"]] == ["hello again", "Ys,42é"]


def test_the_start_says_which_model_is_loaded(terminal, endless_checkpoint):
    program = terminal()
    program.expect(f"Loading {endless_checkpoint}")
    program.expect("million parameters")
    program.expect("\n> ")
    program.send("\x04")
    assert program.wait() == 0
    shown = " ".join(program.seen.split())  # lines break where the path's length says
    assert "million parameters, float32, cpu" in shown
