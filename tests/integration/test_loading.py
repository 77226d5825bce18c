"""Loading and saving: both layouts, sharded or not, offloaded, through transformers' own classes and back."""

import contextlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import INDEX, edit_json, edit_tensors, same_tensors, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build, small_model, tiny_fields, tokens
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import axk1.checkpoint.write
from axk1 import AXK1Config, AXK1ForCausalLM, AXK1ForSequenceClassification, AXK1ForTokenClassification, AXK1Model
from axk1.checkpoint import CheckpointError, expected_tensors, verify_checkpoint
from axk1.checkpoint.names import LAYOUTS
from axk1.modeling.moe import AXK1Router

SIZES = ["50GB", "20KB"]
DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def load(folder: Path | None, **kwargs: Any) -> Any:
    return AXK1ForCausalLM.from_pretrained(folder, **kwargs)


def bits(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, 7)).logits


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_bit_exact(tmp_path, layout, size):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path, layout=layout, max_shard_size=size)
    stored = tensors_of(tmp_path)
    expected = {spec.name: spec.shape for spec in expected_tensors(model.config, layout)}
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == expected
    assert (tmp_path / INDEX).exists() == (size != "50GB")
    loaded = load(tmp_path)
    assert same_tensors(bits(loaded), bits(model))
    assert not loaded.training
    assert_close(logits(loaded), logits(model))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["AXK1ForCausalLM"]
    assert config["model_type"] == "axk1"
    assert config["mlp_layer_types"] == ["dense", "sparse", "sparse"]
    assert (config["first_k_dense_replace"], config["moe_layer_freq"]) == (1, 1)


@settings(max_examples=8, deadline=None)
@given(tiny_fields(), st.integers(0, 2), st.sampled_from(LAYOUTS), st.sampled_from(SIZES), st.booleans())
def test_any_configuration_round_trips(tmp_path_factory, fields, mtp, layout, size, tied):
    folder = tmp_path_factory.mktemp("any") / "new" / "folder"
    model = build(fields, num_nextn_predict_layers=mtp, tie_word_embeddings=tied).to(torch.bfloat16)
    for router in (module for module in model.modules() if isinstance(module, AXK1Router)):
        router.e_score_correction_bias = router.e_score_correction_bias.float()  # stays fp32 whatever the weights are
    model.save_pretrained(folder, layout=layout, max_shard_size=size)
    loaded = load(folder)
    assert loaded.dtype == torch.bfloat16
    assert same_tensors(bits(loaded), bits(model))
    assert verify_checkpoint(folder).layout == layout
    assert AXK1Config.from_pretrained(folder).to_dict() == model.config.to_dict()


def test_index_is_right(tmp_path):
    model = small_model()
    for layout in LAYOUTS:
        folder = tmp_path / layout
        model.save_pretrained(folder, layout=layout, max_shard_size="20KB")
        index = json.loads((folder / INDEX).read_text())
        stored = {key: file.name for file in folder.glob("*.safetensors") for key in tensors_of_file(file)}
        assert index["weight_map"] == stored
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(folder).values())


def tensors_of_file(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def test_released_layout_is_saved_however_it_was_loaded(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path / "a", layout="per_expert")
    load(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert verify_checkpoint(tmp_path / "b").layout == "released"
    load(tmp_path / "b").save_pretrained(tmp_path / "c", layout="per_expert")
    assert same_tensors(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_own_class_reads_and_writes_the_same(tmp_path, layout, size):
    """Same class names, same model_type, in one process, before and after ours was used."""
    from transformers.models.axk1.modeling_axk1 import AXK1ForCausalLM as Theirs

    model = small_model()
    model.model.layers[1].mlp.gate.e_score_correction_bias.fill_(0.25)
    model.save_pretrained(tmp_path / "ours", layout=layout, max_shard_size=size)
    reader: Any = Theirs
    theirs, info = reader.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    # it has no place for the norm that a dense layer stores and nobody applies
    assert set(info["unexpected_keys"]) <= {"model.layers.0.post_mlp_layernorm.weight"} | {
        "model.layers.0.mlp.post_mlp_layernorm.weight"
    }
    assert isinstance(theirs, Theirs)
    assert_close(logits(theirs), logits(model))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    back = load(tmp_path / "theirs")
    assert_close(logits(back), logits(model))
    back.save_pretrained(tmp_path / "back", layout=layout)
    again = Theirs.from_pretrained(tmp_path / "back")
    assert_close(logits(again), logits(model))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_offload_to_disk_gives_the_same_logits(tmp_path, layout, size):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "model", layout=layout, max_shard_size=size)
    offloaded = load(tmp_path / "model", device_map=dict(DEVICE_MAP), offload_folder=tmp_path / "offload")
    assert offloaded.model.layers[1].self_attn.o_proj.weight.device.type == "meta"
    assert_close(logits(offloaded), logits(model))
    offloaded.save_pretrained(tmp_path / "again", layout=layout, max_shard_size=size)
    assert same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "model"))


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_device_map_by_name(tmp_path, layout, device_map):
    model = small_model()
    model.save_pretrained(tmp_path, layout=layout)
    loaded = load(tmp_path, device_map=device_map)
    assert same_tensors(bits(loaded), bits(model))


@pytest.mark.parametrize("model_type", ["axk1", "AXK1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_classes(tmp_path, layout, model_type):
    model = small_model()
    model.save_pretrained(tmp_path, layout=layout)
    edit_json(tmp_path / "config.json", lambda config: config.update(model_type=model_type))
    assert type(AutoConfig.from_pretrained(tmp_path)) is AXK1Config
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), load(tmp_path)):
        assert type(loaded) is AXK1ForCausalLM
        assert same_tensors(bits(loaded), bits(model))
    assert verify_checkpoint(tmp_path).finite
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == "axk1"


def test_dtype_argument(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))


def test_dense_norm_and_router_bias_survive(tmp_path):
    model = small_model()
    norm, gate = model.model.layers[0].post_mlp_layernorm.weight, model.model.layers[1].mlp.gate
    norm.data.uniform_(2, 3)
    gate.e_score_correction_bias.uniform_(-1, 1)
    for layout in LAYOUTS:
        model.save_pretrained(tmp_path / layout, layout=layout)
        loaded = load(tmp_path / layout)
        assert torch.equal(loaded.model.layers[0].post_mlp_layernorm.weight, norm)
        assert torch.equal(loaded.model.layers[1].mlp.gate.e_score_correction_bias, gate.e_score_correction_bias)


def test_zero_router_bias_is_not_written(tmp_path):
    model = small_model()
    for layer in model.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.zero_()
    names = {f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)}
    model.save_pretrained(tmp_path / "zero")
    assert not names & tensors_of(tmp_path / "zero").keys()
    model.model.layers[2].mlp.gate.e_score_correction_bias[3] = 1e-4
    model.save_pretrained(tmp_path / "moved")
    assert names < tensors_of(tmp_path / "moved").keys()
    assert same_tensors(bits(load(tmp_path / "moved")), bits(model))


@pytest.mark.parametrize("layers", [["dense", "sparse", "sparse"], ["dense", "sparse", "dense"]])
def test_optional_tensors_may_be_absent(tmp_path, layers):
    model = small_model(mlp_layer_types=layers, num_nextn_predict_layers=0)
    model.save_pretrained(tmp_path)
    dense = [i for i, kind in enumerate(layers) if kind == "dense"]
    gone = {f"model.layers.{i}.post_mlp_layernorm.weight" for i in dense}
    gone |= {name for name in tensors_of(tmp_path) if name.endswith("e_score_correction_bias")}
    edit_tensors(tmp_path / "model.safetensors", lambda tensors: [tensors.pop(name) for name in gone])
    loaded, info = load(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert verify_checkpoint(tmp_path).finite
    for name, tensor in loaded.state_dict().items():
        wanted = model.state_dict()[name]
        if name in gone:
            wanted = torch.zeros_like(wanted) if "bias" in name else torch.ones_like(wanted)
        assert torch.equal(tensor, wanted), name


def test_copies_in_mtp_layers_are_ignored(tmp_path):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path)
    copies = {
        "model.layers.3.embed_tokens.weight": model.model.embed_tokens.weight.data.clone(),
        "model.layers.3.shared_head.head.weight": model.lm_head.weight.data.clone(),
    }
    edit_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update(copies))
    loaded, info = load(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert same_tensors(bits(loaded), bits(model))


@pytest.mark.parametrize("device_map", [None, "auto", DEVICE_MAP])
def test_missing_mtp_layers_are_dropped_with_a_warning(tmp_path, caplog, device_map):
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model/config.json", lambda config: config.update(num_nextn_predict_layers=1))
    device_map = dict(device_map) if isinstance(device_map, dict) else device_map
    loaded = load(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.config.num_nextn_predict_layers == loaded.model.config.num_nextn_predict_layers == 0
    assert loaded.model.mtp_layers == [] and len(loaded.model.layers) == 3
    assert_close(logits(loaded), logits(model))
    ids = tokens(1, 6)
    assert_close(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["num_nextn_predict_layers"] == 0


def test_mtp_layers_may_be_left_out(tmp_path):
    model = small_model(num_nextn_predict_layers=2)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, num_nextn_predict_layers=1)
    assert len(loaded.model.mtp_layers) == 1
    assert torch.equal(loaded.model.layers[3].eh_proj.weight, model.model.layers[3].eh_proj.weight)
    assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trunk_alone(tmp_path, layout):
    """A trunk is saved without `model.`; it loads as itself and under a head, and a whole model loads as a trunk."""
    model = small_model()
    trunk = model.model
    AXK1Model.from_pretrained(None, config=model.config, state_dict=trunk.state_dict()).save_pretrained(
        tmp_path / "trunk", layout=layout
    )
    assert "embed_tokens.weight" in tensors_of(tmp_path / "trunk")
    assert verify_checkpoint(tmp_path / "trunk").layout == layout
    model.save_pretrained(tmp_path / "model", layout=layout)
    for folder in ("trunk", "model"):
        assert same_tensors(bits(AXK1Model.from_pretrained(tmp_path / folder)), bits(trunk))
        assert type(AutoModel.from_pretrained(tmp_path / folder)) is AXK1Model
    headed, info = load(tmp_path / "trunk", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}
    assert same_tensors(bits(headed.model), bits(trunk))


@pytest.mark.parametrize("head", [AXK1ForSequenceClassification, AXK1ForTokenClassification])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_classification_heads(tmp_path, head, layout):
    classifier = small_model(cls=head)
    classifier.save_pretrained(tmp_path / "classifier", layout=layout)
    assert same_tensors(bits(head.from_pretrained(tmp_path / "classifier")), bits(classifier))
    assert verify_checkpoint(tmp_path / "classifier").finite
    _, info = load(tmp_path / "classifier", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}
    model = small_model()
    model.save_pretrained(tmp_path / "model", layout=layout)
    loaded, info = head.from_pretrained(tmp_path / "model", num_labels=5, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"score"}
    assert same_tensors(bits(loaded.model), bits(model.model))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=5)
    assert loaded.score.weight.shape[0] == 5


def test_mismatched_head_needs_permission(tmp_path):
    classifier = small_model(cls=AXK1ForSequenceClassification)
    classifier.save_pretrained(tmp_path)
    loaded = AXK1ForSequenceClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.score.weight.shape[0] == 7
    with pytest.raises(CheckpointError, match=r"score.weight.*num_labels"):
        AXK1ForSequenceClassification.from_pretrained(tmp_path, num_labels=7)


def test_state_dict_instead_of_files(tmp_path):
    model = small_model()
    loaded = load(None, config=model.config, state_dict=bits(model))
    assert same_tensors(bits(loaded), bits(model))
    model.save_pretrained(tmp_path, layout="per_expert")
    loaded = load(None, config=model.config, state_dict=tensors_of(tmp_path))
    assert same_tensors(bits(loaded), bits(model))
    with pytest.raises(CheckpointError, match=r"state_dict: lacks tensor 'lm_head.weight'"):
        part = {name: tensor for name, tensor in bits(model).items() if name != "lm_head.weight"}
        load(None, config=model.config, state_dict=part)


def test_what_trainer_passes(tmp_path):
    """A state dict in another dtype, and processes that must not write."""
    model = small_model()
    half = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "half", state_dict=half, safe_serialization=True)
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "half").values()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    assert not list(tmp_path.glob(".*"))


def test_wrong_requests(tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=r"layout='fused' must be one of released, per_expert"):
        model.save_pretrained(tmp_path / "a", layout="fused")
    with pytest.raises(ValueError, match="pickle"):
        model.save_pretrained(tmp_path / "a", safe_serialization=False)
    assert not (tmp_path / "a").exists()


def test_overwriting_leaves_nothing_stale(tmp_path):
    model, other = small_model(), small_model(seed=1)
    for size, layout in (("20KB", "per_expert"), ("50GB", "released"), ("30KB", "released"), ("20KB", "per_expert")):
        (tmp_path / "notes.txt").write_text("mine")
        model.save_pretrained(tmp_path, layout=layout, max_shard_size=size)
        assert same_tensors(bits(load(tmp_path)), bits(model))
        assert (tmp_path / INDEX).exists() != (tmp_path / "model.safetensors").exists()
        assert (tmp_path / "notes.txt").read_text() == "mine"
        model, other = other, model


def test_a_failed_save_changes_nothing(tmp_path, monkeypatch):
    model, other = small_model(), small_model(seed=1)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    calls = []

    def full_disk(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError("No space left on device")
        return write(*args, **kwargs)

    theirs: Any = importlib.import_module("transformers.modeling_utils")
    write = theirs.safe_save_file
    monkeypatch.setattr(theirs, "safe_save_file", full_disk)
    for folder in ("model", "new"):
        calls.clear()
        with pytest.raises(OSError, match="No space"):
            other.save_pretrained(tmp_path / folder, max_shard_size="20KB")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("after", range(0, 16, 3))
def test_a_save_cut_off_while_renaming_is_never_half_visible(tmp_path, monkeypatch, after):
    """Whatever the moment: the old checkpoint, the new one, or none, but no mixture."""
    model, other = small_model(), small_model(seed=1)
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    renames = []

    def replace(self, target):
        if len(renames) == after:
            raise KeyboardInterrupt
        renames.append(target)
        return original(self, target)

    original = Path.replace
    monkeypatch.setattr(axk1.checkpoint.write.Path, "replace", replace)
    with contextlib.suppress(KeyboardInterrupt):
        other.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    monkeypatch.undo()
    try:
        loaded = bits(load(tmp_path / "model"))
    except CheckpointError as error:
        assert "neither model.safetensors nor" in str(error)
    else:
        assert same_tensors(loaded, bits(other))


def test_saving_over_the_source_of_an_offloaded_model(tmp_path):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path / "model", layout="per_expert", max_shard_size="20KB")
    folder = Path(shutil.copytree(tmp_path / "model", tmp_path / "copy"))
    loaded = load(folder, device_map=dict(DEVICE_MAP), offload_folder=tmp_path / "offload")
    loaded.save_pretrained(folder)
    assert same_tensors(bits(load(folder)), bits(model))


def test_peft_adapter_on_a_per_expert_checkpoint(tmp_path):
    peft = pytest.importorskip("peft")
    model = small_model()
    model.save_pretrained(tmp_path / "base", layout="per_expert")
    base = load(tmp_path / "base")
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["q_b_proj", "o_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    wanted = logits(tuned)
    again = peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    assert_close(logits(again), wanted)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert_close(logits(direct), wanted)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged", layout="per_expert")
    assert_close(logits(load(tmp_path / "merged")), wanted)
