"""`axk1 eval --tasks`: lm-eval's own tasks over rows in their benchmarks' format, with replies that are known.

The hubs of data cannot be reached from a test, so each task is lm-eval's own with another place for its data.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted import make_model, make_tokenizer
from typer.testing import CliRunner

from axk1.chat import Chat, Reply
from axk1.cli.main import app
from axk1.integrations.lm_eval.published import BENCHMARKS, of_task, table

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
NAMES = ("question", "A", "B", "C", "D", "answer", "Category", "Human Accuracy")
"""Of KMMLU's columns."""
ROWS: dict[str, tuple[str, list[dict[str, Any]], list[tuple[str, str]]]] = {
    "aime25": (
        "aime/aime25.yaml",
        [{"problem": f"Find {n} plus {n}.", "answer": str(2 * n), "id": str(n)} for n in (5, 6)],
        [("It is $\\boxed{10}$.", "exact_match"), ("It is $\\boxed{11}$.", "exact_match")],
    ),
    "hrm8k_gsm8k": (
        "hrm8k/default/hrm8k_gsm8k.yaml",
        [{"question": f"사과 {n}개와 {n}개", "original": "apples", "answer": float(2 * n)} for n in (5, 6)],
        [("답은 $\\boxed{10}$.", "exact_match"), ("답은 $\\boxed{1}$.", "exact_match")],
    ),
    "kmmlu_direct_law": (
        "kmmlu/direct/kmmlu_direct_law.yaml",
        [dict(zip(NAMES, (f"문제 {n}", "가", "나", "다", "라", n, "Law", 0.5), strict=True)) for n in (1, 2)],
        [("A", "exact_match"), ("C", "exact_match")],
    ),
    "mmlu_pro_math": (
        "mmlu_pro/mmlu_pro_math.yaml",
        [
            {
                "question_id": n,
                "question": f"What is {n}?",
                "options": ["one", "two", "three"],
                "answer": "ABC"[n - 1],
                "answer_index": n - 1,
                "cot_content": "A: Let's think step by step. It is so. The answer is (A).",
                "category": "math",
                "src": "x",
            }
            for n in (1, 2)
        ],
        [("So the answer is (A).", "exact_match (custom-extract)"), ("The answer is (C).", "")],
    ),
}
"""lm-eval's file of a task, rows as the benchmark has them, and a reply to each, of which the first is right."""


def write_task(folder: Path, task: str) -> None:
    """A task of lm-eval over the rows of ``ROWS``."""
    import lm_eval

    file, rows, _ = ROWS[task]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
    whole = Path(lm_eval.__file__).parent / "tasks" / file
    splits = {split: str(folder / f"{task}.jsonl") for split in ("test", "dev", "validation")}
    lines = [
        f"include: {whole}",
        f"task: {task}_rows",
        "dataset_path: json",
        "dataset_name: null",
        f"dataset_kwargs: {json.dumps({'data_files': splits})}",
    ]
    (folder / f"{task}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Known(Chat):
    """Gives the replies of ``ROWS`` by the last words of the question; what it was asked is kept."""

    def __init__(self, replies: dict[str, str]) -> None:
        super().__init__(make_model(), make_tokenizer())
        self.replies, self.asked = replies, []

    def reply_batch(self, conversations, *, think=False, **options) -> list[Reply]:
        self.asked.append((think, conversations, options))
        return [self._known(conversation[-1]["content"], bool(think)) for conversation in conversations]

    def _known(self, question: str, think: bool) -> Reply:
        answer = next(answer for words, answer in self.replies.items() if words in question)
        return Reply("so it is" if think else "", answer, [], "stop", True, 9, 4 if think else 0, 6, 0.0)


@needs_lm_eval
@pytest.mark.parametrize("task", list(ROWS))
@pytest.mark.filterwarnings("ignore")
def test_a_benchmark_in_its_own_format(tmp_path: Path, task: str, monkeypatch) -> None:
    from axk1.integrations.lm_eval.scorer import evaluate_tasks

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_task(tmp_path, task)
    _, rows, answers = ROWS[task]
    words = [row.get("problem") or row["question"] for row in rows]
    chat = Known(dict(zip(words, (answer for answer, _ in answers), strict=True)))
    report = evaluate_tasks(chat, [f"{task}_rows"], include=tmp_path, max_new_tokens=77)[f"{task}_rows"]
    for mode, tokens in (("think", 10), ("non_think", 6)):
        value, error = report[mode]["metrics"][answers[0][1]]
        assert value == 0.5 and (error is None or error > 0)
        found = {name: report[mode][name] for name in ("samples", "mean_tokens", "mode_obeyed")}
        assert found == {"samples": 2, "mean_tokens": tokens, "mode_obeyed": 1.0}
    assert [think for think, _, _ in chat.asked] == [True, False]
    for _, conversations, options in chat.asked:
        assert len(conversations) == 2 and all(each[-1]["role"] == "user" for each in conversations)
        assert options["max_new_tokens"] == 77 and isinstance(options["stop"], list)


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_probabilities_are_of_non_think_alone(tmp_path: Path) -> None:
    """CLIcK compares the answers' probabilities: the model's own, by lm-eval's own scorer."""
    from axk1.integrations.lm_eval.scorer import evaluate_tasks

    rows = [{"question": f"질문 {n}", "choices": ["가", "나"], "answer": "가"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = json.dumps({"data_files": {"test": str(tmp_path / "rows.jsonl")}})
    text = f"task: two\ndataset_path: json\ndataset_kwargs: {files}\ntest_split: test\noutput_type: multiple_choice\n"
    text += "doc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n"
    (tmp_path / "two.yaml").write_text(text + "metric_list:\n  - metric: acc\n")
    found = evaluate_tasks(Known({}), ["two"], include=tmp_path)["two"]
    assert found["think"] is None and found["non_think"]["samples"] == 3
    assert 0 <= found["non_think"]["metrics"]["acc"][0] <= 1 and "mean_tokens" not in found["non_think"]


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_prints_both_modes_and_the_card(tmp_path: Path) -> None:
    write_task(tmp_path, "aime25")
    command = ["eval", "models/nano", "--tasks", "aime25_rows", "--include", str(tmp_path), "--max-new-tokens", "40"]
    done = CliRunner().invoke(app, [*command, "--limit", "1"], env={"COLUMNS": "150", "HF_HUB_OFFLINE": "1"})
    assert done.exit_code == 0, done.output
    assert re.search(r"aime25_rows +exact_match +\d\.\d+.* 89\.8 / 88\.4 / 86\.0", done.output)
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["aime25_rows"]["think"]["samples"] == 2
    wrong = CliRunner().invoke(app, ["eval", "models/nano", "--tasks", "aime52"])
    assert wrong.exit_code == 2 and "aime52 is no task of lm-eval; the nearest is aime" in str(wrong.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", " , "], "--tasks is empty"),
        (["--tasks", "aime25", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--tasks", "aime25", "--include", "none"], "--include none is no folder"),
        (["--limit", "3"], "--limit and --include are for --tasks"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["eval", "models/nano", *arguments])
    assert done.exit_code == 2 and words in done.output + str(done.exception)


def test_without_lm_eval_the_package_is_named(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "axk1.integrations.lm_eval.scorer", raising=False)
    done = CliRunner().invoke(app, ["eval", "models/nano", "--tasks", "aime25"])
    assert done.exit_code == 2 and "pip install 'axk1[eval]'" in done.output + str(done.exception)


def test_tasks_find_their_benchmark() -> None:
    names = {
        task: getattr(of_task(task), "name", None) for task in ("kmmlu", "kmmlu_direct_law", "ifeval", "arc", "hle")
    }
    assert names == {"kmmlu": "KMMLU", "kmmlu_direct_law": "KMMLU", "ifeval": "IFEval", "arc": None, "hle": None}
    assert len(BENCHMARKS) == 22 and len({each.name for each in BENCHMARKS}) == 22


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


@needs_lm_eval
def test_the_tasks_of_the_table_are_lm_evals() -> None:
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert {task for each in BENCHMARKS for task in each.tasks} <= known
