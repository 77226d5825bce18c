"""The benchmarks of A.X K1's model card: which package has them, and the scores that the card gives."""

from __future__ import annotations

from typing import NamedTuple

Scores = tuple[float, float, float]
MODELS = ("A.X K1", "DeepSeek-V3.1", "GLM-4.6")
LM_EVAL, EVALSCOPE, INSPECT = "lm-eval 0.4.13", "evalscope 1.14.1", "inspect-evals 0.26"


class Benchmark(NamedTuple):
    """One benchmark of the card.

    Attributes:
        name: as the card has it.
        packages: that have it, of those that were looked at; none where nothing was found.
        tasks: their names in lm-eval.
        think, non_think: scores of ``MODELS`` in percent; None where the card gives none.
    """

    name: str
    packages: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    think: Scores | None = None
    non_think: Scores | None = None


BENCHMARKS = (
    Benchmark("KMMLU", (LM_EVAL,), ("kmmlu_direct", "kmmlu"), (80.2, 76.5, 79.9), (73.0, 78.7, 77.7)),
    Benchmark("KMMLU-Redux", (), (), (77.9, 75.9, 78.2), (68.3, 75.9, 73.4)),
    Benchmark("KMMLU-Pro", (), (), (68.1, 71.4, 71.8), (60.3, 67.9, 68.2)),
    Benchmark("CLIcK", (LM_EVAL,), ("click",), (84.9, 84.5, 84.9), (77.2, 80.9, 77.9)),
    Benchmark("KoBALT", (), (), (48.8, 59.7, 59.2)),
    Benchmark("MMLU-Pro", (LM_EVAL,), ("mmlu_pro",), (81.5, 85.1, 82.9)),
    Benchmark("GPQA-D", (LM_EVAL,), ("gpqa_diamond_cot_zeroshot",), (74.0, 77.9, 78.0)),
    Benchmark("IFBench", (EVALSCOPE,), (), (64.7, 41.5, 43.4), (44.3, 37.8, 36.7)),
    Benchmark("IFEval", (LM_EVAL,), ("ifeval",), (80.4, 84.4, 86.1), (78.6, 82.7, 87.2)),
    Benchmark("IFEval-ko", (), (), (81.0, 79.2, 85.8)),
    Benchmark("AIME25", (LM_EVAL,), ("aime25",), (89.8, 88.4, 86.0)),
    Benchmark("AIME25-ko", (), (), (80.4, 81.3, 80.4)),
    Benchmark("HRM8K", (LM_EVAL,), ("hrm8k",), (84.3, 84.3, 83.9)),
    Benchmark("LiveCodeBench v6", (EVALSCOPE,), (), (75.8, 69.5, 76.0)),
    Benchmark("LCB-ko", (), (), (73.1, 66.2, 55.9)),
    Benchmark("HumanEval+", (LM_EVAL,), ("humaneval_plus",), (87.2, 86.0, 83.5), (79.9, 87.8, 89.0)),
    Benchmark("HumanEval+ ko", (), (), (90.2, 93.9, 86.0), (75.6, 86.6, 92.1)),
    Benchmark("MBPP+", (LM_EVAL,), ("mbpp_plus_instruct",), (93.0, 99.2, 98.9), (85.7, 92.6, 94.2)),
    Benchmark("SciCode", (EVALSCOPE, INSPECT), (), (32.4, 39.1, 38.4)),
    Benchmark("AA-LCR", (EVALSCOPE,), (), (36.0, 53.3, 54.3)),
    Benchmark("HLE", (EVALSCOPE, INSPECT), (), (8.6, 13.0, 13.3)),
    Benchmark("tau2-Telecom", (EVALSCOPE, INSPECT), (), (58.1, 37.4, 70.5)),
)


def of_task(task: str) -> Benchmark | None:
    """The benchmark that a task of lm-eval measures, or a part of it (``kmmlu_direct_law``)."""
    found = [(len(name), each) for each in BENCHMARKS for name in each.tasks if f"{task}_".startswith(f"{name}_")]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def table() -> str:
    """The benchmarks, their packages and tasks, and the card's scores, in Markdown."""
    lines = [
        f"| benchmark | package | task of lm-eval | Think: {' / '.join(MODELS)} | Non-Think |",
        "|---|---|---|---|---|",
    ]
    for each in BENCHMARKS:
        tasks = ", ".join(f"`{task}`" for task in each.tasks)
        scores = [" / ".join(f"{score:.1f}" for score in found or ()) for found in (each.think, each.non_think)]
        lines.append(f"| {' | '.join([each.name, ', '.join(each.packages) or 'none found', tasks, *scores])} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)
