"""`axk1 eval`: a table that fits 80 columns, with counts; one mode; the list; what lm-eval is needed for.

What runs through lm-eval is in test_lm_eval.py.
"""

import importlib.util
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from axk1.cli.evaluate_view import show_problems
from axk1.cli.main import app
from axk1.evaluation.benchmarks import BENCHMARKS

REPORT = json.loads((Path(__file__).parents[2] / "models" / "nano" / "eval.json").read_text())


def test_the_table_fits_80_columns_and_shows_counts(capsys):
    show_problems(REPORT, Console(width=80))
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


def test_one_mode_and_a_page(closing_checkpoint, tmp_path):
    page, details = tmp_path / "report.html", tmp_path / "replies.jsonl"
    command = ["eval", str(closing_checkpoint), "--problems", "3", "--mode", "think", "--threads", "1"]
    shown = CliRunner().invoke(app, [*command, "--report", str(page), "--details", str(details)])
    assert shown.exit_code == 0, shown.output
    assert "Right answers in Think," in shown.stdout and "Non-Think" not in shown.stdout and "0%\n" in shown.stdout
    assert "templates" in page.read_text(encoding="utf-8") and len(details.read_text().splitlines()) == 3
    report = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert report["non_think"]["all"]["count"] == 0 and report["think"]["mode_obeyed"]["share"] == 1.0
    (result,) = report["tasks"]
    assert (result["task"], result["think"], result["problems"], result["replies"]) == ("templates", True, 3, 3)
    assert result["scores"]["correct"] == report["think"]["all"] and result["published"] == {}
    assert result["mean_tokens"] == report["think"]["mean_tokens"] > 0


def test_the_list_names_every_benchmark_and_who_runs_it():
    shown = CliRunner().invoke(app, ["eval", "--list"])
    assert shown.exit_code == 0 and all(each.name in shown.stdout for each in BENCHMARKS)
    assert "evalscope eval --model axk1" in shown.stdout and "80.2 / 73.0" in shown.stdout
    assert all(each.command() in shown.stdout for each in BENCHMARKS)


@pytest.mark.parametrize("asked", [["http://127.0.0.1:1"], ["--tasks", "KMMLU-Pro"], ["--tasks", "probe,ifeval"]])
def test_without_lm_eval_one_sentence_says_how_to_get_it(asked, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else found(name, *more)
    )
    refused = CliRunner().invoke(app, ["eval", *asked])
    assert refused.exit_code == 2 and "in a clone, pip install '.[eval]'" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("IFBench", "IFBench is run by evalscope, against a server: evalscope eval"),
        ("AIME25-ko", "AIME25-ko is in none of lm-eval"),
        (",", "--tasks is empty"),
        ("probe,situations", "has probe and situations"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused_before_anything_loads(tasks, said):
    refused = CliRunner().invoke(app, ["eval", "/nowhere", "--tasks", tasks])
    assert refused.exit_code == 2 and said in refused.stderr and "nowhere" not in refused.stderr


def test_another_mode_is_refused():
    refused = CliRunner().invoke(app, ["eval", "--mode", "fast"])
    assert refused.exit_code == 2 and '--mode is "fast"; it must be one of both, think, non-think.' in refused.stderr
