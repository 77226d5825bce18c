"""MTP modules for finished checkpoints: the trunk's states layer by layer, training, and one checkpoint of both."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import tensors_of
from scripted import make_model, make_tokenizer
from typer.testing import CliRunner

from axk1 import AXK1ForCausalLM
from axk1.checkpoint.convert import attach_module, convert_checkpoint
from axk1.cli.main import app
from axk1.layerwise.weights import Weights
from axk1.train.data import reply_example
from axk1.train.graft import Texts, graft
from axk1.train.packing import PackedRows, packed_whole, save_rows
from axk1.train.recipe import Settings, Stage
from axk1.train.states import trunk_states, trunk_weights

SETTINGS = Settings(row_tokens=128, batch_rows=2, weight_decay=0.0, router_bias_update_rate=1e-2)
STAGE = Stage("mtp", 12, 1e-2, "linear", learn="mtp", drafts=2)


def replies(count: int):
    tokenizer = make_tokenizer()
    for number in range(count):
        messages = [{"role": "user", "content": f"What is {number}?"}]
        yield reply_example(tokenizer, messages, number % 2 == 0, "it is", f"{number} it is")


@pytest.fixture(scope="module", params=["released", "per_expert"])
def source(request, tmp_path_factory) -> Path:
    """A checkpoint without a module, in each layout."""
    folder = tmp_path_factory.mktemp("source") / request.param
    model = make_model(num_nextn_predict_layers=0, num_hidden_layers=3)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.rand(buffer.shape) / 5)
    model.save_pretrained(folder, layout=request.param)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_states_are_the_trunks(source: Path, tmp_path: Path) -> None:
    """Packed documents apart, as in the model; and a run that was cut off goes on after the last whole layer."""
    save_rows(tmp_path / "data.npy", packed_whole(replies(12), 128, 257))
    rows = PackedRows(tmp_path / "data.npy")
    said: list[str] = []
    found = trunk_states(trunk_weights(source), rows, tmp_path, torch.float32, said.append, batch_rows=2)
    model = AXK1ForCausalLM.from_pretrained(source, dtype="float32", experts_implementation="eager")
    with torch.no_grad():
        for index in range(len(rows)):
            row = {name: rows[index][name][None] for name in ("input_ids", "position_ids")}
            expected = model.model(**row, use_cache=False).last_hidden_state
            assert torch.allclose(found.read(index, index + 1), expected, atol=1e-6)
    assert [path.name for path in tmp_path.glob("states*")] == ["states.bin"] and "layer 1 of 3" in said[0]


def test_a_cut_off_pass_goes_on(source: Path, tmp_path: Path, monkeypatch) -> None:
    from axk1.train import states

    save_rows(tmp_path / "data.npy", packed_whole(replies(6), 128, 257))
    rows, calls, whole = PackedRows(tmp_path / "data.npy"), [], states._Layer

    def cut(weights: Weights, index: int, dtype: torch.dtype) -> object:
        calls.append(index)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return whole(weights, index, dtype)

    monkeypatch.setattr(states, "_Layer", cut)
    with pytest.raises(KeyboardInterrupt):
        trunk_states(trunk_weights(source), rows, tmp_path, torch.float32)
    again = trunk_states(trunk_weights(source), rows, tmp_path, torch.float32).path.read_bytes()
    assert calls == [0, 1, 1, 2]
    (tmp_path / "states.bin").unlink()
    assert trunk_states(trunk_weights(source), rows, tmp_path, torch.float32).path.read_bytes() == again


def test_a_grafted_module_drafts_and_the_trunk_stays(source: Path, tmp_path: Path) -> None:
    examples = list(replies(60))
    texts = Texts(examples[12:], {"even": examples[:12:2], "odd": examples[1:12:2]})
    module = graft(source, texts, tmp_path / "run", SETTINGS, STAGE)
    attach_module(source, module, tmp_path / "both")
    before, after = tensors_of(source), tensors_of(tmp_path / "both")
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    new = after.keys() - before.keys()
    assert new and all(name.startswith("model.layers.3.") for name in new)
    model = AXK1ForCausalLM.from_pretrained(tmp_path / "both")
    assert model.config.num_nextn_predict_layers == 1 and len(model.model.mtp_layers) == 1
    assert after["model.layers.3.mlp.gate.e_score_correction_bias"].any(), "balanced while it learned"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["mtp_loss"] for line in log if "mtp_loss" in line]
    assert losses[-1] < losses[0]
    assert not (tmp_path / "run" / "states.bin").exists()
    assert graft(source, texts, tmp_path / "run", SETTINGS, STAGE) == module, "finished before"


def test_acceptance_is_that_of_the_whole_model(source: Path, tmp_path: Path) -> None:
    """By domain and place, as the model itself gives it from tokens alone."""
    examples = list(replies(30))
    texts = Texts(examples[10:], {"all of them": examples[:10]})
    module = graft(source, texts, tmp_path / "run", SETTINGS, STAGE)
    attach_module(source, module, tmp_path / "both")
    report = json.loads((tmp_path / "run" / "acceptance.json").read_text())["grafted"]["all of them"]
    model = AXK1ForCausalLM.from_pretrained(tmp_path / "both", dtype="float32").eval()
    right, counts = [0, 0], [0, 0]
    for example in examples[:10]:
        ids, prompt = torch.tensor([example.input_ids]), example.learned.index(True)
        with torch.no_grad():
            states = model.model(ids, use_cache=False).last_hidden_state
            made = model._run_mtp(states, ids, None, None, None, drafts=2).mtp_states
            first, second = (model.lm_head(state)[0].argmax(-1).tolist() for state in made or ())
        for i in range(prompt - 1, ids.shape[1] - 2):
            hit = first[i] == example.input_ids[i + 2]
            right[0], counts[0] = right[0] + hit, counts[0] + 1
            if i + 3 < ids.shape[1]:
                right[1] += hit and second[i] == example.input_ids[i + 3]
                counts[1] += 1
    assert report["count"] == counts[0]
    assert report["at"] == [round(a / b, 4) for a, b in zip(right, counts, strict=True)]


def test_a_module_that_was_there_is_replaced(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "source")
    make_tokenizer().save_pretrained(tmp_path / "source")
    examples = list(replies(24))
    texts = Texts(examples[4:], {"some": examples[:4]})
    module = graft(tmp_path / "source", texts, tmp_path / "run", SETTINGS, STAGE)
    assert json.loads((tmp_path / "run" / "acceptance.json").read_text()).keys() == {"grafted", "own"}
    attach_module(tmp_path / "source", module, tmp_path / "both")
    before, after = tensors_of(tmp_path / "source"), tensors_of(tmp_path / "both")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("model.layers.2.") for name in moved)
    convert_checkpoint(tmp_path / "both", tmp_path / "other", "per_expert")


def test_texts_that_fill_no_row_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        graft(source, Texts([], {}), tmp_path, SETTINGS, STAGE)


def test_the_command_learns_the_models_own_replies(closing_checkpoint: Path, tmp_path: Path) -> None:
    """A model that always writes the same: a module learns it in a few steps, reported by domain and mode."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"{n}?", "domain": "sums" if n % 20 else "rest"} for n in range(40)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = ["--steps", "30", "--drafts", "2", "--row-tokens", "128", "--batch-rows", "4", "--max-new-tokens", "16"]
    places = ["--out", str(tmp_path / "run"), "--export", str(tmp_path / "both"), "--prompts", str(prompts)]
    done = CliRunner().invoke(app, ["train", "mtp", str(closing_checkpoint), *places, *steps, "--threads", "1"])
    assert done.exit_code == 0, done.output
    replies = [json.loads(line) for line in (tmp_path / "run" / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 80 and {reply["answer"] for reply in replies} == {"Yes"}
    report = json.loads((tmp_path / "run" / "acceptance.json").read_text())
    assert report["grafted"].keys() == {"rest/think", "rest/non-think", "sums/think", "sums/non-think", "all"}
    assert report["grafted"]["all"]["at"][0] > 0.9 and report["own"]["all"]["at"][0] == 1.0
    assert "sums/think: accepted " in done.output and "the module before: 100.0%" in done.output
    assert AXK1ForCausalLM.from_pretrained(tmp_path / "both").config.num_nextn_predict_layers == 1
    neither = CliRunner().invoke(app, ["train", "mtp", str(closing_checkpoint)])
    assert neither.exit_code == 2 and "either --prompts" in neither.output + str(neither.exception)


def test_the_command_takes_texts_that_are_there(closing_checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "talk.jsonl"
    answers = [
        {"role": "assistant", "content": "Yes", "reasoning_content": "1+2=3"},
        {"role": "assistant", "content": "Yes"},
    ]
    lines = [{"messages": [{"role": "user", "content": f"{n}?"}, answers[n % 2]]} for n in range(40)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    places = ["--out", str(tmp_path / "run"), "--export", str(tmp_path / "both"), "--data", str(data)]
    steps = ["--steps", "2", "--drafts", "1", "--row-tokens", "128", "--batch-rows", "2", "--threads", "1"]
    done = CliRunner().invoke(app, ["train", "mtp", str(closing_checkpoint), *places, *steps])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / "acceptance.json").read_text())["grafted"].keys() == {"talk", "all"}
