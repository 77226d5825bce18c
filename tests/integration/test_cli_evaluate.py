"""`axk1 eval`: a table that fits 80 columns, with counts."""

import json
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from axk1.cli.evaluate import _show
from axk1.cli.main import app

REPORT = json.loads((Path(__file__).parents[2] / "models" / "nano" / "eval.json").read_text())


def test_the_table_fits_80_columns_and_shows_counts(capsys):
    _show(REPORT, Console(width=80))
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines()) and "…" not in out
    for name in ("arithmetic", "calendar", "counting", "sorting", "word", "chat", "en", "ko", "zh", "ja", "es"):
        assert name in out
    think, plain = REPORT["think"], REPORT["non_think"]
    assert f"{think['all']['share']:.0%}/{plain['all']['share']:.0%}" in out and f"of {think['all']['count']:,}" in out
    assert f"of {think['by_language_and_task']['en/arithmetic']['count']}" in out
    assert f"Multi-step, Think: {think['multi_step']['share']:.1%} of {think['multi_step']['count']}" in out


def test_the_command_prints_it(closing_checkpoint):
    result = CliRunner().invoke(app, ["eval", str(closing_checkpoint), "--problems", "2", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert "0%/0%" in result.stdout and "of 2" in result.stdout


def test_repeats_of_a_file(closing_checkpoint, tmp_path):
    """Drawn anew, with intervals; the same command gives the same report."""
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1?", "answer": n + 1}) + "\n" for n in range(3)))
    options = ["--set", str(path), "--repeats", "2", "--temperature", "0.9", "--max-new-tokens", "8", "--json"]
    command = ["eval", str(closing_checkpoint), "--threads", "1", *options]
    first, second = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["think"]["all"]["count"] == 6 and len(report["think"]["all"]["interval"]) == 2
    assert report["think"]["by_task"].keys() == {"own"} and "mtp_acceptance" not in report
    assert first.stdout == second.stdout
    refused = CliRunner().invoke(app, ["eval", str(closing_checkpoint), "--repeats", "2"])
    assert refused.exit_code == 2 and "with a --temperature above 0" in refused.output + str(refused.exception)
