"""Nothing that comes from a file steers the terminal."""

import json

from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.terminal import error_line, printable

TITLE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x08\x00\x7f\r"


def test_control_characters_are_replaced():
    assert printable(TITLE + "a\tb\nc") == "�]0;owned��[2J�31m����a\tb\nc"
    assert error_line(ValueError(f"no\nsuch {TITLE}file")).isprintable()


def test_errors_can_always_be_written():
    line = error_line(OSError(2, "No such file", "caf\udce9"))
    assert line.encode().decode() == line and line.startswith("Error: ") and "No such file" in line


def test_errors_of_commands_carry_no_escapes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": TITLE}))
    (tmp_path / TITLE.replace("\0", "")).touch()
    for words in (
        ["verify", str(tmp_path)],
        ["generate", str(tmp_path), "hi"],
        ["info", f"nowhere{TITLE[1:9]}\x1b[2J"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (1, 2) and done.stderr.startswith("Error: ")
        assert done.stderr.rstrip("\n").isprintable(), repr(done.stderr)
