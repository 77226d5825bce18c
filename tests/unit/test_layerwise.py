"""One layer at a time: states, scores and calibration are those of the whole model."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import tensors_of
from scripted import make_model, make_tokenizer
from typer.testing import CliRunner

from axk1 import AXK1ForCausalLM
from axk1.checkpoint.compare import compare_with_source
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.source import open_source
from axk1.checkpoint.verify import verify_checkpoint
from axk1.cli.main import app
from axk1.layerwise import calibrate, states
from axk1.layerwise.calibrate import quantize_calibrated
from axk1.layerwise.score import score
from axk1.layerwise.states import Compute, Pass, Rows
from axk1.layerwise.weights import Weights
from axk1.modeling.objectives import shifted_labels
from axk1.quantized.plan import KINDS

TOKENS = 64


def make_rows(count: int, seed: int = 0) -> Rows:
    """Two documents to a row, of tokens of which some follow others more often."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (count, TOKENS), generator=generator) ** 2 % 256
    positions = torch.cat([torch.arange(24), torch.arange(TOKENS - 24)]).expand(count, -1)
    labels = ids.clone()
    labels[:, :4] = -100
    return Rows(ids, labels, positions)


@pytest.fixture(scope="module", params=["released", "per_expert"])
def source(request, tmp_path_factory) -> Path:
    """A checkpoint whose experts are all chosen but one, in each layout."""
    folder = tmp_path_factory.mktemp("source") / request.param
    model = make_model(num_hidden_layers=3, moe_intermediate_size=32, q_lora_rank=32, kv_lora_rank=32, topk_group=2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0]))
    model.save_pretrained(folder, layout=request.param)
    make_tokenizer().save_pretrained(folder)
    return folder


def states_of(model: AXK1ForCausalLM, rows: Rows) -> torch.Tensor:
    with torch.no_grad():
        found = model.model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False)
    return found.last_hidden_state


def load(folder: Path) -> AXK1ForCausalLM:
    return AXK1ForCausalLM.from_pretrained(folder, dtype="float32", experts_implementation="eager").eval()


def test_states_are_the_models(source: Path, monkeypatch) -> None:
    """Those of the trunk and of its MTP module, packed documents apart, computed in parts."""
    monkeypatch.setattr(states, "TOKENS", 100)
    rows, model, told = make_rows(5), load(source), []
    with open_source(source) as opened:
        through = Pass(Weights(opened), rows, Compute(), progress=lambda done, total: told.append((done, total)))
        found = through.run()
        drafted = through.run_mtp(found)
    expected = states_of(model, rows)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    with torch.no_grad():
        made = model._run_mtp(expected, rows.ids, None, None, rows.positions, packed=True)
    assert made.mtp_states is not None
    torch.testing.assert_close(drafted, made.mtp_states[0], atol=2e-5, rtol=2e-5)
    assert told[-1] == (len(told), len(told)) and len(told) == 2 + 3 * 5  # a dense layer, and four experts in three


@pytest.mark.parametrize("scheme", [None, "int4", "int8", "fp8-block"])
def test_scores_are_the_models(source: Path, tmp_path: Path, scheme) -> None:
    folder = source
    if scheme:
        folder = tmp_path / "build"
        quantize_checkpoint(source, folder, scheme, 32 if scheme == "int4" else None)
    rows, model = make_rows(4), load(folder)
    found = score(folder, rows)
    targets = shifted_labels(rows.labels, rows.positions, 1)
    with torch.no_grad():
        logits = model.lm_head(states_of(model, rows))[targets != -100]
    wanted = targets[targets != -100]
    assert found.tokens == len(wanted) == 4 * (TOKENS - 2 - 3)
    assert found.nats == pytest.approx(F.cross_entropy(logits, wanted).item(), rel=1e-5)
    assert found.right == pytest.approx((logits.argmax(-1) == wanted).double().mean().item(), abs=1e-9)


def test_the_head_is_read_in_parts(source: Path, monkeypatch) -> None:
    """As K1's has to be: the most probable token, the sum and the label in different parts."""
    rows = make_rows(3)
    whole = score(source, rows)
    cut = Weights.parts

    def in_parts(self, name, dtype):
        for first, rows in cut(self, name, dtype):
            for start in range(0, len(rows), 37):
                yield first + start, rows[start : start + 37]

    monkeypatch.setattr(Weights, "parts", in_parts)
    parts = score(source, rows)
    assert parts.nats == pytest.approx(whole.nats, rel=1e-6) and parts.right == whole.right


def test_a_cut_off_pass_goes_on(source: Path, tmp_path: Path, monkeypatch) -> None:
    rows, seen, through = make_rows(3), [], Pass._through
    whole = score(source, rows)

    def cut(self, index, states):
        seen.append(index)
        if seen == [0, 1]:
            raise KeyboardInterrupt
        return through(self, index, states)

    monkeypatch.setattr(Pass, "_through", cut)
    with pytest.raises(KeyboardInterrupt):
        score(source, rows, tmp_path)
    assert score(source, rows, tmp_path) == whole and seen == [0, 1, 1, 2]


def test_nothing_to_score(source: Path) -> None:
    rows = make_rows(1)
    with pytest.raises(ValueError, match="no token to score"):
        score(source, Rows(rows.ids, torch.full_like(rows.ids, -100), rows.positions))


@pytest.mark.parametrize("scheme", KINDS)
def test_a_calibrated_build(source: Path, tmp_path: Path, scheme) -> None:
    """An ordinary build, verified, whose states are nearer to the source's on texts that it was not fitted to."""
    rows, held = make_rows(64), make_rows(16, seed=1)
    group = 32 if scheme in ("int4", "int3") else None
    quantize_checkpoint(source, tmp_path / "plain", scheme, group_size=group)
    quantize_calibrated(source, tmp_path / "fitted", scheme, rows, group_size=group)
    verify_checkpoint(tmp_path / "fitted")
    compared = compare_with_source(tmp_path / "fitted", source)
    assert compared.otherwise and compared.worst < 3
    assert not (tmp_path / "fitted.calibration").exists()
    exact = states_of(load(source), held)
    plain, fitted = (states_of(load(tmp_path / name), held) for name in ("plain", "fitted"))
    assert (fitted - exact).square().mean() < 0.9 * (plain - exact).square().mean()
    noted = json.loads((tmp_path / "fitted/axk1-manifest.json").read_text())
    plainly = json.loads((tmp_path / "plain/axk1-manifest.json").read_text())
    assert noted["wish"]["calibration"]["rows"] == 64 and noted["errors"].keys() == plainly["errors"].keys()
    assert all(plainly["errors"][name] * 0.9 <= error for name, error in noted["errors"].items() if "expert" in name)


def test_the_states_are_those_of_the_build(source: Path, tmp_path: Path, monkeypatch) -> None:
    """Each layer was fitted to what it gets in the finished build."""
    rows, seen = make_rows(16), []
    keep = Pass._keep
    monkeypatch.setattr(Pass, "_keep", lambda self, reached: (seen.append(self.states), keep(self, reached))[1])
    quantize_calibrated(source, tmp_path / "build", "int4", rows, group_size=32)
    norm = load(tmp_path / "build").model.norm
    expected = states_of(load(tmp_path / "build"), rows)
    with torch.no_grad():
        torch.testing.assert_close(norm(seen[-1]), expected, atol=1e-4, rtol=1e-4)


def test_an_expert_that_no_text_reached_is_rounded_plainly(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "plain", "int4", group_size=32)
    quantize_calibrated(source, tmp_path / "fitted", "int4", make_rows(32), group_size=32)
    plain, fitted = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "fitted")
    unreached = [name for name in plain if ".experts.3." in name]
    assert len(unreached) == 3 * 3 * 3 and all(torch.equal(plain[name], fitted[name]) for name in unreached)
    others = [name for name in plain if ".experts.0." in name and name.endswith("packed")]
    assert not any(torch.equal(plain[name], fitted[name]) for name in others)


KILLED = """
import os, sys
from pathlib import Path
from axk1.layerwise import calibrate
sys.path.insert(0, {tests!r})
sys.path.insert(0, {unit!r})
from test_layerwise import make_rows
steps = [0]
def progress(done, total):
    steps[0] += 1
    if steps[0] == {steps}:
        os.kill(os.getpid(), 9)
calibrate.quantize_calibrated(Path({source!r}), Path({target!r}), "int4", make_rows(16), progress, group_size=32)
"""


@pytest.mark.slow
def test_a_killed_calibration_ends_with_the_same_bits(source: Path, tmp_path: Path) -> None:
    quantize_calibrated(source, tmp_path / "whole", "int4", make_rows(16), group_size=32)
    target, here = tmp_path / "killed", Path(__file__).parent
    names = {"tests": str(here.parent), "unit": str(here), "source": str(source), "target": str(target)}
    for steps in (7, 9, 10_000):
        code = subprocess.run([sys.executable, "-c", KILLED.format(steps=steps, **names)], check=False).returncode
        assert code == (-9 if steps < 10_000 else 0)
    sums = [
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.safetensors")}
        for folder in (tmp_path / "whole", target)
    ]
    assert sums[0] == sums[1]


def test_another_calibration_is_not_gone_on_with(source: Path, tmp_path: Path, monkeypatch) -> None:
    def cut(self, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pass, "_keep", cut)
        with pytest.raises(KeyboardInterrupt):
            quantize_calibrated(source, tmp_path / "build", "int4", make_rows(8), group_size=32)
    with pytest.raises(CheckpointError, match=r"another source, scheme or text: remove it"):
        quantize_calibrated(source, tmp_path / "build", "int4", make_rows(8, seed=1), group_size=32)
    quantize_calibrated(source, tmp_path / "build", "int4", make_rows(8), group_size=32)


def test_parts_are_written_when_they_are_many(source: Path, tmp_path: Path, monkeypatch) -> None:
    quantize_calibrated(source, tmp_path / "one", "int4", make_rows(8), group_size=32)
    monkeypatch.setattr(calibrate, "PART_BYTES", 3000)
    quantize_calibrated(source, tmp_path / "many", "int4", make_rows(8), group_size=32)
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


def test_the_commands(source: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [{"text": f"The number {i} is followed by {i + 1}."} for i in range(200)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    build = str(tmp_path / "build")
    run = CliRunner().invoke
    arguments = ["quantize", str(source), build, "--scheme", "int4", "--group-size", "32", "--calibrate", str(texts)]
    done = run(app, [*arguments, "--calibration-tokens", "4000", "--row-tokens", "256"])
    assert done.exit_code == 0, done.output
    found = run(app, ["score", build, str(texts), "--tokens", "2000", "--row-tokens", "256", "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["tokens"] > 1500
    text = run(app, ["score", str(source), str(texts), "--tokens", "500"]).stdout
    assert text.startswith("perplexity ") and "nats a token" in text
    wrong = run(app, ["score", str(source), str(tmp_path / "nothing.txt")])
    assert wrong.exit_code == 2 and "nothing.txt is no file" in wrong.output
