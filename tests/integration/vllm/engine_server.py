"""An engine's server asked by OpenAI's official client: what the tests of vLLM, mlx-lm and llama.cpp share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from axk1.chat import load
from axk1.evaluation.held_out import answer_problems, held_out_problems
from axk1.tasks import score

ASK = [{"role": "user", "content": "What is 17 + 25 - 9?"}]
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {}}}}]
STARTS = 200.0
"""Seconds that a server may take."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(
    command: Sequence[str], port: int, log: Path, environment: dict[str, str] | None = None
) -> Iterator[OpenAI]:
    """A client of the server that ``command`` starts on ``port``, which is stopped afterwards."""
    with log.open("w") as file:
        values = environment or dict(os.environ)
        server = subprocess.Popen(command, env=values, stdout=file, stderr=file, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def _wait(url: str, server: subprocess.Popen, log: Path) -> None:
    """Until the server answers; its log, if it ended."""
    end = time.monotonic() + STARTS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail("the server did not start:\n" + log.read_text()[-4_000:])


class Asked:
    """A server whose greedy replies are read: the name of its model, and of the field that holds the reasoning."""

    def __init__(self, client: OpenAI, model: str, reasoning: str = "reasoning") -> None:
        self.client, self.model, self.reasoning = client, model, reasoning

    def ask(self, messages: list[Any], **options: Any) -> Any:
        return self.client.chat.completions.create(
            model=self.model, messages=messages, temperature=0, max_tokens=256, **options
        )

    def reasoning_of(self, message: Any) -> str:
        """Of a message or a delta."""
        return getattr(message, self.reasoning, None) or ""

    def streamed(self, messages: list[Any], **options: Any) -> tuple[str, str, list[Any], list[str]]:
        """Reasoning, answer, tool-call deltas and finish reasons of a streamed reply."""
        reasoning, answer, calls, reasons = "", "", [], []
        for chunk in self.ask(messages, stream=True, **options):
            for choice in chunk.choices:
                reasoning += self.reasoning_of(choice.delta)
                answer += choice.delta.content or ""
                calls += choice.delta.tool_calls or []
                reasons += [choice.finish_reason] if choice.finish_reason else []
        return reasoning, answer, calls, reasons

    def check_modes(self) -> None:
        """Both modes of the nano, whole and streamed, reasoning apart from the answer."""
        plain = self.ask(ASK, extra_body=PLAIN).choices[0]
        assert plain.finish_reason == "stop" and plain.message.content and not self.reasoning_of(plain.message)
        message = self.ask(ASK, extra_body=THINK).choices[0].message
        reasoning = self.reasoning_of(message)
        assert "33" in message.content and "42" in reasoning  # 17 + 25 = 42 on the way
        assert not any(tag in text for tag in ("<think>", "</think>") for text in (message.content, reasoning))
        assert self.streamed(ASK, extra_body=PLAIN) == ("", plain.message.content, [], ["stop"])
        assert self.streamed(ASK, extra_body=THINK) == (reasoning, message.content, [], ["stop"])

    def check_accuracy(self, model: Path, think: bool, streams: int = 8) -> None:
        """40 held-out problems to a server in fp32: the replies in process, except for near ties of two tokens."""
        problems = held_out_problems(40, seed=1)
        extra = THINK if think else PLAIN
        with ThreadPoolExecutor(streams) as pool:
            asked = ([{"role": "user", "content": problem.question}] for problem in problems)
            replies = list(pool.map(lambda messages: self.ask(messages, extra_body=extra), asked))
        messages = [reply.choices[0].message for reply in replies]
        ours = answer_problems(load(model, dtype="float32"), problems, think)
        equal = sum(
            (self.reasoning_of(message), message.content) == (result.reasoning, result.answer)
            for message, result in zip(messages, ours, strict=True)
        )
        right = sum(score(problem, message.content or "") for problem, message in zip(problems, messages, strict=True))
        assert equal >= 38, equal
        assert abs(right - sum(result.correct for result in ours)) <= 2
        assert (right > 30) == think  # the two modes are told apart

    def check_tool_call(self, streams: bool = True) -> None:
        """Of a model that answers every prompt with a call (``samples.script_tool_call``)."""
        for extra in (PLAIN, THINK):
            choice = self.ask(ASK, tools=TOOLS, extra_body=extra).choices[0]
            (call,) = choice.message.tool_calls
            assert (call.function.name, call.function.arguments, choice.finish_reason) == ("w", "{}", "tool_calls")
            if streams:
                _, answer, deltas, reasons = self.streamed(ASK, tools=TOOLS, extra_body=extra)
                assert (answer, deltas[0].function.name, reasons) == ("", "w", ["tool_calls"])
                assert "".join(delta.function.arguments or "" for delta in deltas) == "{}"
