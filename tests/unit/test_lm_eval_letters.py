"""The letter that our tasks for lm-eval take from a reply, and the prompts that they make of a record."""

import re
from typing import Any

import pytest
import yaml
from jinja2 import Environment

from axk1.integrations.lm_eval.run import TASKS


class Loader(yaml.SafeLoader):
    """Functions stay names."""


Loader.add_constructor("!function", lambda loader, node: str(node.value))


def task(name: str) -> dict[str, Any]:
    """A task's YAML with what it includes."""
    value = yaml.load((TASKS / name).read_text(encoding="utf-8"), Loader)
    return (task(value.pop("include")) if "include" in value else {}) | value


def letter(reply: str) -> str:
    """What lm-eval's regex filter takes."""
    how = task("_letter_yaml")["filter_list"][0]["filter"][0]
    found = re.compile(how["regex_pattern"]).findall(reply)
    return next((part for part in found[how["group_select"]] if part), "") if found else ""


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "정답: B",
            "정답은 B입니다.",
            "정답: (B)",
            "**정답: B**",
            '정답: "B"',
            "정답：B",
            "정답은 **B**입니다",
            "B",
            "(B)",
            "B.",
        ),
        *(
            "A와 C는 틀렸습니다.\n\n정답: B",
            "처음에는 정답: A라고 생각했지만\n정답: B",
            "정답: $\\boxed{B}$",
            "**B**\n",
        ),
        *("정답: \\boxed{\\text{B}}", "정답: `B`", "정답\nB", "정답은 B. 둘째 것"),
    ],
)
def test_the_letter_is_found(reply: str) -> None:
    assert letter(reply) == "B"


@pytest.mark.parametrize(
    "reply", ["", "모르겠습니다.", "B와 C 가운데 하나입니다.", "정답: Because", "정답은 없습니다.", "B or C"]
)
def test_no_letter_is_made_up(reply: str) -> None:
    assert letter(reply) == ""


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "axk1_kmmlu": ({"question": "물?", "A": "가", "B": "나", "C": "다", "D": "라", "answer": 2}, "B"),
    "axk1_kmmlu_pro": ({"question": "물?", "options": ["가", "나", "다", "라", "마"], "solution": "5"}, "E"),
    "axk1_kmmlu_redux": ({"question": "물?", "options": ["가", "나", "다", "라"], "solution": "1"}, "A"),
    "axk1_click": ({"paragraph": "글", "question": "물?", "choices": ["가", "나", "다", "라"], "answer": "다"}, "C"),
    "axk1_kobalt": ({"Question": "물?\nA: 가\nB: 나\nC: 다\nD: 라\nJ: 차", "Answer": "J"}, "J"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_the_prompt_has_the_question_and_every_choice(name: str) -> None:
    record, right = RECORDS[name]
    values = task(f"{name}.yaml")
    assert values["task"] == name and values["output_type"] == "generate_until" and values["num_fewshot"] == 0
    render = Environment().from_string
    prompt = render(values["doc_to_text"]).render(**record)
    assert all(text in prompt for text in ("물?", "가", "나", "다", "라", '"정답: (글자)"'))
    assert ("E. 마" in prompt) == (name == "axk1_kmmlu_pro") and ("글\n\n물?" in prompt) == (name == "axk1_click")
    assert render(values["doc_to_target"]).render(**record) == right
    assert letter(f"정답: {right}") == right
