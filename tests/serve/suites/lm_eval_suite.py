"""lm-eval's ``local-completions``, unmodified, against ``axk1 serve`` on the nano: its scores are the model's own.

Log-probabilities of answers to choose from, and of whole texts, come from ``/v1/completions`` with ``echo``; they are
compared with those of a forward pass in this process. AXK1_LM_EVAL names the command of its environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from serving import NANO, Running, serving

from axk1.engine.engine import ModelEngine
from axk1.engine.settings import Settings as EngineSettings
from axk1.integrations.lm_eval import one_number_problems
from axk1.load import load, load_tokenizer

COUNT = 40
CHOICES = """task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
target_delimiter: ""
doc_to_text: "{{question}} The answer is"
doc_to_choice: values
doc_to_target: right
metric_list: [{metric: acc}]
"""
TEXTS = """task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
"""
MODEL, TOKENIZER = load(NANO, dtype="float32")


def scores(context: list[int], ids: list[int]) -> tuple[float, bool]:
    """The log-probability of ``ids`` after ``context``, and whether each of them is the most probable."""
    with torch.no_grad():
        logits = MODEL(torch.tensor([context + ids]), use_cache=False).logits[0, len(context) - 1 : -1].log_softmax(-1)
    chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    return float(chosen.sum()), bool((logits.argmax(-1) == torch.tensor(ids)).all())


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with serving(ModelEngine(MODEL, EngineSettings(streams=8, pages=512)), load_tokenizer(NANO)) as running:
        yield running


@pytest.fixture(scope="module")
def told(served: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What lm-eval wrote about each sample, by task."""
    folder = tmp_path_factory.mktemp("lm-eval")
    rows = [
        {"question": p.question, "values": [f" {int(p.value) + off}" for off in (0, 1, -2, 10)], "right": 0}
        for p in one_number_problems(COUNT, seed=3)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, task in (("choices", CHOICES), ("texts", TEXTS)):
        (folder / f"{name}.yaml").write_text(task.replace("ROWS", str(folder / "rows.jsonl")))
    given = f"model=axk1,base_url={served.url}/v1/completions,tokenizer_backend=huggingface,tokenizer={NANO}"
    command = [os.environ["AXK1_LM_EVAL"], "run", "--model", "local-completions", "--model_args"]
    command += [f"{given},num_concurrent=4,max_retries=1", "--batch_size", "4", "--tasks", "choices,texts"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **offline})
    found = {}
    for task in ("choices", "texts"):
        (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(found[task]) == COUNT
    return found


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_answers_to_choose_from(told: dict[str, list[dict]]) -> None:
    worst, right = 0.0, 0
    for sample in told["choices"]:
        context, expected = f"{sample['doc']['question']} The answer is", []
        for value in sample["doc"]["values"]:
            ids = encode(context + value)
            cut = len(encode(context))
            expected.append(scores(ids[:cut], ids[cut:]))
        found = [(float(each[0]), str(each[1]) == "True") for each in sample["filtered_resps"]]
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        worst = max(worst, *(abs(a - b) for (a, _), (b, _) in zip(found, expected, strict=True)))
        sums = [total for total, _ in expected]
        assert sample["acc"] == float(sums.index(max(sums)) == 0)
        right += sample["acc"]
    sys.stdout.write(f"lm-eval: accuracy {right / COUNT:.3f} as in process, log-probabilities within {worst:.1e}\n")
    assert worst < 1e-3


def test_texts(told: dict[str, list[dict]]) -> None:
    begin: Any = TOKENIZER.bos_token_id if TOKENIZER.bos_token_id is not None else TOKENIZER.eos_token_id
    for sample in told["texts"]:
        total, _ = scores([begin], encode(sample["doc"]["question"]))
        (found,) = sample["filtered_resps"]
        assert float(found[0] if isinstance(found, list) else found) == pytest.approx(total, abs=1e-3)
