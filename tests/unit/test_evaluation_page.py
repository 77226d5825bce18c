"""The page of `axk1 eval --report`: whole by itself, its bars where the numbers are."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from axk1.evaluation.held_out import Result
from axk1.evaluation.intervals import share_of
from axk1.evaluation.page import LEFT, RIGHT, WIDTH, page
from axk1.evaluation.task_results import TaskResult, of_replies, of_results

SVG = "{http://www.w3.org/2000/svg}"


def made(task: str, think: bool, right: int, all: int = 20, metric: str = "exact_match,letter") -> TaskResult:
    scores = {"other": share_of([(0, 1.0)]), metric: share_of((n, float(n < right)) for n in range(all))}
    return of_replies(task, think, scores, [(n, 100 + n, n > 0) for n in range(all)])


RESULTS = [made("axk1_kmmlu", True, 15), made("axk1_kmmlu", False, 5), made("mine<&>", True, 20, metric="last")]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def charts(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_page_needs_nothing_else() -> None:
    text = page("a <model>", RESULTS, ["Drawn with <care>."])
    tags = Tags()
    tags.feed(text)
    names = {name for name, _ in tags.found}
    assert {"table", "svg", "style", "h1"} <= names and not names & {"script", "link", "img", "iframe"}
    assert not any(key in ("src", "href") for _, attributes in tags.found for key in attributes)
    assert "a &lt;model&gt;" in text and "<care>" not in text and "mine&lt;&amp;&gt;" in text
    for number in ("75.0%", "53.1% to 88.8%", "25.0%", "80.2", "73.0", "95.0%", "109.5", "119"):
        assert number in text, number


def test_bars_and_intervals_are_where_the_numbers_are() -> None:
    scores, lengths = charts(page("m", RESULTS))
    thick = [each for each in scores.iter(f"{SVG}polyline") if each.get("stroke-width") == "10"]
    lines = [[tuple(map(float, point.split(","))) for point in each.attrib["points"].split()] for each in thick]
    bars = [points for points in lines if points[0][0] == LEFT and points[0][1] > 30]
    width = WIDTH - LEFT - RIGHT
    assert [round((end[0] - LEFT) / width, 2) for _, end in bars] == [0.75, 0.25, 1.0]
    diamonds = [each.attrib["points"].split()[0] for each in scores.iter(f"{SVG}polygon")]
    assert [round((float(point.split(",")[0]) - LEFT) / width, 3) for point in diamonds] == [0.802, 0.73]
    thin = [each for each in scores.iter(f"{SVG}polyline") if each.get("stroke") == "#111"]
    low, high = (float(point.split(",")[0]) for point in thin[0].attrib["points"].split())
    assert [round((x - LEFT) / width, 3) for x in (low, high)] == [0.531, 0.888]
    assert "Mean tokens" in ET.tostring(lengths, encoding="unicode")
    for chart in (scores, lengths):
        assert all(0 <= float(each.attrib["x"]) <= WIDTH for each in chart.iter(f"{SVG}text"))


def test_no_published_scores_no_comparison() -> None:
    assert "Published scores</h2>" not in page("m", [made("mine", True, 3)])
    assert "Published scores</h2>" in page("m", RESULTS)


def test_the_metric_of_the_card_is_the_main_one() -> None:
    assert RESULTS[0].main == "exact_match,letter" and RESULTS[2].main == "last"
    record = RESULTS[0].record()
    assert record["published"]["A.X K1"] == 80.2 and record["scores"]["exact_match,letter"]["share"] == 0.75
    assert record["problems"] == record["replies"] == 20 and record["mode_obeyed"]["share"] == 0.95


def test_results_of_our_problems_by_mode() -> None:
    shown = {"task": "word", "language": "en", "multi_step": False, "expected": "1", "reasoning": "", "answer": ""}

    def result(question: str, think: bool, correct: bool) -> Result:
        return Result(
            **shown,
            think=think,
            question=question,
            correct=correct,
            mode_obeyed=think,
            language_kept=True,
            tokens=9 if think else 3,
        )

    found = of_results("probe", [result(q, think, q == "a") for think in (False, True) for q in "aab"])
    assert [each.mode for each in found] == ["Think", "Non-Think"]
    assert [(each.problems, each.replies, each.mean_tokens) for each in found] == [(2, 3, 9.0), (2, 3, 3.0)]
    assert found[0].scores["correct"]["share"] == 0.6667 and found[1].mode_obeyed["share"] == 0.0
    with pytest.raises(ValueError, match="no problems"):
        of_replies("none", True, {}, [])
