"""`axk1 eval` through lm-eval itself: test_lm_eval.py runs this where it is installed.

Records are ours, in each benchmark's own fields; replies are scripted, so that each score is known beforehand, or the
nano's. Data hubs are not asked.
"""

# pyright: reportMissingImports=false

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
from serving import NANO, Running, serving

from axk1.chat import Chat, load
from axk1.cli.main import app
from axk1.engine.scripted import Script, ScriptedEngine
from axk1.evaluation.benchmarks import BENCHMARKS
from axk1.evaluation.held_out import answer_problems
from axk1.evaluation.intervals import wilson
from axk1.generation.sampling import GREEDY, Sampling
from axk1.integrations.lm_eval import write_task
from axk1.integrations.lm_eval.endpoint import Endpoint, reply_of
from axk1.integrations.lm_eval.model import cut
from axk1.integrations.lm_eval.run import TASKS, Tasks
from axk1.load import load_tokenizer

OPTIONS = ["가", "나", "다", "라"]
FIELDS: dict[str, list[dict[str, Any]]] = {
    "axk1_kmmlu": [
        {"question": f"{n} first?", **dict(zip("ABCD", OPTIONS, strict=True)), "answer": n, "Category": "Law"}
        for n in (2, 3)
    ],
    "axk1_kmmlu_pro": [
        {"question": f"{n} second?", "options": [*OPTIONS, "마"], "solution": str(n), "license_name": "약사"}
        for n in (2, 5)
    ],
    "axk1_kmmlu_redux": [{"question": f"{n} third?", "options": OPTIONS, "solution": n} for n in (2, 1)],
    "axk1_click": [
        {"id": "a", "paragraph": "", "question": "4 fourth?", "choices": OPTIONS, "answer": "나"},
        {"id": "b", "paragraph": "Text.", "question": "5 fourth?", "choices": [*OPTIONS, "마"], "answer": "마"},
    ],
    "axk1_kobalt": [
        {"ID": "x", "Class": "Syntax", "Question": f"{n} fifth?\nA: 가\nB: 나\nJ: 차", "Answer": right, "Level": 1}
        for n, right in ((6, "B"), (7, "J"))
    ],
}
"""Of each task one record whose answer is B and one whose answer is another letter."""
INSTRUCTIONS = [
    {
        "key": number,
        "prompt": f"{number} sixth?",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{"keywords": None, "num_words": None}, {"keywords": ["정답"], "num_words": None}],
    }
    for number in (1, 2)
]
"""As IFEval-ko: fields that an instruction has no use for are null."""
SCRIPTS = [
    Script(["하나, 둘"], "2 sixth?", "Let me see."),
    Script(["까닭이 있습니다.\n\n정답: B"], "", "A or B? It is B."),
]


def write_fixture(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A task as it is shipped, with records of a file in place of the hub's."""
    values = yaml.load((TASKS / f"{name}.yaml").read_text(encoding="utf-8"), type("Loader", (yaml.BaseLoader,), {}))
    split = values.get("test_split", "test")
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    task = {"include": str(TASKS / f"{name}.yaml"), "task": name, "dataset_path": "json", "dataset_name": None}
    (folder / f"{name}.yaml").write_text(json.dumps({**task, "dataset_kwargs": {"data_files": {split: str(file)}}}))


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--include``."""
    yaml.BaseLoader.add_multi_constructor("!", lambda loader, suffix, node: node.value)
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in FIELDS.items():
        write_fixture(folder, name, rows)
    write_fixture(folder, "axk1_ifeval_ko", INSTRUCTIONS)
    rows = folder / "axk1_kobalt.jsonl"
    own = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test"}
    own |= {"doc_to_text": "{{Question}}", "doc_to_target": "{{Answer}}"}
    refused = {
        "choices": {"output_type": "multiple_choice", "doc_to_choice": ["A", "B"], "doc_to_target": 0},
        "begun": {"output_type": "generate_until", "gen_prefix": "It is"},
        "runs": {"output_type": "generate_until", "unsafe_code": True},
        "words": {"output_type": "generate_until", "metric_list": [{"metric": "bleu"}]},
    }
    for name, values in refused.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **own, **values}))
    return folder


@contextmanager
def scripted() -> Iterator[Running]:
    tokenizer = load_tokenizer(NANO)
    with serving(ScriptedEngine(tokenizer, SCRIPTS), tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with scripted() as running:
        yield running


@pytest.fixture(scope="module")
def nano() -> Chat:
    return load(NANO)


def invoke(*arguments: object) -> dict[str, Any]:
    """The JSON report of a command that ends well."""
    done = CliRunner().invoke(app, ["eval", *map(str, arguments), "--json"])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return json.loads(done.stdout)


def test_every_task_of_ours_on_records_in_its_benchmarks_own_fields(
    server: Running, fixtures: Path, tmp_path: Path
) -> None:
    """Over HTTP, in both modes: of two records one is right; lengths, obedience, published scores, page, replies."""
    page, details = tmp_path / "report.html", tmp_path / "replies.jsonl"
    names = ",".join(["KMMLU", *list(FIELDS)[1:], "IFEval-ko"])
    files = ("--report", page, "--details", details)
    report = invoke(server.url, "--tasks", names, "--include", fixtures, *files)
    found = {(each["task"], each["think"]): each for each in report["tasks"]}
    assert len(found) == 2 * 6
    for (task, think), each in found.items():
        metric = "prompt_level_strict_acc" if task == "axk1_ifeval_ko" else "exact_match,letter"
        assert each["scores"][metric] == {"share": 0.5, "count": 2, "interval": list(wilson(0.5, 2))}, task
        assert each["problems"] == each["replies"] == 2 and each["mode_obeyed"]["share"] == 1.0
        assert "A.X K1" in each["published"] or not think
    assert found["axk1_kmmlu", True]["published"]["A.X K1"] == 80.2
    assert all(found[task, True]["mean_tokens"] > found[task, False]["mean_tokens"] for task in FIELDS)
    rows = [json.loads(line) for line in details.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 24
    assert all((row["reasoning"] != "") == row["think"] for row in rows)
    assert {row["answer"] for row in rows if row["task"] in FIELDS} == {"까닭이 있습니다.\n\n정답: B"}
    text = page.read_text(encoding="utf-8")
    assert "80.2" in text and "axk1_click" in text and "<script" not in text


def test_instructions_count_each_and_all_together(server: Running, fixtures: Path) -> None:
    report = invoke(server.url, "--tasks", "axk1_ifeval_ko", "--include", fixtures, "--mode", "non-think")
    (result,) = report["tasks"]
    scores = {name: share["share"] for name, share in result["scores"].items()}
    assert scores["inst_level_strict_acc"] == 0.5 and scores["prompt_level_strict_acc"] == 0.5
    assert result["scores"]["inst_level_strict_acc"]["count"] == 4
    assert result["scores"]["inst_level_strict_acc"]["interval"] == list(wilson(0.5, 2))  # two prompts


def test_our_problems_at_a_server(server: Running, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "Which?", "answer": "B"}\n{"prompt": "2 sixth?", "answer": "B"}\n')
    report = invoke(server.url + "/v1", "--tasks", file, "--batch-size", 1)
    assert report["think"]["all"]["share"] == report["non_think"]["all"]["share"] == 0.5
    assert report["mode_obeyed"]["share"] == 1.0 and "mtp_acceptance" not in report
    assert [each["task"] for each in report["tasks"]] == [str(file)] * 2


@pytest.mark.parametrize("think", [True, False])
def test_in_process_scores_are_those_of_our_own_evaluation(nano: Chat, tmp_path: Path, think: bool) -> None:
    """The nano on 20 problems: lm-eval's exact match is the share that `axk1 eval` finds, reply for reply."""
    problems = write_task(tmp_path, 20, seed=1)
    ours = answer_problems(nano, problems, think)
    tasks = Tasks(["axk1_problems"], [tmp_path])
    result, records = tasks.run("axk1_problems", nano, think, sampling=GREEDY, batch_size=64, max_new_tokens=256)
    assert [(row["reasoning"], row["answer"], row["tokens"]) for row in records] == [
        (each.reasoning, each.answer, each.tokens) for each in ours
    ]
    share = sum(each.correct for each in ours) / 20
    assert result.scores["exact_match,last-number"] == {"share": share, "count": 20, "interval": wilson(share, 20)}
    assert (share > 0.7) == think and result.mode_obeyed["share"] == sum(each.mode_obeyed for each in ours) / 20


def test_repeats_are_drawn_anew_and_are_no_more_problems(nano: Chat, tmp_path: Path) -> None:
    write_task(tmp_path, 4, seed=1)
    tasks, sampling = Tasks(["axk1_problems"], [tmp_path]), Sampling(temperature=1.5, top_p=1.0, seed=7)
    how = {"sampling": sampling, "batch_size": 3, "max_new_tokens": 40}
    result, records = tasks.run("axk1_problems", nano, True, repeats=3, **how)
    assert (result.problems, result.replies) == (4, 12)
    share = result.scores["exact_match,last-number"]
    assert share["count"] == 12 and share["interval"] == pytest.approx(wilson(share["share"] or 0.0, 4), abs=1e-4)
    by_problem: dict[int, set[str]] = {}
    for row in records:
        by_problem.setdefault(row["problem"], set()).add(row["reasoning"])
    assert max(len(found) for found in by_problem.values()) > 1
    again, _ = tasks.run("axk1_problems", nano, True, repeats=3, **how)
    assert again == result  # the same command gives the same report, with the same tasks loaded


def test_the_nano_on_a_benchmarks_records(nano: Chat, fixtures: Path) -> None:
    """All of the way in process, in both modes, limited to one problem."""
    report = invoke(NANO, "--tasks", "KoBALT", "--include", fixtures, "--problems", 1, "--max-new-tokens", 16)
    assert [(each["think"], each["problems"]) for each in report["tasks"]] == [(True, 1), (False, 1)]
    assert all(0 < each["mean_tokens"] <= 16 for each in report["tasks"])


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("begun", "begun begins the model's answer itself"),
        ("choices", "choices compares log-probabilities of given texts"),
        ("runs", "runs runs code that the model wrote, on this machine; allow it with --run-code"),
        ("no_such_task", '"no_such_task" is no task'),
        ("kmmlu_accounting", "kmmlu_accounting"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_model_loads(fixtures: Path, tasks: str, said: str) -> None:
    refused = CliRunner().invoke(app, ["eval", "/nowhere", "--tasks", tasks, "--include", str(fixtures)])
    assert refused.exit_code == 2 and said in refused.stderr and "/nowhere" not in refused.stderr


def test_a_metric_that_is_no_number_for_each_problem_is_refused(server: Running, fixtures: Path) -> None:
    refused = CliRunner().invoke(app, ["eval", server.url, "--tasks", "words", "--include", str(fixtures)])
    assert refused.exit_code == 2 and "no metric that is a number" in refused.stderr, refused.stderr


def test_a_server_that_is_not_there_or_has_other_models(server: Running) -> None:
    with pytest.raises(ValueError, match="names no models"):
        Endpoint("http://127.0.0.1:9")
    with pytest.raises(ValueError, match='--served-model is "other"'):
        Endpoint(server.url, "other")
    endpoint = Endpoint(server.url)
    endpoint.base_url, endpoint.max_retries = "http://127.0.0.1:9/v1/chat/completions", 1
    with pytest.raises(ValueError, match="gave no reply"):
        endpoint.reply_batch([[{"role": "user", "content": "x"}]], think=True, sampling=GREEDY)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", None])
def test_reasoning_is_found_wherever_a_server_puts_it(field: str | None) -> None:
    message = {"content": "4"} | ({field: "2+2"} if field else {})
    if field is None:
        message = {"content": "<think>2+2</think>4"}
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 5}}
    reply = reply_of({"message": message, "finish_reason": "stop"}, usage)
    assert (reply.reasoning, reply.answer, reply.finish_reason) == ("2+2", "4", "stop")
    assert (reply.prompt_tokens, reply.reasoning_tokens, reply.answer_tokens) == (3, 5, 4)
    cut_off = reply_of({"message": {"content": None, "reasoning": "2+"}, "finish_reason": "length"}, {})
    assert (cut_off.answer, cut_off.finish_reason, cut_off.closed) == ("", "length", False)


def test_stop_strings_cut_the_answer() -> None:
    assert (
        cut("a. b\n\nc", ["\n\n", "."]) == "a" and cut("abc", []) == cut("abc", None) == cut("abc", ["", "x"]) == "abc"
    )
    assert cut("a Q: b", "Q:") == "a "


def test_names_of_lm_evals_tasks_are_its_own() -> None:
    """Of each benchmark that it runs; and they ask for replies, as far as their YAML says so without data."""
    from lm_eval.tasks import TaskManager

    index = TaskManager(include_path=str(TASKS)).task_index
    for each in BENCHMARKS:
        if each.package in ("axk1", "lm-eval"):
            assert each.task in index, each.name
            entry: Any = index[each.task]
            assert (entry.cfg or {}).get("output_type", "generate_until") == "generate_until", each.name
