"""`axk1 demo`: its questions are held out, its output is complete, and the nano passes it within a minute."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from axk1.chat import Reply
from axk1.cli.demo import LANGUAGES, SEED, Answered, draw_problems
from axk1.cli.main import app
from axk1.tasks import LANGUAGES as TRAINED_LANGUAGES
from axk1.tasks import is_held_out

NANO = Path(__file__).parents[2] / "models" / "nano"
PROBLEMS = draw_problems(SEED)


def test_problems_are_held_out_and_take_several_steps():
    for problem in PROBLEMS:
        assert problem.split == "heldout" and problem.multi_step
        assert is_held_out(problem.task, problem.numbers)
    assert [problem.language for problem in PROBLEMS] == [code for code in TRAINED_LANGUAGES for _ in range(2)]
    assert tuple(LANGUAGES) == TRAINED_LANGUAGES
    assert not {p.question for p in PROBLEMS} & {p.question for p in draw_problems(SEED + 100)}


@pytest.mark.parametrize(
    "answer,closed,right", [("It is {}.", True, True), ("It is 1{}.", True, False), ("{}", False, False)]
)
def test_right_means_that_the_answer_states_the_value(answer, closed, right):
    reply = Reply("1+1=2.", answer.format(PROBLEMS[0].value), [], "stop", closed, 9, 8, 7, 1.0)
    assert Answered(PROBLEMS[0], True, reply).right is right


def test_output_keeps_the_reasoning_apart(closing_checkpoint):
    result = CliRunner().invoke(app, ["demo", str(closing_checkpoint)])
    assert result.exit_code == 0, result.output
    for problem in PROBLEMS:
        assert problem.question in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert sum(line == "Think      1+2=3" for line in lines) == len(PROBLEMS)
    assert sum(line.startswith("Yes  [wrong, it is ") for line in lines) == len(PROBLEMS)
    assert sum(line.startswith("Non-Think  Yes  [wrong, it is ") for line in lines) == len(PROBLEMS)
    assert result.stdout.count("0/10") == 2


def test_json(closing_checkpoint):
    result = CliRunner().invoke(app, ["demo", str(closing_checkpoint), "--json"])
    records = json.loads(result.stdout)
    assert [record["think"] for record in records] == [True, False] * len(PROBLEMS)
    assert [record["question"] for record in records[::2]] == [problem.question for problem in PROBLEMS]
    first, second = records[:2]
    assert (first["reasoning"], first["answer"], first["tokens"]) == ("1+2=3", "Yes", 8)
    assert (second["reasoning"], second["answer"], second["tokens"]) == ("", "Yes", 3)
    assert first["right"] is False and first["tokens_per_second"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not any(NANO.glob("*.safetensors")), reason="the nano has no weights")
def test_the_nano_reasons_its_way_to_more_right_answers_within_a_minute():
    start = time.perf_counter()
    result = CliRunner().invoke(app, ["demo", str(NANO), "--json"])
    assert time.perf_counter() - start < 60
    records = json.loads(result.stdout)
    think, plain = (sum(r["right"] for r in records if r["think"] is mode) for mode in (True, False))
    assert think >= 8 and think >= plain + 4  # measured 9 and 2
    assert all(bool(record["reasoning"]) is record["think"] for record in records)
