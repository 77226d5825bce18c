"""`axk1 export mlx` writes what mlx-lm's own conversion writes, in little memory, and goes on after an interruption."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from mlx_lm.convert import convert
from mlx_lm.utils import load_model
from samples import FROM_NANO, YARN, prompts, random_model
from support import NANO, ROOT
from typer.testing import CliRunner

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.streaming import STATE
from axk1.cli.main import app
from axk1.integrations.mlx.export import BITS, export_mlx, exported_bytes

BESIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WAYS = [(4, 64, None), (5, 64, None), (6, 32, None), (8, 64, None), (4, 64, "mixed_4_6")]
SMALL = "300KB"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A random model in both layouts, with MTP and router biases, and the nano, which has no biases."""
    home = tmp_path_factory.mktemp("sources")
    names = {name: getattr(AXK1Config.from_pretrained(NANO), name) for name in FROM_NANO}
    model = random_model(rope_parameters=YARN, **names).to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = buffer.float()
    model.save_pretrained(home / "released")
    for name in BESIDE:
        shutil.copy(NANO / name, home / "released")
    convert_checkpoint(home / "released", home / "per_expert", layout="per_expert")
    return {"released": home / "released", "per_expert": home / "per_expert", "nano": NANO}


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= mx.load(str(file))
    return found


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    assert one.keys() == other.keys()
    return all(a.dtype == other[k].dtype and bool(mx.array_equal(a, other[k])) for k, a in one.items())


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("source", ["released", "per_expert", "nano"])
def test_bits_are_those_of_mlx_lm(sources: dict[str, Path], source: str, way: Any, tmp_path: Path, capsys) -> None:
    bits, group_size, mixed = way
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    convert(str(sources[source]), str(theirs), True, group_size, bits, quant_predicate=mixed)
    files = export_mlx(sources[source], mine, bits, group_size, mixed, SMALL)
    assert same(tensors(theirs), tensors(mine))
    assert sum(value.nbytes for value in tensors(mine).values()) == exported_bytes(
        json.loads((mine / "config.json").read_text()), bits, group_size, mixed
    )
    assert len(files) > 5 and json.loads((mine / "model.safetensors.index.json").read_text())["metadata"]
    written = [json.loads((folder / "config.json").read_text()) for folder in (theirs, mine)]
    assert written[0] == written[1]
    assert "library_name: mlx" in (mine / "README.md").read_text()
    load_model(mine)


def test_an_interrupted_run_goes_on(sources: dict[str, Path], tmp_path: Path) -> None:
    def stop(written: int, total: int) -> None:
        if written > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_mlx(sources["released"], tmp_path / "one", max_shard_size=SMALL, progress=stop)
    assert (tmp_path / "one" / STATE).exists()
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob("*.safetensors")}
    with pytest.raises(CheckpointError, match="holds no unfinished"):
        export_mlx(sources["released"], tmp_path / "one", 8, max_shard_size=SMALL)
    export_mlx(sources["released"], tmp_path / "one", max_shard_size=SMALL)
    assert first and all(file.stat().st_mtime_ns == time for file, time in first.items())
    export_mlx(sources["released"], tmp_path / "whole", max_shard_size=SMALL)
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "whole"))


def test_a_quantised_model_is_the_model_of_its_rounded_weights(nano: Path, tmp_path: Path, capsys) -> None:
    """Within 1e-3 of the same model with those weights in full; nearer to the original with every bit."""
    ids = mx.array([prompts(3, 6_000)[2]])
    full, _ = load_model(nano)
    exact = scores(full, ids)
    distances = []
    for bits in sorted(BITS)[2:]:
        export_mlx(nano, tmp_path / str(bits), bits, 32)
        model, _ = load_model(tmp_path / str(bits))
        found = scores(model, ids)
        full.load_weights([(name, rounded(model, name, value)) for name, value in parameters(full).items()])
        assert mx.abs(found - scores(full, ids)).max().item() < 1e-3, bits
        distances.append(mx.abs(found - exact).mean().item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.1, distances


def scores(model: Any, ids: mx.array) -> mx.array:
    logits = model(ids)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def parameters(model: Any) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def rounded(model: Any, name: str, value: mx.array) -> mx.array:
    """The parameter ``name`` of a model that has ``value`` there, as the quantised ``model`` knows it."""
    path = name.rpartition(".")[0]
    module, held = dict(model.named_modules())[path], parameters(model)
    if f"{path}.scales" not in held or not name.endswith(".weight"):
        return held[name]
    parts = (held[f"{path}.{key}"] for key in ("weight", "scales", "biases"))
    return mx.dequantize(*parts, module.group_size, module.bits)


PEAK = """
import sys
from axk1.integrations.mlx.export import export_mlx

peak = 0

def look(written, total):  # without the pages of files, which the system takes back when it likes
    global peak
    held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
    peak = max(peak, held * 1024)

export_mlx(sys.argv[1], sys.argv[2], progress=look)
before = peak
export_mlx(sys.argv[3], sys.argv[4], progress=look)
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_at_a_matrix(sources: dict[str, Path], tmp_path: Path) -> None:
    """96 MB of experts in two fused tensors need less than 20 MB more than a small model does."""
    wide = dict(hidden_size=512, moe_intermediate_size=512, n_routed_experts=64, num_hidden_layers=2)
    random_model(vocab_size=512, num_nextn_predict_layers=0, **wide).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    folders = (str(sources["released"]), str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "c"))
    done = subprocess.run([sys.executable, "-c", PEAK, *folders], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20e6, done.stdout


def test_what_cannot_be_exported_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "mlx", str(NANO), str(tmp_path / "four"), "--mixed", "mixed_4_6"])
    assert result.exit_code == 0 and "mixed_4_6" in result.output
    with pytest.raises(CheckpointError, match="quantised"):
        export_mlx(tmp_path / "four", tmp_path / "again")
    with pytest.raises(ValueError, match="bits=7"):
        export_mlx(NANO, tmp_path / "seven", 7)
    with pytest.raises(ValueError, match="group_size=48"):
        export_mlx(NANO, tmp_path / "groups", group_size=48)
    model = random_model()
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3, 0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(CheckpointError, match="not finite"):
        export_mlx(tmp_path / "nan", tmp_path / "out")


def test_sizes_in_the_documentation() -> None:
    """The table of docs/mlx.md is computed, of the released architecture."""
    page = (ROOT / "docs" / "mlx.md").read_text()
    k1 = AXK1Config.preset("k1").to_dict()
    for bits, mixed in [(3, None), (4, None), (4, "mixed_4_6"), (5, None), (6, None), (8, None)]:
        name = mixed or f"{bits} bits"
        assert f"| {name} | {exported_bytes(k1, bits, 64, mixed):,} |" in page, name
