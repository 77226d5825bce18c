"""A real server, asked by the official client: both modes, whole and streamed, tools, budget, accuracy, lm-eval."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from samples import script_tool_call
from support import FLOAT32, LM_EVAL, NANO, environment

from axk1.chat import load
from axk1.evaluation.held_out import answer_problems, held_out_problems
from axk1.integrations.lm_eval import write_task
from axk1.tasks import score

ASK = [{"role": "user", "content": "What is 17 + 25 - 9?"}]
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {}}}}]
IN_PROCESS = json.loads((NANO / "eval.json").read_text())


def serve(folder: Path, log: Path, *options: str) -> Iterator[OpenAI]:
    """A client of a server of ``folder``, which is stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "axk1", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--enforce-eager", "--max-num-seqs", "16", "--reasoning-parser", "axk1", *options]
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "axk1"]
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, start_new_session=True)
        try:
            wait(f"http://127.0.0.1:{port}/health", server, log)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def wait(url: str, server: subprocess.Popen, log: Path) -> None:
    """Until the server answers; its log, if it ended."""
    end = time.monotonic() + 200
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    pytest.fail("the server did not start:\n" + log.read_text()[-4_000:])


@pytest.fixture(scope="module")
def nano(tmp_path_factory) -> Iterator[OpenAI]:
    """The nano, in fp32 and with its MTP drafts."""
    drafts = '{"method": "mtp", "num_speculative_tokens": 1}'
    log = tmp_path_factory.mktemp("nano") / "server.log"
    yield from serve(NANO, log, *FLOAT32, "--speculative-config", drafts)


def ask(client: OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(model="axk1", messages=messages, temperature=0, max_tokens=256, **options)


def streamed(client: OpenAI, messages: list[Any], **options: Any) -> tuple[str, str, list[Any], list[Any]]:
    """Reasoning, answer, tool-call deltas and finish reasons of a streamed reply."""
    reasoning, answer, calls, reasons = "", "", [], []
    for chunk in ask(client, messages, stream=True, **options):
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            answer += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return reasoning, answer, calls, reasons


def test_modes(nano: OpenAI) -> None:
    plain = ask(nano, ASK)
    assert plain.choices[0].finish_reason == "stop"
    assert plain.choices[0].message.content and not plain.choices[0].message.reasoning
    thought = ask(nano, ASK, extra_body=THINK)
    message = thought.choices[0].message
    assert "33" in message.content and "42" in message.reasoning  # 17 + 25 = 42 on the way
    assert not any(tag in text for tag in ("<think>", "</think>") for text in (message.content, message.reasoning))
    assert streamed(nano, ASK) == ("", plain.choices[0].message.content, [], ["stop"])
    assert streamed(nano, ASK, extra_body=THINK) == (message.reasoning, message.content, [], ["stop"])


def test_budget(nano: OpenAI) -> None:
    short = ask(nano, ASK, extra_body=THINK | {"thinking_token_budget": 4})
    message = short.choices[0].message
    assert message.content and len(message.reasoning) < len(
        ask(nano, ASK, extra_body=THINK).choices[0].message.reasoning
    )
    assert short.choices[0].finish_reason == "stop"


def test_tools_do_not_disturb_an_answer(nano: OpenAI) -> None:
    whole = ask(nano, ASK, tools=TOOLS, extra_body=THINK).choices[0]
    reasoning, answer, calls, reasons = streamed(nano, ASK, tools=TOOLS, extra_body=THINK)
    assert (reasoning, answer) == (whole.message.reasoning or "", whole.message.content or "")
    assert not calls and reasons == [whole.finish_reason]


def test_accuracy_is_that_in_process(nano: OpenAI) -> None:
    """100 held-out problems a mode: the model card's share lies within the 99% confidence interval."""
    problems = held_out_problems(100, seed=1)
    for mode, extra in (("think", THINK), ("non_think", {})):
        with ThreadPoolExecutor(16) as pool:
            asked = ([{"role": "user", "content": problem.question}] for problem in problems)
            replies = list(pool.map(lambda messages, extra=extra: ask(nano, messages, extra_body=extra), asked))
        right = sum(score(p, r.choices[0].message.content or "") for p, r in zip(problems, replies, strict=True))
        share = IN_PROCESS[mode]["all"]["share"]
        assert abs(right / len(problems) - share) <= 2.58 * (share * (1 - share) / len(problems)) ** 0.5, (mode, right)


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
def test_lm_eval(nano: OpenAI, tmp_path: Path, think: bool) -> None:
    """lm-eval's exact match is the share of right answers in process, except for near ties between two tokens."""
    problems = write_task(tmp_path, 40, seed=1)
    right = sum(result.correct for result in answer_problems(load(NANO), problems, think))
    options = ("--gen_kwargs", json.dumps(THINK)) if think else ()
    asked, exact_match = lm_eval(str(nano.base_url), tmp_path, *options)
    assert asked == len(problems)
    assert abs(exact_match * asked - right) < 2.5, (exact_match, right)
    assert (right > 30) == think  # the two modes are told apart


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> Iterator[OpenAI]:
    """A model that answers every prompt with a tool call."""
    folder = tmp_path_factory.mktemp("caller")
    yield from serve(script_tool_call(folder / "model"), folder / "server.log", *FLOAT32)


def test_tool_calls(caller: OpenAI) -> None:
    for extra in ({}, THINK):
        choice = ask(caller, ASK, tools=TOOLS, extra_body=extra).choices[0]
        (call,) = choice.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("w", {})
        assert choice.finish_reason == "tool_calls"
        _, answer, (delta,), reasons = streamed(caller, ASK, tools=TOOLS, extra_body=extra)
        assert (answer, delta.function.name, delta.function.arguments) == ("", "w", "{}")
        assert reasons == ["tool_calls"]
