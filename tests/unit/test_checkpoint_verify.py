"""Every damaged checkpoint is refused with one error that names file and key, by `verify` and by loading alike."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import INDEX, edit_json, edit_tensors, file_of, tensors_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import small_model
from typer.testing import CliRunner

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint import CheckpointError, verify_checkpoint
from axk1.checkpoint.files import open_checkpoint
from axk1.cli.main import app

KEY = "model.layers.1.self_attn.kv_b_proj.weight"
FUSED = "model.layers.2.mlp.experts.gate_up_proj"
EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("saved")
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(root / "single")
    model.save_pretrained(root / "sharded", max_shard_size="20KB")
    model.save_pretrained(root / "per_expert", layout="per_expert", max_shard_size="20KB")
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture
def copy(saved, tmp_path):
    def make(kind: str) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / kind))

    return make


def assert_refused(folder: Path, *words: str, key: str | None = None, file: str | None = None, **kwargs) -> None:
    """Both ways of reading raise the same kind of error, and it says where."""
    with pytest.raises(CheckpointError) as verified:
        verify_checkpoint(folder)
    with pytest.raises(CheckpointError) as loaded:
        AXK1ForCausalLM.from_pretrained(folder, **kwargs)
    for error in (verified.value, loaded.value):
        assert isinstance(error, ValueError)
        assert all(word in str(error) for word in words), str(error)
        assert key is None or (error.key == key and key in str(error))
        assert file is None or (error.file is not None and Path(error.file).name == file and file in str(error))


def test_sound_checkpoints_pass(saved):
    tensors = tensors_of(saved["single"])
    values = sum(tensor.numel() for tensor in tensors.values())
    biases = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith("e_score_correction_bias"))
    parameters = AXK1ForCausalLM.from_pretrained(saved["single"]).num_parameters()
    assert biases > 0 and parameters == values - biases
    for kind, layout in (("single", "released"), ("sharded", "released"), ("per_expert", "per_expert")):
        seen = []
        report = verify_checkpoint(saved[kind], progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert (report.layout, report.parameters, report.mtp_layers, report.finite) == (layout, parameters, 1, True)
        assert report.dtypes == {"F32": values}
        assert seen[-1] == (values, values)
        assert report.files == len(list(saved[kind].glob("*.safetensors")))
        assert report.tensors == len(tensors_of(saved[kind]))


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_missing_tensor(copy, kind):
    folder = copy(kind)
    file = file_of(folder, KEY)
    edit_tensors(file, lambda tensors: tensors.pop(KEY))
    if kind == "sharded":
        edit_json(folder / INDEX, lambda index: index["weight_map"].pop(KEY))
    assert_refused(folder, "lacks", key=KEY, file="sharded" if kind == "sharded" else file.name)


def test_missing_expert(copy):
    folder = copy("per_expert")
    edit_tensors(file_of(folder, EXPERT), lambda tensors: tensors.pop(EXPERT))
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(EXPERT))
    assert_refused(folder, "lacks", key=EXPERT)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_removed_tensor_is_noticed(saved, tmp_path_factory, data):
    folder = Path(shutil.copytree(saved["single"], tmp_path_factory.mktemp("cut") / "model"))
    optional = ("e_score_correction_bias", "layers.0.post_mlp_layernorm.weight")
    names = sorted(name for name in tensors_of(folder) if not name.endswith(optional))
    gone = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    edit_tensors(folder / "model.safetensors", lambda tensors: [tensors.pop(name) for name in gone])
    with pytest.raises(CheckpointError, match=r"lacks|holds tensor") as error:
        verify_checkpoint(folder, finite=False)
    assert error.value.key in gone or "layers.3" in str(error.value.key)


def test_surplus_tensor(copy):
    folder = copy("single")
    surplus = "model.layers.1.self_attn.q_norm.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({surplus: torch.ones(2)}))
    assert_refused(folder, "no place", key=surplus, file="model.safetensors")


def test_layers_beyond_the_configuration_are_surplus(copy):
    folder = copy("single")
    edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=2, mlp_layer_types=["dense", "sparse"]))
    assert_refused(folder, "lacks", "layers.2", file="model.safetensors")
    edit_json(folder / "config.json", lambda c: c.update(num_nextn_predict_layers=0))
    assert_refused(folder, "no place", "layers.2", file="model.safetensors")


@pytest.mark.parametrize(("kind", "key"), [("single", KEY), ("sharded", FUSED), ("per_expert", EXPERT)])
def test_misshapen_tensor(copy, kind, key):
    folder = copy(kind)
    file = file_of(folder, key)
    edit_tensors(file, lambda tensors: tensors.update({key: tensors[key][..., 1:].contiguous()}))
    assert_refused(folder, "shape", key=key, file=file.name)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float8_e4m3fn])
def test_wrong_dtype(copy, dtype):
    folder = copy("single")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({KEY: tensors[KEY].to(dtype)}))
    assert_refused(folder, "stored as", key=KEY, file="model.safetensors")


def test_mixed_layouts(copy):
    folder = copy("single")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({EXPERT: torch.ones(8, 32)}))
    assert_refused(folder, "two layouts at once", str(folder), key=EXPERT)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_truncated_file(saved, tmp_path_factory, data):
    folder = Path(shutil.copytree(saved["sharded"], tmp_path_factory.mktemp("cut") / "model"))
    file = data.draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match="truncated or damaged") as error:
        verify_checkpoint(folder, finite=False)
    assert Path(str(error.value.file)).name == file.name


def test_truncated_file_is_not_loaded(copy):
    folder = copy("sharded")
    file = file_of(folder, KEY)
    file.write_bytes(file.read_bytes()[:-1])
    assert_refused(folder, "truncated or damaged", "Download", file=file.name)


@pytest.mark.parametrize("word", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..", ""])
def test_index_points_outside(copy, word):
    folder = copy("sharded")
    shutil.copy(file_of(folder, KEY), folder.parent / "model.safetensors")
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({KEY: word}))
    assert_refused(folder, "plain name", file=INDEX)


def assert_sound(folder: Path) -> None:
    """Both ways of reading take it."""
    assert verify_checkpoint(folder).finite
    AXK1ForCausalLM.from_pretrained(folder)


def hub_cache(folder: Path, home: Path) -> Path:
    """Moves the files of ``folder`` into a cache of the hub; returns the snapshot."""
    cache = home / "models--some--model"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"h{i}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"h{i}")
    return snapshot


def linked_snapshot(folder: Path, home: Path) -> Path:
    (home / "link").symlink_to(hub_cache(folder, home))
    return home / "link"


def moved_blobs(folder: Path, home: Path) -> Path:
    snapshot = hub_cache(folder, home)
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(home / "disk")
    blobs.symlink_to(home / "disk")
    return snapshot


def links_to_a_snapshot(folder: Path, home: Path) -> Path:
    (home / "mine").mkdir()
    for file in hub_cache(folder, home).iterdir():
        (home / "mine" / file.name).symlink_to(file)
    return home / "mine"


def kubernetes_volume(folder: Path, home: Path) -> Path:
    (home / "volume" / "..2026_11_28").mkdir(parents=True)
    (home / "volume" / "..data").symlink_to("..2026_11_28")
    for file in sorted(folder.iterdir()):
        file.rename(home / "volume" / "..2026_11_28" / file.name)
        (home / "volume" / file.name).symlink_to(Path("..data") / file.name)
    return home / "volume"


def dvc_links(folder: Path, home: Path) -> Path:
    for i, file in enumerate(sorted(folder.iterdir())):
        place = home / ".dvc" / "cache" / "files" / "md5" / f"{i:02x}" / "abc"
        place.parent.mkdir(parents=True)
        file.rename(place)
        file.symlink_to(place)
    return folder


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize(
    "move", [hub_cache, linked_snapshot, moved_blobs, links_to_a_snapshot, kubernetes_volume, dvc_links]
)
def test_links_of_the_users_own_are_followed(copy, tmp_path, kind, move):
    """A path is decided by where it leads, not by its spelling."""
    assert_sound(move(copy(kind), tmp_path))


def test_an_index_leads_nowhere_else_through_a_link_either(copy, tmp_path):
    snapshot = hub_cache(copy("sharded"), tmp_path)
    index = (snapshot / INDEX).resolve()
    for word in ("../../../outside.safetensors", "..data/model.safetensors", "a\\b.safetensors", "a\0.safetensors"):
        edit_json(index, lambda values, word=word: values["weight_map"].update({KEY: word}))
        assert_refused(snapshot, "plain name", file=INDEX)


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "config.json", "generation_config.json"])
def test_a_pipe_in_place_of_a_file_is_refused(copy, name):
    folder = copy("single")
    (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert_refused(folder, "no ordinary file", file=name)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("metadata"),
        lambda index: index.update(metadata=None),
        lambda index: index["weight_map"].update({KEY: 5}),
        lambda index: index["weight_map"].update({KEY: None}),
        lambda index: index["weight_map"].update({KEY: ["a.safetensors"]}),
    ],
)
def test_an_index_that_is_json_but_no_index(copy, change):
    folder = copy("sharded")
    edit_json(folder / INDEX, change)
    assert_refused(folder, file=INDEX)


@pytest.mark.parametrize("metadata", [None, {"format": "np"}, {"format": "mlx"}, {"quantised": "no"}])
def test_metadata_of_a_header_is_nothing_to_refuse(copy, metadata):
    folder = copy("single")
    save_file(tensors_of(folder), folder / "model.safetensors", metadata=metadata)
    assert_sound(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.9" + "9" * 5000 + ".x", "model.layers.-1.x", "a" * 70_000, "\u0000", ""]
)
def test_absurd_tensor_names_are_refused(copy, name):
    folder = copy("single")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(1)}))
    assert_refused(folder, "no place")


@pytest.mark.parametrize("kind", ["axk1", "AXK1"])
def test_both_spellings_of_the_model_type(copy, kind):
    folder = copy("single")
    edit_json(folder / "config.json", lambda config: config.update(model_type=kind))
    assert_sound(folder)


def flip(file: Path) -> None:
    """Changes a bit of a value, which stays finite."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def hub_sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_sums_of_the_hubs_cache_are_compared(copy, tmp_path):
    folder = copy("sharded")
    count = len(list(folder.glob("*.safetensors")))
    assert verify_checkpoint(folder).sums == 0  # none are known, and the report says so
    snapshot = hub_cache(folder, tmp_path)
    for link in snapshot.glob("*.safetensors"):  # blobs of large files are called by their sums
        blob = link.resolve()
        named = blob.rename(blob.with_name(hub_sum(blob)))
        link.unlink()
        link.symlink_to(named)
    assert verify_checkpoint(snapshot).sums == count
    assert verify_checkpoint(snapshot, finite=False).sums == 0
    damaged = file_of(snapshot, KEY)
    flip(damaged.resolve())
    with pytest.raises(CheckpointError, match=rf"{damaged.name}: has the SHA-256 .*Download it again"):
        verify_checkpoint(snapshot)


def test_sums_beside_a_download_are_compared(copy):
    folder = copy("single")
    file = folder / "model.safetensors"
    note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"0123abcd\n{hub_sum(file)}\n1764360000.0\n")
    assert verify_checkpoint(folder).sums == 1
    flip(file)
    with pytest.raises(CheckpointError, match="has the SHA-256"):
        verify_checkpoint(folder)
    for text in ("", "0123abcd\nnot a sum\n1\n"):
        note.write_text(text)
        assert verify_checkpoint(folder).sums == 0
    note.unlink()
    os.mkfifo(note)  # nobody writes to it, so opening it would wait for ever
    assert verify_checkpoint(folder).sums == 0


def test_one_file_by_itself(copy):
    folder = copy("sharded")
    file = file_of(folder, KEY)
    report = verify_checkpoint(file)
    assert (report.files, report.tensors, report.finite) == (1, len(load_file(file)), True)
    assert report.parameters == sum(tensor.numel() for tensor in load_file(file).values())
    with pytest.raises(CheckpointError, match="no safetensors file"):
        verify_checkpoint(folder / "config.json")
    edit_tensors(file, lambda tensors: tensors[KEY].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(CheckpointError, match="holds NaN"):
        verify_checkpoint(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        verify_checkpoint(file)


def test_the_command_says_what_it_compared(copy):
    folder = copy("single")
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 0 and "no sums compared: none are known" in done.stdout
    done = CliRunner().invoke(app, ["verify", str(folder / "model.safetensors")])
    assert done.exit_code == 0 and "values of this file alone" in done.stdout
    (folder / "model.safetensors").write_bytes(b"")
    for words in ([], ["--json"], ["--headers-only"]):
        assert CliRunner().invoke(app, ["verify", str(folder), *words]).exit_code == 1
        nowhere = CliRunner().invoke(app, ["verify", str(folder / "nope"), *words])
        assert nowhere.exit_code == 2 and "There is no checkpoint at" in nowhere.stderr


def test_index_names_a_missing_file(copy):
    folder = copy("sharded")
    file = file_of(folder, KEY)
    file.unlink()
    assert_refused(folder, file.name, "missing", file=INDEX)


def test_index_names_a_pickle(copy):
    folder = copy("sharded")
    (folder / "pytorch_model.bin").write_bytes(b"")
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({KEY: "pytorch_model.bin"}))
    assert_refused(folder, "pytorch_model.bin", "no safetensors file", file=INDEX)


def test_shard_lacks_a_promised_tensor(copy):
    folder = copy("sharded")
    file = file_of(folder, KEY)
    edit_tensors(file, lambda tensors: tensors.pop(KEY))
    assert_refused(folder, "promises", key=KEY, file=file.name)


def test_shard_holds_an_unlisted_tensor(copy):
    folder = copy("sharded")
    file = file_of(folder, KEY)
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(KEY))
    assert_refused(folder, "does not list", key=KEY, file=file.name)


def test_tensor_stored_twice(copy):
    folder = copy("sharded")
    value = tensors_of(folder)[KEY]
    other = next(file for file in sorted(folder.glob("*.safetensors")) if file != file_of(folder, KEY))
    edit_tensors(other, lambda tensors: tensors.update({KEY: value}))
    assert_refused(folder, "stored twice", key=KEY)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', "{}"])
def test_useless_index(copy, text):
    folder = copy("sharded")
    (folder / INDEX).write_text(text)
    assert_refused(folder, file=INDEX)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_never_read(copy, name):
    folder = copy("single")
    (folder / "model.safetensors").unlink()
    mark = folder / "executed"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    assert_refused(folder, name, "safetensors")
    with pytest.raises(CheckpointError, match="never read"):
        AXK1ForCausalLM.from_pretrained(folder, use_safetensors=False)
    assert not mark.exists()


def test_pickle_under_a_safetensors_name(copy):
    folder = copy("single")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(folder / "executed")))
    assert_refused(folder, "truncated or damaged", file="model.safetensors")
    assert not (folder / "executed").exists()


def test_no_weights_and_no_folder(copy, tmp_path):
    folder = copy("single")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "neither model.safetensors nor")
    with pytest.raises(CheckpointError, match="missing"):
        verify_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, ["model_type is 'llama'"]),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": "Axk1"}, ["model_type is 'Axk1'"]),
        ({"model_type": ["axk1"]}, ["model_type"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ({"n_group": 3}, ["n_routed_experts=8", "n_group=3"]),
    ],
)
def test_wrong_config(copy, change, words):
    folder = copy("single")
    edit_json(folder / "config.json", lambda config: config.update(change))
    assert_refused(folder, *words, file="config.json")


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_unreadable_config(copy, text):
    folder = copy("single")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert_refused(folder, file="config.json")


def test_config_may_not_name_weights_elsewhere(copy):
    folder = copy("single")
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    edit_json(folder / "config.json", lambda config: config.update(transformers_weights="../other.safetensors"))
    for config in (None, AXK1Config.from_pretrained(folder)):
        with pytest.raises(CheckpointError, match="plain name"):
            AXK1ForCausalLM.from_pretrained(folder, config=config)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    edit_json(folder / "config.json", lambda config: config.update(transformers_weights="mine.safetensors"))
    AXK1ForCausalLM.from_pretrained(folder)


def test_config_of_another_size(copy):
    folder = copy("single")
    edit_json(folder / "config.json", lambda config: config.update(kv_lora_rank=24))
    assert_refused(folder, "shape", file="model.safetensors")


def test_remote_code_is_not_run(copy):
    folder = copy("single")
    mark = folder / "executed"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass AXK1Config: ...\nclass AXK1ForCausalLM: ...\n"
    (folder / "modeling_axk1.py").write_text(code)
    auto_map = {"AutoConfig": "modeling_axk1.AXK1Config", "AutoModelForCausalLM": "modeling_axk1.AXK1ForCausalLM"}
    edit_json(folder / "config.json", lambda config: config.update(auto_map=auto_map))
    from transformers import AutoModelForCausalLM

    assert type(AutoModelForCausalLM.from_pretrained(folder)) is AXK1ForCausalLM
    model = AXK1ForCausalLM.from_pretrained(folder)
    assert verify_checkpoint(folder).finite
    model.save_pretrained(folder.parent / "again")
    assert "auto_map" not in json.loads((folder.parent / "again/config.json").read_text())
    assert not mark.exists()


@pytest.mark.parametrize(("kind", "key"), [("single", KEY), ("sharded", FUSED), ("per_expert", EXPERT)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(copy, kind, key, value):
    folder = copy(kind)
    file = file_of(folder, key)

    def damage(tensors):
        tensors[key].view(-1)[-1] = value

    edit_tensors(file, damage)
    assert verify_checkpoint(folder, finite=False).finite is None
    AXK1ForCausalLM.from_pretrained(folder)  # reads no more than it has to
    word = "NaN" if value != value else "infinity"
    assert_refused(folder, word, key=key, file=file.name, check_values=True)


@pytest.mark.parametrize(("kind", "key"), [("sharded", FUSED), ("per_expert", EXPERT)])
def test_nan_in_an_offloaded_layer(copy, tmp_path, kind, key):
    folder = copy(kind)
    edit_tensors(file_of(folder, key), lambda tensors: tensors[key].view(-1)[:1].fill_(float("nan")))
    device_map = {"model": "disk", "lm_head": "cpu"}
    offload = {"device_map": device_map, "offload_folder": tmp_path / "offload"}
    assert_refused(folder, "NaN", key=key, check_values=True, **offload)


def test_large_finite_values_pass_and_overflow_is_named(copy):
    folder = copy("single")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[KEY].fill_(3e38))
    assert verify_checkpoint(folder).finite
    AXK1ForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=rf"{KEY}.*overflows in torch.float16"):
        AXK1ForCausalLM.from_pretrained(folder, dtype=torch.float16)
