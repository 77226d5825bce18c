"""A real server, asked by the official client: both modes, whole and streamed, tools, budget, accuracy, lm-eval."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_server import ASK, PLAIN, THINK, TOOLS, Asked, free_port, serving
from samples import script_tool_call
from support import FLOAT32, LM_EVAL, NANO, environment

from axk1.chat import load
from axk1.evaluation.held_out import answer_problems
from axk1.integrations.lm_eval import write_task


@contextmanager
def serve(folder: Path, log: Path, *options: str) -> Iterator[Asked]:
    """A server of ``folder``, which is stopped afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "axk1", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--enforce-eager", "--max-num-seqs", "16", "--reasoning-parser", "axk1", *options]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "axk1"]
    with serving(command, port, log, environment()) as client:
        yield Asked(client, "axk1")


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Iterator[Asked]:
    """The nano, in fp32 and with its MTP drafts."""
    drafts = '{"method": "mtp", "num_speculative_tokens": 1, "attention_backend": "CPU_MLA"}'
    log = tmp_path_factory.mktemp("nano") / "server.log"
    with serve(NANO, log, *FLOAT32, "--speculative-config", drafts) as served:
        yield served


def test_modes(nano: Asked) -> None:
    nano.check_modes()
    plain, default = (nano.ask(ASK, **options).choices[0].message for options in ({"extra_body": PLAIN}, {}))
    assert plain.content == default.content  # Non-Think is the template's own default


def test_budget(nano: Asked) -> None:
    short = nano.ask(ASK, extra_body=THINK | {"thinking_token_budget": 4})
    message = short.choices[0].message
    assert message.content and len(message.reasoning) < len(
        nano.ask(ASK, extra_body=THINK).choices[0].message.reasoning
    )
    assert short.choices[0].finish_reason == "stop"


def test_tools_do_not_disturb_an_answer(nano: Asked) -> None:
    whole = nano.ask(ASK, tools=TOOLS, extra_body=THINK).choices[0]
    reasoning, answer, calls, reasons = nano.streamed(ASK, tools=TOOLS, extra_body=THINK)
    assert (reasoning, answer) == (whole.message.reasoning or "", whole.message.content or "")
    assert not calls and reasons == [whole.finish_reason]


@pytest.mark.parametrize("think", [True, False])
def test_accuracy_is_ours(nano: Asked, think: bool) -> None:
    nano.check_accuracy(NANO, think)


def lm_eval(base_url: str, folder: Path, *options: str) -> tuple[int, float]:
    """How many problems lm-eval's own command line asked, and its exact match; ``folder`` holds the task."""
    assert LM_EVAL.exists(), "lm-eval is not installed; `make engines` installs it"
    model = f"base_url={base_url}chat/completions,model=axk1,num_concurrent=8"
    command = [str(LM_EVAL), "--model", "local-chat-completions", "--model_args", model, "--tasks", "axk1_problems"]
    command += ["--include_path", str(folder), "--apply_chat_template", "--output_path", str(folder / "results.json")]
    offline = environment(HF_HOME=str(folder / "cache"), HF_DATASETS_OFFLINE="1")
    done = subprocess.run([*command, *options], env=offline, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-4_000:]
    (written,) = folder.glob("results*.json")
    report = json.loads(written.read_text())
    shares = report["results"]["axk1_problems"]
    return report["n-samples"]["axk1_problems"]["effective"], shares["exact_match,last-number"]


@pytest.mark.parametrize("think", [False, True])
def test_lm_eval(nano: Asked, tmp_path: Path, think: bool) -> None:
    """lm-eval's exact match is the share of right answers in process, except for near ties between two tokens."""
    problems = write_task(tmp_path, 40, seed=1)
    right = sum(result.correct for result in answer_problems(load(NANO), problems, think))
    options = ("--gen_kwargs", json.dumps(THINK)) if think else ()
    asked, exact_match = lm_eval(str(nano.client.base_url), tmp_path, *options)
    assert asked == len(problems)
    assert abs(exact_match * asked - right) < 2.5, (exact_match, right)
    assert (right > 30) == think  # the two modes are told apart


def test_tool_calls(tmp_path: Path) -> None:
    with serve(script_tool_call(tmp_path / "model"), tmp_path / "server.log", *FLOAT32) as served:
        served.check_tool_call()
