"""mlx-lm's own commands as `axk1 mlx` runs them: conversion, generation, adapters, kept prompts."""

# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.integrations import mlx as integration

PROMPT, COMPLETION = "What is the word?", "The word is yes."
QUESTION = "What is 17 + 25 - 9?"
PLAIN = ("--chat-template-config", '{"enable_thinking": false}')


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `axk1 mlx ...` in this process and returns what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["axk1"])
        capfd.readouterr()
        result = CliRunner().invoke(app, ["mlx", *map(str, arguments)])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output + "".join(capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def eight(nano: Path, tmp_path_factory) -> Path:
    """The nano in eight bits, by mlx-lm's own conversion."""
    folder = tmp_path_factory.mktemp("eight") / "model"
    options = ["--hf-path", nano, "--mlx-path", folder, "-q", "--q-bits", "8", "--q-group-size", "32"]
    result = CliRunner().invoke(app, ["mlx", "convert", *map(str, options)])
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def test_help_is_mlx_lms(run) -> None:
    assert "generate" in run("--help")


def test_generate(run, eight: Path) -> None:
    thought = run("generate", "--model", eight, "--prompt", QUESTION)
    assert "42" in thought and "The answer is 33." in thought and "</think>" in thought
    assert "</think>" not in run("generate", "--model", eight, "--prompt", QUESTION, *PLAIN)


def test_a_kept_prompt(run, eight: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    run("cache_prompt", "--model", eight, "--prompt", "You are kind.", "--prompt-cache-file", kept)
    assert "33." in run("generate", "--model", eight, "--prompt-cache-file", kept, "--prompt", QUESTION)


def completion_score(folder: Path, adapter: Path | None = None) -> float:
    """Log-probability of the completion that the adapter is trained on."""
    model, tokenizer = load(str(folder), adapter_path=str(adapter) if adapter else None)[:2]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    answer = tokenizer.encode(COMPLETION, add_special_tokens=False)
    logits = model(mx.array([prompt + answer]))[0, len(prompt) - 1 : -1].astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.array(answer)[:, None], axis=-1)[:, 0]
    return (chosen - mx.logsumexp(logits, axis=-1)).sum().item()


def test_an_adapter(run, eight: Path, tmp_path: Path) -> None:
    """Adapters on attention and experts learn a completion; fused, the model knows it as well."""
    row = json.dumps({"prompt": PROMPT, "completion": COMPLETION}) + "\n"
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(row * 2)
    files = ("--data", tmp_path, "--adapter-path", tmp_path / "adapter")
    size = ("--num-layers", "5", "--iters", "8", "--batch-size", "1", "--val-batches", "1", "--learning-rate", "3e-4")
    run("lora", "--model", eight, "--train", *files, *size)
    learned = completion_score(eight, tmp_path / "adapter")
    assert learned > completion_score(eight) + 1
    run("fuse", "--model", eight, *files[2:], "--save-path", tmp_path / "fused")
    assert abs(completion_score(tmp_path / "fused") - learned) < 1


def test_other_versions_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.99.0")
    result = CliRunner().invoke(app, ["mlx", "generate"])
    assert result.exit_code == 2 and f"pip install mlx-lm=={integration.TESTED}" in result.stderr
    monkeypatch.setenv(integration.UNTESTED_ALLOWED, "1")
    assert integration.version_problem() is None
