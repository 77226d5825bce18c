"""Held-out problems as a task for lm-eval, which may be installed in another environment."""

from __future__ import annotations

import json
from pathlib import Path

from axk1.evaluation.held_out import held_out_problems
from axk1.files import replacing, write_text
from axk1.tasks import Problem

TEMPLATE = Path(__file__).with_name("axk1_problems.yaml")
ONE_NUMBER = ("arithmetic", "word", "counting")  # lm-eval's own filters take one number from a reply, not a list


def one_number_problems(count: int, seed: int = 0) -> list[Problem]:
    """``count`` different held-out problems in five languages whose answer is one number."""
    tries = 2 * count
    while len(chosen := [p for p in held_out_problems(tries, seed) if p.task in ONE_NUMBER]) < count:
        tries *= 2
    return chosen[:count]


def write_task(folder: Path, count: int = 200, seed: int = 0) -> list[Problem]:
    """Writes ``axk1_problems.jsonl`` and ``axk1_problems.yaml`` and returns the problems, in the file's order."""
    folder = folder.expanduser().resolve()  # lm-eval reads the problems from whatever folder it is started in
    folder.mkdir(parents=True, exist_ok=True)
    problems = one_number_problems(count, seed)
    rows = folder / "axk1_problems.jsonl"
    with replacing(rows) as file:
        for problem in problems:
            row = {"question": problem.question, "value": problem.value, "task": problem.task}
            file.write((json.dumps(row | {"language": problem.language}, ensure_ascii=False) + "\n").encode())
    task = TEMPLATE.read_text(encoding="utf-8").replace("test: PROBLEMS", f"test: {json.dumps(str(rows))}")
    write_text(folder / TEMPLATE.name, task)
    return problems
