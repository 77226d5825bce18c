"""Conversion: bit-exact in both directions, sharded, in little memory, resumed after a crash."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import INDEX, edit_json, edit_tensors, same_tensors, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import build, small_model, tiny_fields

from axk1 import AXK1ForCausalLM
from axk1.checkpoint import CheckpointError, expected_tensors, verify_checkpoint
from axk1.checkpoint import convert as module
from axk1.checkpoint.convert import STATE, convert_checkpoint
from axk1.modeling.moe import AXK1Router


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    model = small_model(num_nextn_predict_layers=1)
    model.to(torch.bfloat16)
    for router in (part for part in model.modules() if isinstance(part, AXK1Router)):
        router.e_score_correction_bias = router.e_score_correction_bias.float()
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@settings(max_examples=6, deadline=None)
@given(tiny_fields(), st.integers(0, 2), st.integers(5_000, 60_000), st.integers(5_000, 60_000))
def test_there_and_back_is_bit_exact(tmp_path_factory, fields, mtp, first, second):
    root = tmp_path_factory.mktemp("there")
    model = build(fields, num_nextn_predict_layers=mtp)
    model.model.layers[-1].to(torch.bfloat16)  # dtypes may differ from tensor to tensor
    model.save_pretrained(root / "a", max_shard_size=first)
    convert_checkpoint(root / "a", root / "b", "per_expert", first)
    convert_checkpoint(root / "b", root / "c", "released", second)
    convert_checkpoint(root / "b", root / "d", "per_expert", second)
    model.save_pretrained(root / "e", layout="per_expert")
    assert same_tensors(tensors_of(root / "a"), tensors_of(root / "c"))
    assert same_tensors(tensors_of(root / "b"), tensors_of(root / "e"))
    assert same_tensors(tensors_of(root / "b"), tensors_of(root / "d"))
    assert {verify_checkpoint(root / name).layout for name in "ac"} == {"released"}


def test_shards_index_and_side_files(released, tmp_path):
    files = convert_checkpoint(released, tmp_path / "new", "per_expert", 3_000)
    index = json.loads((tmp_path / "new" / INDEX).read_text())
    held = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            held.update(dict.fromkeys(keys, file.name))
            assert sum(opened.get_tensor(key).nbytes for key in keys) <= 3_000 or len(keys) == 1
            assert opened.metadata() == {"format": "pt"}
    assert index["weight_map"] == held
    tensors = tensors_of(tmp_path / "new")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    names = {file.name for file in (tmp_path / "new").iterdir()}
    others = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", INDEX}
    assert names == others | {file.name for file in files}
    model = AXK1ForCausalLM.from_pretrained(tmp_path / "new")
    assert same_tensors(model.state_dict(), AXK1ForCausalLM.from_pretrained(released).state_dict())


@pytest.mark.parametrize("size", ["x", "", "0", "-1", "0GB", "1e400GB", 0, -5])
def test_sizes_that_are_none_are_refused(released, tmp_path, size):
    with pytest.raises(ValueError, match=rf"max_shard_size is {size!r}; it must be a size such as 5GB"):
        convert_checkpoint(released, tmp_path / "new", "released", size)
    assert not (tmp_path / "new").exists()


def test_one_file(released, tmp_path):
    assert convert_checkpoint(released, tmp_path / "one") == [tmp_path / "one/model.safetensors"]
    assert not (tmp_path / "one" / INDEX).exists()
    assert same_tensors(tensors_of(tmp_path / "one"), tensors_of(released))


def test_dtype(released, tmp_path):
    edit = Path(shutil.copytree(released, tmp_path / "source"))
    edit_json(edit / "config.json", lambda config: config.update(auto_map={"AutoModel": "modeling.X"}))
    convert_checkpoint(edit, tmp_path / "wide", "released", "30KB", dtype="float32")
    source, wide = tensors_of(released), tensors_of(tmp_path / "wide")
    assert same_tensors(wide, {name: tensor.float() for name, tensor in source.items()})
    config = json.loads((tmp_path / "wide/config.json").read_text())
    assert config["dtype"] == "float32" and "auto_map" not in config
    assert AXK1ForCausalLM.from_pretrained(tmp_path / "wide").dtype == torch.float32
    convert_checkpoint(tmp_path / "wide", tmp_path / "half", dtype="bfloat16")
    half = tensors_of(tmp_path / "half")
    for name, tensor in half.items():
        bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if bias else torch.bfloat16)
        assert torch.equal(tensor.to(source[name].dtype), source[name])


@pytest.mark.parametrize("layout", ["released", "per_expert"])
def test_memory_stays_at_one_piece(released, tmp_path, monkeypatch, layout):
    """No read is larger than the largest matrix: a fused tensor is never held whole."""
    read, sizes = module.Reader.__call__, []

    def watch(self, piece):
        tensor = read(self, piece)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(module.Reader, "__call__", watch)
    convert_checkpoint(released, tmp_path / "new", layout)
    config = AXK1ForCausalLM.from_pretrained(released).config
    matrices = [spec.size for spec in expected_tensors(config, "released") if len(spec.shape) < 3]
    assert max(sizes) == max(*matrices, 2 * config.moe_intermediate_size * config.hidden_size)
    assert sum(sizes) == sum(tensor.numel() for tensor in tensors_of(released).values())


class Crash(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_resumes_after_a_crash(released, tmp_path, share):
    seen = []

    def crash(done, total):
        seen.append(done)
        if done > share * total:
            raise Crash

    with pytest.raises(Crash):
        convert_checkpoint(released, tmp_path / "new", "per_expert", 8_000, progress=crash)
    assert not (tmp_path / "new" / INDEX).exists()
    with pytest.raises(CheckpointError):
        AXK1ForCausalLM.from_pretrained(tmp_path / "new")
    finished = {file: file.stat().st_ino for file in (tmp_path / "new").glob("model-*.safetensors")}
    assert bool(finished) == (share > 0)
    again = []
    convert_checkpoint(released, tmp_path / "new", "per_expert", 8_000, progress=lambda n, _: again.append(n))
    assert {file: file.stat().st_ino for file in finished} == finished
    assert again[0] > sum(file.stat().st_size for file in finished) * 0.5
    convert_checkpoint(released, tmp_path / "straight", "per_expert", 8_000)
    assert same_tensors(tensors_of(tmp_path / "new"), tensors_of(tmp_path / "straight"))
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == sorted(
        f.name for f in (tmp_path / "straight").iterdir()
    )


def test_a_damaged_shard_is_written_again(released, tmp_path):
    with pytest.raises(Crash):
        convert_checkpoint(released, tmp_path / "new", "per_expert", 8_000, progress=cut_at(0.5))
    shard = next((tmp_path / "new").glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    convert_checkpoint(released, tmp_path / "new", "per_expert", 8_000)
    assert verify_checkpoint(tmp_path / "new").finite


def cut_at(share: float):
    def crash(done, total):
        if done > share * total:
            raise Crash

    return crash


def test_other_arguments_or_another_source_do_not_continue(released, tmp_path):
    source = Path(shutil.copytree(released, tmp_path / "source"))
    with pytest.raises(Crash):
        convert_checkpoint(source, tmp_path / "new", "per_expert", 8_000, progress=cut_at(0.5))
    assert (tmp_path / "new" / STATE).exists()
    with pytest.raises(CheckpointError, match="not empty"):
        convert_checkpoint(source, tmp_path / "new", "per_expert", 9_000)
    edit_tensors(next(source.glob("*.safetensors")), lambda tensors: next(iter(tensors.values())).add_(1))
    with pytest.raises(CheckpointError, match="not empty"):
        convert_checkpoint(source, tmp_path / "new", "per_expert", 8_000)
    with pytest.raises(CheckpointError, match="not empty"):
        convert_checkpoint(source, source, "per_expert")


def test_wrong_requests(released, tmp_path):
    with pytest.raises(ValueError, match="layout='fused'"):
        convert_checkpoint(released, tmp_path / "new", "fused")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="dtype='int8' must be one of bfloat16"):
        convert_checkpoint(released, tmp_path / "new", dtype="int8")
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_command_line(released, tmp_path):
    import typer
    from typer.testing import CliRunner

    from axk1.cli.convert import convert

    app = typer.Typer()
    app.command()(convert)
    arguments = [str(released), str(tmp_path / "new"), "--layout", "per-expert", "--max-shard-size", "20KB"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "per-expert layout" in result.output
    assert verify_checkpoint(tmp_path / "new").layout == "per_expert"
