"""mlx-lm's server with A.X K1, asked by the official client: both modes, whole and streamed, tools, accuracy."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_server import ASK, THINK, Asked, free_port, serving
from samples import script_tool_call


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[Asked]:
    port = free_port()
    command = [sys.executable, "-m", "axk1", "mlx", "server", "--model", str(folder), "--port", str(port)]
    with serving(command, port, log) as client:
        yield Asked(client, "default_model")


@pytest.fixture(scope="module")
def served(nano: Path, tmp_path_factory) -> Iterator[Asked]:
    with serve(nano, tmp_path_factory.mktemp("nano") / "server.log") as served:
        yield served


def test_modes(served: Asked) -> None:
    served.check_modes()
    default, thought = (served.ask(ASK, **options) for options in ({}, {"extra_body": THINK}))
    assert default.choices[0].message.reasoning == thought.choices[0].message.reasoning  # Think is mlx-lm's own default


@pytest.mark.parametrize("think", [True, False])
def test_accuracy_is_ours(served: Asked, nano: Path, think: bool) -> None:
    served.check_accuracy(nano, think)


def test_tool_calls(tmp_path: Path) -> None:
    with serve(script_tool_call(tmp_path / "model"), tmp_path / "server.log") as served:
        served.check_tool_call(streams=False)
