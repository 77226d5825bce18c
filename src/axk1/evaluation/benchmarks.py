"""The benchmarks of A.X K1's model card: which package runs each, and the scores that are published."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any, Literal

Package = Literal["axk1", "lm-eval", "evalscope", ""]
"""``axk1``: a task of ours, which lm-eval runs. Empty: nothing found that has it."""
Scores = tuple[float, float, float]
"""Percent, of ``MODELS`` in their order."""

OURS = ("templates", "situations", "probe")
"""Sets of problems of our own (:data:`axk1.evaluation.held_out.SETS`)."""
MODELS = ("A.X K1", "DeepSeek-V3.1", "GLM-4.6")
SOURCE = "A.X K1's model card"
VERSIONS = {"lm-eval": "0.4.13", "evalscope": "1.14.1", "inspect-evals": "0.26"}
"""Those that the names of tasks were looked up in."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    ``name`` is the card's. ``task`` is its name in ``package``. ``metric`` is the one of the task to set beside the
    published scores; the card does not say how it scored. ``options`` are what the package's command needs besides.
    ``note`` says what a reader of a score has to know.
    """

    name: str
    kind: str
    package: Package
    task: str
    metric: str
    think: Scores | None
    non_think: Scores | None = None
    options: tuple[str, ...] = ()
    note: str = ""

    def published(self, think: bool) -> dict[str, float]:
        """Percent by model; empty where the card has none."""
        scores = self.think if think else self.non_think
        return {} if scores is None else dict(zip(MODELS, scores, strict=True))

    def command(self, model: str = "axk1", url: str = "http://127.0.0.1:8000/v1", think: bool = True) -> str:
        """The command that runs it; for other packages against the server at ``url``. Empty where nothing has it."""
        if not self.package:
            return ""
        if self.package != "evalscope":
            return f"axk1 eval {url} --tasks {self.name}"
        how = {"temperature": 0.6, "top_p": 0.95, "extra_body": {"chat_template_kwargs": {"enable_thinking": think}}}
        words = ["evalscope", "eval", "--model", model, "--api-url", url, "--eval-type", "openai_api"]
        words += ["--datasets", self.task, "--generation-config", json.dumps(how), *self.options]
        return shlex.join(words)


def _evalscope(dataset: str, **arguments: Any) -> tuple[str, ...]:
    return ("--dataset-args", json.dumps({dataset: arguments}))


_SANDBOX = ("--sandbox", '{"enabled": true}')
_JUDGE = (
    "--judge",
    '{"strategy": "llm", "models": {"model_id": "JUDGE", "api_url": "JUDGE_URL", "api_key": "JUDGE_KEY"}}',
)
_LOGPROBS = "lm-eval's own {} compares log-probabilities and has no modes"
_CODE = "lm-eval's {} begins the reply itself, which leaves no place for reasoning; evalscope runs code in Docker"
_TRANSLATED = (
    "no package found that has it; allganize/AIME2025-ko has AIME25's problems in Korean (problem_ko), whether the "
    "card's is not known"
)
_JUDGED = "a model judges; the card does not name its judge"

BENCHMARKS = (
    Benchmark(
        *("KMMLU", "knowledge, Korean", "axk1", "axk1_kmmlu", "exact_match,letter"),
        *((80.2, 76.5, 79.9), (73.0, 78.7, 77.7)),
        note=_LOGPROBS.format("kmmlu"),
    ),
    Benchmark(
        *("KMMLU-Redux", "knowledge, Korean", "axk1", "axk1_kmmlu_redux", "exact_match,letter"),
        *((77.9, 75.9, 78.2), (68.3, 75.9, 73.4)),
        note="the data are given out on request",
    ),
    Benchmark(
        *("KMMLU-Pro", "knowledge, Korean", "axk1", "axk1_kmmlu_pro", "exact_match,letter"),
        *((68.1, 71.4, 71.8), (60.3, 67.9, 68.2)),
        note="the data are given out on request",
    ),
    Benchmark(
        *("CLIcK", "culture and language, Korean", "axk1", "axk1_click", "exact_match,letter"),
        *((84.9, 84.5, 84.9), (77.2, 80.9, 77.9)),
        note=_LOGPROBS.format("click"),
    ),
    Benchmark(*("KoBALT", "linguistics, Korean", "axk1", "axk1_kobalt", "exact_match,letter"), (48.8, 59.7, 59.2)),
    Benchmark(
        *("MMLU-Pro", "knowledge", "lm-eval", "mmlu_pro", "exact_match,custom-extract"),
        (81.5, 85.1, 82.9),
        note="five examples before each question",
    ),
    Benchmark(
        *("GPQA-D", "science", "lm-eval", "gpqa_diamond_cot_zeroshot", "exact_match,flexible-extract"),
        (74.0, 77.9, 78.0),
        note="the data are given out on request",
    ),
    Benchmark(
        *("IFBench", "instructions", "evalscope", "ifbench", "prompt_level_strict"),
        *((64.7, 41.5, 43.4), (44.3, 37.8, 36.7)),
    ),
    Benchmark(
        *("IFEval", "instructions", "lm-eval", "ifeval", "prompt_level_strict_acc"),
        *((80.4, 84.4, 86.1), (78.6, 82.7, 87.2)),
        note="the card does not say which of IFEval's four metrics it has",
    ),
    Benchmark(
        *("IFEval-ko", "instructions, Korean", "axk1", "axk1_ifeval_ko", "prompt_level_strict_acc"),
        (81.0, 79.2, 85.8),
        note="judged by lm-eval's checks of IFEval; the authors' own are beside their data, for --include",
    ),
    Benchmark(
        *("AIME25", "mathematics", "lm-eval", "aime25", "exact_match"),
        (89.8, 88.4, 86.0),
        note="thirty problems: repeat them",
    ),
    Benchmark(*("AIME25-ko", "mathematics, Korean", "", "", ""), (80.4, 81.3, 80.4), note=_TRANSLATED),
    Benchmark(*("HRM8K", "mathematics, Korean", "lm-eval", "hrm8k", "exact_match"), (84.3, 84.3, 83.9)),
    Benchmark(
        *("LiveCodeBench-v6", "code", "evalscope", "live_code_bench", "accuracy"),
        (75.8, 69.5, 76.0),
        options=(*_evalscope("live_code_bench", subset_list=["v6"]), *_SANDBOX),
        note="the card does not say whether v6 is the last part (v6) or all to it (release_v6)",
    ),
    Benchmark(*("LCB-ko", "code, Korean", "", "", ""), (73.1, 66.2, 55.9), note="no package found that has it"),
    Benchmark(
        *("HumanEval+", "code", "evalscope", "humaneval_plus", "accuracy"),
        *((87.2, 86.0, 83.5), (79.9, 87.8, 89.0)),
        options=_SANDBOX,
        note="lm-eval's humaneval_plus has a text completed, not a question answered; evalscope runs code in Docker",
    ),
    Benchmark(
        *("HumanEval+-ko", "code, Korean", "", "", ""),
        *((90.2, 93.9, 86.0), (75.6, 86.6, 92.1)),
        note="no package found that has it",
    ),
    Benchmark(
        *("MBPP+", "code", "evalscope", "mbpp_plus", "accuracy"),
        *((93.0, 99.2, 98.9), (85.7, 92.6, 94.2)),
        options=_SANDBOX,
        note=_CODE.format("mbpp_plus_instruct"),
    ),
    Benchmark(
        *("SciCode", "code", "evalscope", "scicode", "subproblem_pass_rate"),
        (32.4, 39.1, 38.4),
        options=_SANDBOX,
        note="inspect-evals has it, too: inspect_evals/scicode",
    ),
    Benchmark(
        *("AA-LCR", "long context", "evalscope", "aa_lcr", "accuracy"), (36.0, 53.3, 54.3), options=_JUDGE, note=_JUDGED
    ),
    Benchmark(
        *("HLE", "knowledge", "evalscope", "hle", "accuracy"),
        (8.6, 13.0, 13.3),
        options=(*_evalscope("hle", extra_params={"include_multi_modal": False}), *_JUDGE),
        note=f"without pictures; {_JUDGED}; inspect-evals has it, too: inspect_evals/hle",
    ),
    Benchmark(
        *("tau2-Telecom", "tools in conversation", "evalscope", "tau2_bench", "accuracy"),
        (58.1, 37.4, 70.5),
        options=_evalscope(
            "tau2_bench",
            subset_list=["telecom"],
            extra_params={"user_model": "USER", "api_base": "USER_URL", "api_key": "USER_KEY"},
        ),
        note="another model plays the user; the tools are sierra-research/tau2-bench of GitHub (the registry's tau2 is "
        "about magnetism); inspect-evals has it, too: inspect_evals/tau2_telecom",
    ),
)


def benchmark(name: str) -> Benchmark | None:
    """The one of this name on the card, whatever the case of its letters, or of this task's name in lm-eval."""
    for each in BENCHMARKS:
        if each.name.lower() == name.lower() or (each.package in ("axk1", "lm-eval") and each.task == name):
            return each
    return None


def task_of(name: str) -> str:
    """What lm-eval calls a benchmark; a name that is on no card as it is.

    Raises:
        ValueError: the benchmark is run by another package, whose command is named, or by none.
    """
    found = benchmark(name)
    if found is None:
        return name
    if found.package == "evalscope":
        raise ValueError(f"{found.name} is run by evalscope, against a server: {found.command()}")
    if not found.package:
        raise ValueError(
            f"{found.name} is in none of {', '.join(VERSIONS)}; it is on the list for its published scores."
        )
    return found.task


def published(task: str, think: bool) -> dict[str, float]:
    """Published scores of the benchmark that lm-eval's ``task`` is of, in percent by model; empty where none are."""
    found = benchmark(task)
    return {} if found is None else found.published(think)
