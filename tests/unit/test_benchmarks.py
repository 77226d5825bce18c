"""The benchmarks of K1's card: who runs each, published scores, commands, and what the documentation says of them."""

import json
import re
import shlex
from pathlib import Path

import pytest

from axk1.evaluation.benchmarks import BENCHMARKS, MODELS, OURS, VERSIONS, benchmark, published, task_of
from axk1.evaluation.held_out import SETS
from axk1.integrations.lm_eval.run import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
ASKED_FOR = [
    "KMMLU",
    "KMMLU-Redux",
    "KMMLU-Pro",
    "CLIcK",
    "KoBALT",
    "MMLU-Pro",
    "GPQA-D",
    "IFBench",
    "IFEval",
    "IFEval-ko",
    "AIME25",
    "HRM8K",
    "LiveCodeBench-v6",
    "HumanEval+",
    "MBPP+",
    "SciCode",
    "AA-LCR",
    "HLE",
    "tau2-Telecom",
    "AIME25-ko",
    "LCB-ko",
    "HumanEval+-ko",
]


def test_every_benchmark_of_the_card_is_there_once() -> None:
    assert sorted(each.name for each in BENCHMARKS) == sorted(ASKED_FOR)
    assert tuple(SETS) == OURS and not {each.name.lower() for each in BENCHMARKS} & set(OURS)
    for each in BENCHMARKS:
        scores = [score for mode in (each.think, each.non_think) if mode for score in mode]
        assert len(scores) in (3, 6) and all(0 < score < 100 for score in scores), each.name
        assert bool(each.package) == bool(each.task) == bool(each.metric) == bool(each.command())
        assert each.package or each.note


def test_published_scores_go_by_the_name_and_by_the_task() -> None:
    assert published("axk1_kmmlu", True) == {"A.X K1": 80.2, "DeepSeek-V3.1": 76.5, "GLM-4.6": 79.9}
    assert published("IFEVAL", False) == {"A.X K1": 78.6, "DeepSeek-V3.1": 82.7, "GLM-4.6": 87.2}
    assert published("hrm8k", False) == {} and published("templates", True) == {} and published("ifbench", True)
    assert benchmark("live_code_bench") is None  # evalscope's name is none of lm-eval's


def test_a_name_becomes_a_task_or_the_command_that_runs_it() -> None:
    assert [task_of(name) for name in ("KMMLU-Pro", "gpqa-d", "mmlu_pro", "gsm8k")] == [
        *("axk1_kmmlu_pro", "gpqa_diamond_cot_zeroshot", "mmlu_pro", "gsm8k")
    ]
    with pytest.raises(ValueError, match=r"IFBench is run by evalscope.*evalscope eval .*--datasets ifbench"):
        task_of("ifbench")
    with pytest.raises(ValueError, match="LCB-ko is in none of lm-eval"):
        task_of("LCB-ko")


def test_tasks_of_ours_have_their_files() -> None:
    ours = {each.task for each in BENCHMARKS if each.package == "axk1"}
    assert ours == {path.stem for path in TASKS.glob("*.yaml")}


@pytest.mark.parametrize("think", [True, False])
def test_commands_of_other_packages_are_whole(think: bool) -> None:
    """Each option has its value, JSON is JSON, and the mode is in it."""
    for each in BENCHMARKS:
        if each.package != "evalscope":
            continue
        words = shlex.split(each.command("k1", "http://host:1/v1", think))
        assert words[:2] == ["evalscope", "eval"] and len(words) % 2 == 0
        given = dict(zip(words[2::2], words[3::2], strict=True))
        assert (
            given["--model"] == "k1" and given["--api-url"] == "http://host:1/v1" and given["--datasets"] == each.task
        )
        how = json.loads(given["--generation-config"])
        assert how["extra_body"] == {"chat_template_kwargs": {"enable_thinking": think}}
        for option in ("--dataset-args", "--judge", "--sandbox"):
            assert isinstance(json.loads(given.get(option, "{}")), dict)
        assert set(json.loads(given.get("--dataset-args", "{}"))) <= {each.task}


def test_the_page_has_the_table() -> None:
    """Which task comes from which package, and the published scores, as the code has them."""
    text = PAGE.read_text(encoding="utf-8")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] in ASKED_FOR:
            rows[cells[0]] = cells[1:]
    assert list(rows) == [each.name for each in BENCHMARKS]
    for each in BENCHMARKS:
        package, task, *scores = rows[each.name]
        assert package == (each.package or "none found") and task.strip("`") == each.task
        for model, cell in zip(MODELS, scores, strict=True):
            modes = [each.published(think)[model] for think in (True, False) if each.published(think)]
            assert cell == " / ".join(f"{score:.1f}" for score in modes), (each.name, model)
    assert all(f"{package} {version}" in text for package, version in VERSIONS.items())
    assert re.search(r"tau2.{0,80}magnetism", text, re.DOTALL)
