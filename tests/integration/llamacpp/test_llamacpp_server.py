"""llama-server with A.X K1, asked by the official client: both modes, whole and streamed, tools, accuracy."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engine_server import ASK, THINK, Asked, free_port, serving
from samples import script_tool_call
from support import NANO

from axk1.integrations.llamacpp.export import export_gguf


@contextmanager
def serve(build: Path, file: Path, log: Path) -> Iterator[Asked]:
    port = free_port()
    command = [str(build / "bin" / "llama-server"), "-m", str(file), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", "4096", "-np", "4", "--no-context-shift", "--no-repack", "--no-webui"]
    with serving(command, port, log) as client:
        yield Asked(client, "nano", "reasoning_content")


@pytest.fixture(scope="module")
def served(build: Path, nano_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with serve(build, nano_f32, tmp_path_factory.mktemp("server") / "server.log") as served:
        yield served


def test_modes(served: Asked) -> None:
    served.check_modes()
    default, thought = (served.ask(ASK, **options) for options in ({}, {"extra_body": THINK}))
    assert served.reasoning_of(default.choices[0].message) == served.reasoning_of(thought.choices[0].message)


@pytest.mark.parametrize("think", [True, False])
def test_accuracy_is_ours(served: Asked, think: bool) -> None:
    served.check_accuracy(NANO, think, streams=4)


def test_tool_calls(build: Path, tmp_path: Path) -> None:
    (file,) = export_gguf(script_tool_call(tmp_path / "model"), tmp_path / "gguf", "f32")
    with serve(build, file, tmp_path / "server.log") as served:
        served.check_tool_call()
