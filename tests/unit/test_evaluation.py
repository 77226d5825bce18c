"""Intervals, repeats and problems of files in `axk1 eval`."""

import json
import random
from pathlib import Path

import pytest

from axk1.chat import Reply
from axk1.evaluation.held_out import Result, answer_problems, file_problems, held_out_problems, summary
from axk1.evaluation.intervals import wilson
from axk1.generation.sampling import Sampling
from axk1.tasks import score


def test_the_interval_is_wilsons() -> None:
    """Values of Newcombe (1998), table I; and it holds the true share in about 95 of 100 draws."""
    assert wilson(81 / 263, 263) == (0.2553, 0.3662)
    assert wilson(15 / 148, 148) == (0.0624, 0.1605)
    assert wilson(0.0, 20) == (0.0, 0.1611) and wilson(1.0, 29) == (0.883, 1.0)
    rng, held = random.Random(0), 0
    for _ in range(2_000):
        share = sum(rng.random() < 0.3 for _ in range(60)) / 60
        low, high = wilson(share, 60)
        held += low <= 0.3 <= high
    assert 0.93 < held / 2_000 < 0.97


def result(question: str, correct: bool, think: bool = True, tokens: int = 10) -> Result:
    shown = {"question": question, "expected": "1", "reasoning": "", "answer": "", "language": "en", "task": "word"}
    return Result(
        **shown, multi_step=False, think=think, correct=correct, mode_obeyed=True, language_kept=True, tokens=tokens
    )


def test_repeats_do_not_narrow_the_interval() -> None:
    once = [result(f"{n}", n % 2 == 0, tokens=n) for n in range(20)]
    report, repeated = summary(once)["think"], summary(once * 4)["think"]
    assert repeated["all"]["interval"] == report["all"]["interval"] == wilson(0.5, 20)
    assert (report["all"]["count"], repeated["all"]["count"]) == (20, 80)
    assert report["mean_tokens"] == 9.5 and report["longest_tokens"] == 19
    assert summary(once)["non_think"]["all"] == {"share": None, "count": 0, "interval": None}


def test_problems_of_a_file(tmp_path: Path) -> None:
    lines = [
        {"prompt": "1+1?", "answer": 2, "domain": "sums"},
        {"prompt": "Sort 3 1.", "answer": "1, 3", "language": "ko"},
        {"prompt": "Capital of France?", "answer": "Paris"},
        {"prompt": "1+1?", "answer": 2},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines))
    found = held_out_problems(10, problems=str(path))
    assert [(p.task, p.language, p.value) for p in found] == [
        ("sums", "en", "2"),
        ("own", "ko", "1, 3"),
        ("own", "en", "Paris"),
    ]
    assert score(found[0], "It is 2.") and not score(found[0], "It is 12.")
    assert score(found[1], "1, 3") and not score(found[1], "3, 1")
    assert score(found[2], "It is Paris.") and not score(found[2], "Paris or Rome")
    assert len(held_out_problems(2, problems=str(path))) == 2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"prompt": "x"}', '{"prompt": 1, "answer": 2}', '{"prompt": "x", "answer": 1.5}']
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "x", "answer": 1}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        list(file_problems(path))
    with pytest.raises(ValueError, match="cannot be read"):
        list(file_problems(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"no set of problems.*files ending in .jsonl"):
        held_out_problems(1, problems="mine")


class Recorder:
    """Says what it was asked with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def reply_batch(self, conversations, *, sampling, seeds, max_new_tokens, **options) -> list[Reply]:
        self.calls.append((sampling.temperature, tuple(seeds or ()), max_new_tokens))
        return [Reply("", "1", [], "stop", True, 1, 0, 1, 0.0) for _ in conversations]


def test_a_problem_has_its_seed_whatever_the_batches(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * (9 - n), "answer": n}) + "\n" for n in range(6)))
    problems, seeds = list(file_problems(path)), []
    for size in (2, 6):
        chat = Recorder()
        answer_problems(chat, problems, False, batch_size=size, sampling=Sampling(temperature=0.6, seed=3))  # pyright: ignore
        assert all(call[0] == 0.6 and call[2] == 256 for call in chat.calls) and len(chat.calls) == 6 // size
        seeds.append([seed for call in chat.calls for seed in call[1]])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 6
