"""What a copy of a checkpoint takes along, what it leaves, and what stops the work before it begins."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import edit_tensors
from tiny import small_model

from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint import streaming as module
from axk1.checkpoint.beside import quantized_card
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.quantize import quantize_checkpoint

TEXTS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["code.T", null]}, "model_max_length": 7}',
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "LICENSE.txt": "licence",
    "README.md": "---\nlicense: apache-2.0\ntags:\n- a\n---\n# Original\n97.3% right\n",
    "eval.json": '{"score": 97.3}',
    "figures/curve.svg": "<svg/>",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "original"
    small_model(n_routed_experts=8, hidden_size=64, moe_intermediate_size=32).save_pretrained(folder)
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "code.py").write_text("raise SystemExit")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("token")
    return folder


@pytest.fixture
def source(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "source"))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_converted_copy_takes_everything_but_code(source, tmp_path):
    convert_checkpoint(source, tmp_path / "new", "per_expert")
    assert names(tmp_path / "new") == {*TEXTS, "config.json", "generation_config.json", "model.safetensors"}
    for name in TEXTS.keys() - {"tokenizer_config.json"}:
        assert (tmp_path / "new" / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((tmp_path / "new/tokenizer_config.json").read_text()) == {"model_max_length": 7}


def test_a_quantised_copy_has_a_card_of_its_own(source, tmp_path):
    quantize_checkpoint(source, tmp_path / "new", "int8")
    found = names(tmp_path / "new")
    assert {"tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja", "LICENSE.txt"} <= found
    assert not {"eval.json", "figures/curve.svg", "code.py"} & found
    card = (tmp_path / "new/README.md").read_text()
    assert 'base_model: "source"' in card and "base_model_relation: quantized" in card
    assert 'license: "apache-2.0"' in card and "int8" in card and "97.3" not in card


def test_a_card_that_is_a_pipe_is_not_waited_for(source):
    (source / "README.md").unlink(missing_ok=True)
    os.mkfifo(source / "README.md")
    assert "license" not in quantized_card(source, "int4")


def test_the_card_names_the_model_of_the_hub(source, tmp_path):
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    source.rename(snapshot)
    (snapshot / "README.md").write_bytes(b"\xff")
    quantize_checkpoint(snapshot, tmp_path / "new", "int8")
    card = (tmp_path / "new/README.md").read_text()
    assert 'base_model: "some/model"' in card and "license:" not in card


@pytest.mark.parametrize("name", ["LICENSE.txt", "chat_template.jinja", "tokenizer_config.json", "NOTICE"])
@pytest.mark.parametrize("write", [convert_checkpoint, lambda a, b: quantize_checkpoint(a, b, "int8")])
def test_a_link_to_elsewhere_is_not_copied(source, tmp_path, name, write):
    key = tmp_path / "id_ed25519"
    key.write_text("{}")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(key)
    with pytest.raises(CheckpointError, match=rf"{name}: links to .*id_ed25519, which is not part of this checkpoint"):
        write(source, tmp_path / "new")
    assert not (tmp_path / "new" / name).exists()


def test_links_that_belong_to_a_checkpoint_are_copied(source, tmp_path):
    blobs = tmp_path / "models--some--model" / "blobs"
    blobs.mkdir(parents=True)
    (source / "LICENSE.txt").rename(blobs / "h1")
    (source / "LICENSE.txt").symlink_to(blobs / "h1")
    (source / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (source / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    (source / "..data").mkdir()
    (source / "eval.json").rename(source / "..data" / "e")
    (source / "eval.json").symlink_to("..data/e")
    (source / "folder").symlink_to(tmp_path)  # a folder elsewhere is not gone into
    os.mkfifo(source / "pipe.txt")
    convert_checkpoint(source, tmp_path / "new")
    assert (tmp_path / "new/LICENSE.txt").read_text() == "licence"
    assert {"tokenizer.json", "eval.json"} <= names(tmp_path / "new")
    assert not (tmp_path / "new/folder").exists() and not (tmp_path / "new/pipe.txt").exists()


@pytest.mark.parametrize("write", [convert_checkpoint, lambda a, b: quantize_checkpoint(a, b, "int4")])
def test_a_full_disk_is_noticed_before_the_work(source, tmp_path, monkeypatch, write):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000))
    with pytest.raises(CheckpointError, match=r"new: needs [\d.]+ [kM]B, and 1\.0 kB are free: make room"):
        write(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_written_already_needs_no_room(source, tmp_path, monkeypatch):
    class Crash(Exception):
        pass

    def crash(done, total):
        if done > 0.9 * total:
            raise Crash

    with pytest.raises(Crash):
        convert_checkpoint(source, tmp_path / "new", "per_expert", 20_000, progress=crash)
    missing = sum(file.stat().st_size for file in (source).glob("*.safetensors")) - sum(
        file.stat().st_size for file in (tmp_path / "new").glob("*.safetensors")
    )
    left = missing + 4096 * len(list((tmp_path / "new").glob("*.safetensors")))  # headers, padded to a page
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: SimpleNamespace(free=left))
    convert_checkpoint(source, tmp_path / "new", "per_expert", 20_000)
    assert verify_checkpoint(tmp_path / "new").finite


@pytest.mark.parametrize("leave", [[], [".axk1-0123abcd.tmp"]])
def test_a_run_that_ended_before_its_first_file_goes_on(source, tmp_path, leave):
    (tmp_path / "new").mkdir()
    for name in leave:
        (tmp_path / "new" / name).write_text("{")
    convert_checkpoint(source, tmp_path / "new")
    assert verify_checkpoint(tmp_path / "new").finite and not set(leave) & names(tmp_path / "new")


def test_a_run_may_end_between_any_two_files(source, tmp_path, monkeypatch):
    """Each call that makes a file appear is the last one of a run once; the next run ends the work."""
    replace, calls = Path.replace, []
    whole = tmp_path / "whole"
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append(to), replace(self, to))[1])
    convert_checkpoint(source, whole, "per_expert", 20_000)
    assert len(calls) > 10

    class Killed(BaseException):
        pass

    for last in range(len(calls)):
        left, target = [last], tmp_path / f"new{last}"

        def until(self, to, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return replace(self, to)

        monkeypatch.setattr(Path, "replace", until)
        with pytest.raises(Killed):
            convert_checkpoint(source, target, "per_expert", 20_000)
        monkeypatch.setattr(Path, "replace", replace)
        convert_checkpoint(source, target, "per_expert", 20_000)
        assert {name: (target / name).read_bytes() for name in names(target)} == {
            name: (whole / name).read_bytes() for name in names(whole)
        }


def test_two_runs_do_not_write_one_folder(source, tmp_path):
    (tmp_path / "new").mkdir()
    descriptor = os.open(tmp_path / "new", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="new is being written by another run"):
        convert_checkpoint(source, tmp_path / "new")
    os.close(descriptor)
    convert_checkpoint(source, tmp_path / "new")


def test_numbers_that_a_narrower_type_does_not_hold_are_refused(source, tmp_path):
    name = "model.layers.1.self_attn.o_proj.weight"
    edit_tensors(source / "model.safetensors", lambda tensors: tensors[name].view(-1)[:1].fill_(1e6))
    with pytest.raises(CheckpointError, match=rf"{name}' overflows in float16: choose bfloat16"):
        convert_checkpoint(source, tmp_path / "new", dtype="float16")
    convert_checkpoint(source, tmp_path / "wide", dtype="bfloat16")
    assert verify_checkpoint(tmp_path / "wide").finite


def test_the_index_counts_the_models_parameters(source, tmp_path):
    """Quantised or not, the number of parameters is the model's."""
    from axk1 import AXK1ForCausalLM
    from axk1.plan.describe import describe

    count = AXK1ForCausalLM.from_pretrained(source).num_parameters()
    for scheme in ("int8", "int4"):
        quantize_checkpoint(source, tmp_path / scheme, scheme, max_shard_size=20_000)
        index = json.loads((tmp_path / scheme / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_parameters"] == count
        assert verify_checkpoint(tmp_path / scheme).parameters == count == describe(str(tmp_path / scheme)).total
