"""Tiny checkpoints, built once a session: a random one, and scripted ones whose replies are known."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

# Tests of an engine run in the engine's environment (`make engines`) and have a conftest.py of their own.
collect_ignore = [f"integration/{name}" for name in ("vllm", "sglang") if importlib.util.find_spec(name) is None]


if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: each, and what it starts, has one core
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def pytest_configure() -> None:
    """A job started in the background ignores Ctrl-C, and so would every program that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _write(folder: Path, model) -> Path:
    from scripted import make_tokenizer  # only now: engines' environments lack much of what it needs

    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def modules_only(monkeypatch) -> None:
    """No compiled kernels: models run module by module."""
    monkeypatch.setattr("axk1.kernels.native.available", lambda: False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Random weights: any tokens may come."""
    from scripted import make_model

    return _write(tmp_path_factory.mktemp("tiny"), make_model())


@pytest.fixture(scope="session")
def endless_checkpoint(tmp_path_factory) -> Path:
    """Think: "abc " for ever; Non-Think, or once its reasoning is closed: "Ys,42é"."""
    from scripted import make_scripted_model, script

    model = make_scripted_model(script("abc ", "Ys,42é", closes=False))
    return _write(tmp_path_factory.mktemp("endless"), model)


@pytest.fixture(scope="session")
def closing_checkpoint(tmp_path_factory) -> Path:
    """Think: "1+2=3", closed by itself, then "Yes"; Non-Think: "Yes"."""
    from scripted import make_scripted_model, script

    model = make_scripted_model(script("1+2=3", "Yes", closes=True))
    return _write(tmp_path_factory.mktemp("closing"), model)


def _load(folder: Path):
    from axk1.chat import load

    return load(folder)


@pytest.fixture(scope="session")
def endless(endless_checkpoint):
    """A ``Chat`` with it."""
    return _load(endless_checkpoint)


@pytest.fixture(scope="session")
def closing(closing_checkpoint):
    """A ``Chat`` with it."""
    return _load(closing_checkpoint)


@pytest.fixture(scope="session")
def random(tiny_checkpoint):
    """A ``Chat`` with it."""
    return _load(tiny_checkpoint)
