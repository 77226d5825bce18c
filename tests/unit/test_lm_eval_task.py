"""The task written for lm-eval: the problems, the file's place, and replies judged as `axk1 evaluate` judges them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from axk1.integrations.lm_eval import one_number_problems, write_task
from axk1.tasks import score


def test_problems_are_different_and_held_out() -> None:
    problems = one_number_problems(100, seed=3)
    assert len({problem.question for problem in problems}) == 100
    assert all(problem.split == "heldout" and re.fullmatch(r"-?\d+", problem.value) for problem in problems)
    assert one_number_problems(30, seed=3) == problems[:30]


def test_the_task_names_its_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = write_task(Path("a: folder"), 20)
    task = yaml.safe_load((tmp_path / "a: folder" / "axk1_problems.yaml").read_text(encoding="utf-8"))
    rows = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert rows.is_absolute()
    read = [json.loads(row) for row in rows.read_text(encoding="utf-8").splitlines()]
    assert [(row["question"], row["value"]) for row in read] == [(p.question, p.value) for p in problems]


@pytest.mark.parametrize("text", ["{}", "First 7, then {}.", "{} and then 7", "{}0", "nothing"])
def test_its_filter_judges_as_score_does(tmp_path: Path, text: str) -> None:
    problems = write_task(tmp_path, 10)
    task = yaml.safe_load((tmp_path / "axk1_problems.yaml").read_text(encoding="utf-8"))
    extract = task["filter_list"][0]["filter"][0]
    for problem in problems:
        reply = text.format(problem.value)
        found = re.findall(extract["regex_pattern"], reply)
        taken = found[extract["group_select"]] if found else None
        assert (taken == problem.value) == score(problem, reply)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "axk1.integrations.lm_eval", str(tmp_path), "--count", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 problems") and (tmp_path / "axk1_problems.yaml").exists()
    assert len((tmp_path / "axk1_problems.jsonl").read_text(encoding="utf-8").splitlines()) == 3
