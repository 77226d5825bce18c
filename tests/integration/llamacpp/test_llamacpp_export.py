"""`axk1 export gguf` writes what llama.cpp's own conversion and quantiser write, in little memory, and goes on."""

# pyright: reportMissingImports=false

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llamacpp_binding import Input, LlamaCpp, bind
from samples import DEFAULT, FROM_NANO, YARN, ours, prompts, save, with_stored_norm
from support import NANO
from typer.testing import CliRunner

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.streaming import STATE
from axk1.cli.main import app
from axk1.integrations.llamacpp import TESTED, library
from axk1.integrations.llamacpp.export import export_gguf, exported_bytes
from axk1.quantized.gguf import FILE_TYPES, K1_BITS, PLAIN

WIDE: dict[str, Any] = dict(  # rows that blocks of 256 divide, and enough layers for every rule of a mixture
    hidden_size=256,
    moe_intermediate_size=256,
    intermediate_size=256,
    q_lora_rank=256,
    num_hidden_layers=9,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
)
SMALL = "1MB"


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A random checkpoint whose layers all have what K1's have."""
    folder = tmp_path_factory.mktemp("wide")
    return save(folder, rope_parameters=DEFAULT, change=None, **WIDE)


@pytest.fixture(scope="module")
def wide_f32(wide: Path, tmp_path_factory) -> Path:
    return export_gguf(wide, tmp_path_factory.mktemp("f32") / "gguf", "f32")[0]


def tensors(file: Path) -> dict[str, tuple[str, bytes]]:
    """Types and bytes of a file's tensors."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in gguf.GGUFReader(file).tensors}


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("file_type", [name for name in FILE_TYPES if name != "f32"])
def test_the_bytes_of_its_own_quantiser(
    build: Path, wide: Path, wide_f32: Path, tmp_path: Path, file_type: str
) -> None:
    theirs, api = tmp_path / "theirs.gguf", bind(build)
    settings = api.llama_model_quantize_default_params()
    settings.ftype = gguf.LlamaFileType[FILE_TYPES[file_type]]
    assert api.llama_model_quantize(str(wide_f32).encode(), str(theirs).encode(), ctypes.byref(settings)) == 0
    (mine,) = export_gguf(wide, tmp_path / "mine", file_type)
    expected, found = tensors(theirs), tensors(mine)
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in expected.items()}
    assert found == expected
    assert fields(mine)["general.file_type"] == fields(theirs)["general.file_type"]


FORMS: dict[str, dict[str, Any]] = {
    "released": dict(change=with_stored_norm),
    "per expert": dict(layout="per_expert", scoring_func="softmax"),
}


@pytest.mark.parametrize("name", ["nano", *FORMS])
def test_the_values_of_llama_cpps_conversion(build: Path, tmp_path: Path, name: str) -> None:
    """Its converter with our patch, which leaves MTP modules out."""
    source = NANO
    if name in FORMS:
        like_nano = {key: getattr(AXK1Config.from_pretrained(NANO), key) for key in FROM_NANO}
        source = save(tmp_path / "model", rope_parameters=YARN, **like_nano, **FORMS[name])
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (source / file).write_bytes((NANO / file).read_bytes())
    command = [sys.executable, str(build / "convert_hf_to_gguf.py"), str(source), "--outtype", "f32"]
    subprocess.run([*command, "--outfile", str(tmp_path / "theirs.gguf")], check=True, capture_output=True)
    (mine,) = export_gguf(source, tmp_path / "mine", "f32")
    expected, found = tensors(tmp_path / "theirs.gguf"), tensors(mine)
    assert {key: value for key, value in found.items() if key in expected} == expected
    layers = AXK1Config.from_pretrained(source).num_hidden_layers
    assert all(key.startswith(f"blk.{layers}.") for key in found.keys() - expected.keys())
    theirs, found_fields = fields(tmp_path / "theirs.gguf"), fields(mine)
    same = [key for key in theirs if key.startswith(("deepseek2.", "tokenizer."))]
    counts = ("deepseek2.block_count", "deepseek2.nextn_predict_layers")
    assert {key: theirs[key] for key in same if key not in counts} == {
        key: found_fields.get(key) for key in same if key not in counts
    }


def test_layouts_and_splits_hold_the_same(build: Path, wide: Path, wide_f32: Path, tmp_path: Path) -> None:
    convert_checkpoint(wide, tmp_path / "other", layout="per_expert", max_shard_size="1MB")
    files = export_gguf(tmp_path / "other", tmp_path / "gguf", "f32", split_size="8MB")
    assert len(files) > 2 and files[0].name == f"model-f32-00001-of-{len(files):05d}.gguf"
    found: dict[str, tuple[str, bytes]] = {}
    for file in files:
        found |= tensors(file)
    assert found == tensors(wide_f32)
    engines = [LlamaCpp(build, file, 64, plain=True) for file in (files[0], wide_f32)]
    inputs = [Input(token, i) for i, token in enumerate(prompts(1)[0])]
    split, whole = (engine.step(inputs) for engine in engines)
    assert np.array_equal(split, whole)


def test_an_interrupted_run_goes_on(wide: Path, tmp_path: Path) -> None:
    def stop(written: int, total: int) -> None:
        if written > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(wide, tmp_path / "one", "q8_0", SMALL, stop)
    assert (tmp_path / "one" / STATE).exists()
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob("*.gguf")}
    with pytest.raises(CheckpointError, match="holds no unfinished"):
        export_gguf(wide, tmp_path / "one", "f16", SMALL)
    files = export_gguf(wide, tmp_path / "one", "q8_0", SMALL)
    assert first and all(file.stat().st_mtime_ns == time for file, time in first.items())
    whole = export_gguf(wide, tmp_path / "whole", "q8_0", SMALL)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in whole]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {file.name for file in files}


def test_more_bits_are_nearer(build: Path, wide: Path, tmp_path: Path) -> None:
    """Mean distance of log-probabilities to ours in fp32."""
    import torch

    ids = prompts(3)[2]
    with torch.no_grad():
        exact = ours(wide)(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    distances = []
    for file_type in ("q2_k", "q4_k_m", "q6_k", "q8_0", "f16"):
        (file,) = export_gguf(wide, tmp_path / file_type, file_type)
        engine = LlamaCpp(build, file, 64)
        logits = engine.step([Input(token, i) for i, token in enumerate(ids)])
        distances.append(float(np.abs(torch.from_numpy(logits).log_softmax(-1).numpy() - exact).mean()))
        engine.close()
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.01, distances


def test_the_released_sizes() -> None:
    """Bits of a weight of the released architecture, by which `axk1 plan` counts."""
    config = AXK1Config.preset("k1")
    parameters = 518_983_059_456 - config.hidden_size  # without the norm of layer 0, which is never applied
    for file_type in FILE_TYPES:
        assert exported_bytes(config, file_type) * 8 / parameters == pytest.approx(K1_BITS[file_type], abs=5e-4)


def test_memory_stays_at_some_rows(tmp_path: Path) -> None:
    """96 MB of experts go through; the process grows by less than half of that."""
    folder = save(tmp_path / "model", rope_parameters=DEFAULT, moe_intermediate_size=512, n_routed_experts=64)
    code = (
        "import sys; from axk1.integrations.llamacpp.export import export_gguf as e; import torch, gguf;"
        "from axk1.bench.workers.protocol import peak_rss;"
        "a = peak_rss(); e(sys.argv[1], sys.argv[2], 'q4_k_m'); print(peak_rss() - a)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "gguf")], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 48e6


def test_the_command(tmp_path: Path) -> None:
    command = ["export", "gguf", str(NANO), str(tmp_path / "gguf"), "--type", "q8_0"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    file = tmp_path / "gguf" / "model-q8_0.gguf"
    assert json.loads(result.stdout) == {"type": "q8_0", "files": {str(file): file.stat().st_size}}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "is not empty" in again.stderr


def test_other_versions_are_refused(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "GGML", "0.99.0")
    with pytest.raises(ValueError, match=r"axk1 is tested with ggml 0\.99\.0; .* run `make llamacpp`"):
        export_gguf(NANO, tmp_path / "gguf", "q4_k_m")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.99.0")
    with pytest.raises(ValueError, match=f"axk1 is tested with gguf {TESTED}"):
        export_gguf(NANO, tmp_path / "gguf", PLAIN[0])
