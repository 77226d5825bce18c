"""Where mlx-lm is not installed, its commands say so in one sentence."""

import importlib.metadata
from pathlib import Path

import pytest
from tiny import small_model
from typer.testing import CliRunner

from axk1.cli.main import app


def test_commands_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    small_model().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(importlib.metadata, "version", missing)
    for command in (["mlx", "generate"], ["export", "mlx", str(tmp_path / "model"), str(tmp_path / "out")]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and "pip install '.[mlx]'" in result.stderr, command
    assert not (tmp_path / "out").exists()
