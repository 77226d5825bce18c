"""llama-server with A.X K1, asked by the official client: both modes, whole and streamed, tools, accuracy."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import socket
import subprocess
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
from support import NANO

from axk1.chat import load
from axk1.evaluation.held_out import answer_problems, held_out_problems
from axk1.integrations.llamacpp.export import export_gguf
from axk1.tasks import score

ASK = [{"role": "user", "content": "What is 17 + 25 - 9?"}]
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {}}}}]


def serve(build: Path, file: Path, log: Path) -> Iterator[OpenAI]:
    """A client of a server of ``file``, which is stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(build / "bin" / "llama-server"), "-m", str(file), "--port", str(port), "--host", "127.0.0.1"]
    command += ["--jinja", "--no-context-shift", "-c", "8192", "-np", "4", "-t", "2"]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # as ours computes the nano in fp32
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=dict(os.environ), stdout=stream, stderr=stream, start_new_session=True)
        try:
            wait(f"http://127.0.0.1:{port}/health", server, log)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def wait(url: str, server: subprocess.Popen, log: Path) -> None:
    """Until the server answers; its log, if it ended."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail("the server did not start:\n" + log.read_text()[-4_000:])


@pytest.fixture(scope="module")
def client(build: Path, nano_f32: Path, tmp_path_factory) -> Iterator[OpenAI]:
    yield from serve(build, nano_f32, tmp_path_factory.mktemp("nano") / "server.log")


def ask(client: OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(
        model="default_model", messages=messages, temperature=0, max_tokens=256, **options
    )


def streamed(client: OpenAI, messages: list[Any], **options: Any) -> tuple[str, str, list[Any]]:
    """Reasoning, answer and finish reasons of a streamed reply."""
    reasoning, answer, reasons = "", "", []
    for chunk in ask(client, messages, stream=True, **options):
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            answer += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return reasoning, answer, reasons


def reasoning_of(message: Any) -> str:
    return getattr(message, "reasoning_content", None) or ""


def test_modes(client: OpenAI) -> None:
    plain = ask(client, ASK, extra_body=PLAIN).choices[0]
    assert plain.finish_reason == "stop" and plain.message.content and not reasoning_of(plain.message)
    message = ask(client, ASK, extra_body=THINK).choices[0].message
    assert "33" in message.content and "42" in reasoning_of(message)  # 17 + 25 = 42 on the way
    assert not any(tag in text for tag in ("<think>", "</think>") for text in (message.content, reasoning_of(message)))
    assert streamed(client, ASK, extra_body=PLAIN) == ("", plain.message.content, ["stop"])
    assert streamed(client, ASK, extra_body=THINK) == (reasoning_of(message), message.content, ["stop"])


@pytest.mark.parametrize("think", [True, False])
def test_accuracy_is_ours(client: OpenAI, think: bool) -> None:
    """40 held-out problems: the replies of the same weights in process, except for near ties between two tokens."""
    problems = held_out_problems(40, seed=1)
    with ThreadPoolExecutor(4) as pool:
        asked = ([{"role": "user", "content": problem.question}] for problem in problems)
        replies = list(pool.map(lambda messages: ask(client, messages, extra_body=THINK if think else PLAIN), asked))
    messages = [reply.choices[0].message for reply in replies]
    ours = answer_problems(load(NANO), problems, think)
    equal = sum(
        (reasoning_of(message), message.content) == (result.reasoning, result.answer)
        for message, result in zip(messages, ours, strict=True)
    )
    right = sum(score(problem, message.content or "") for problem, message in zip(problems, messages, strict=True))
    assert equal >= 38, equal
    assert abs(right - sum(result.correct for result in ours)) <= 2
    assert (right > 30) == think  # the two modes are told apart


def test_tool_calls(build: Path, tmp_path: Path) -> None:
    """A model that answers every prompt with a tool call."""
    (file,) = export_gguf(script_tool_call(tmp_path / "model"), tmp_path / "gguf", "f32")
    for client in serve(build, file, tmp_path / "server.log"):
        for extra in (PLAIN, THINK):
            choice = ask(client, ASK, tools=TOOLS, extra_body=extra).choices[0]
            (call,) = choice.message.tool_calls
            assert (call.function.name, call.function.arguments, choice.finish_reason) == ("w", "{}", "tool_calls")
