"""A whole recipe on a tiny model: stages, resuming, log, export, evaluation."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import SIZES, make_tokenizer

from axk1.train import board
from axk1.train.curves import PANELS, draw_curves
from axk1.train.packing import PackedRows
from axk1.train.progress import StopAtStep
from axk1.train.recipe import Recipe, Stage
from axk1.train.stages import export_model, run

STAGES = [
    Stage("pretrain", steps=4, learning_rate=1e-2, schedule="constant_with_warmup", text=0.5, learn_prompt=True),
    Stage("sft", steps=6, learning_rate=1e-2, schedule="linear", think=0.5),
]


STAGE = "[[stage]]\nname = 'a'\nsteps = 100\nlearning_rate = 0.1\nschedule = 'linear'\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "corpus").mkdir()
    for part in ("en", "ko", "zh", "ja", "es", "code"):
        lines = [json.dumps({"text": f"{part} text number {n}. " * 20}) for n in range(20)]
        (folder / "corpus" / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Recipe(
        preset="nano",
        tokenizer=str(folder / "tokenizer"),
        corpus=str(folder / "corpus"),
        stage=STAGES,
        row_tokens=768,
        batch_rows=2,
        save_steps=2,
        model=SIZES,
    )


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("run")
    return out, run(recipe, out)


def test_losses_fall_and_are_logged_apart(finished) -> None:
    out, _ = finished
    log = [json.loads(line) for line in (out / "pretrain" / "log.jsonl").read_text().splitlines()]
    assert log[0]["stage"]["name"] == "pretrain"
    losses = [line for line in log if "lm_loss" in line]
    assert losses[-1]["lm_loss"] < losses[0]["lm_loss"]
    assert all(abs(line["loss"] - line["lm_loss"] - 0.3 * line["mtp_loss"]) < 0.02 for line in losses)
    assert all(1 <= line["expert_load"] <= line["expert_load_max"] <= SIZES["n_routed_experts"] for line in losses)
    assert all(0 <= line["acceptance"] <= 1 and line["router_bias"] > 0 and line["grad_norm"] > 0 for line in losses)


def test_a_stage_ends_with_its_curves(finished) -> None:
    """An SVG whose text is text, with a panel for everything that was logged."""
    root = ET.parse(finished[0] / "pretrain" / "curves.svg").getroot()
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {*PANELS, "pretrain: 4 steps", "next token", "MTP", "optimizer step"} <= set(texts)
    few = draw_curves("a", [{"step": 1, "lm_loss": 2.0, "grad_norm": float("inf")}, {"step": 3, "lm_loss": 1.0}])
    assert "Loss, nats a token" in few and "Gradient norm" not in few
    with pytest.raises(ValueError, match="Stage a logged nothing to draw"):
        draw_curves("a", [{"train_runtime": 1.0, "step": 3}])


def test_tensorboard_that_is_missing_is_said_first(recipe: Recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"TensorBoard is not installed: in a clone, pip install '\.\[train\]'"):
        run(replace(recipe, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_alone(recipe: Recipe, finished) -> None:
    out, final = finished
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(recipe, out) == final
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def leave_what_a_kill_leaves(stage: Path) -> None:
    """A newer checkpoint and a last one, both without their ends."""
    for name, state in (("checkpoint-4", '{"global_step": 4,'), ("checkpoint-6", None), ("final.part", None)):
        shutil.copytree(stage / "checkpoint-2", stage / name)
        with (stage / name / "model.safetensors").open("r+b") as weights:
            weights.truncate(1_000)
        (stage / name / "trainer_state.json").unlink()
        if state is not None:
            (stage / name / "trainer_state.json").write_text(state, encoding="utf-8")


def test_a_run_that_was_cut_off_goes_on(recipe: Recipe, finished, tmp_path, monkeypatch) -> None:
    """Stopped after step 2 of the second stage, it ends with the weights of the run that was not."""
    from transformers import TrainerCallback

    import axk1.train.stages as stages

    class Cut(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if "sft" in str(args.output_dir):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "RouterBalance", type("Both", (Cut, stages.RouterBalance), {}))
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
    assert not (tmp_path / "sft" / "final").exists()
    leave_what_a_kill_leaves(tmp_path / "sft")
    again = run(recipe, tmp_path)
    assert not (tmp_path / "sft" / "final.part").exists()
    from safetensors.torch import load_file

    whole, resumed = (load_file(folder / "model.safetensors") for folder in (finished[1], again))
    assert whole.keys() == resumed.keys()
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-5) for key in whole)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model": SIZES | {"num_nextn_predict_layers": 0}}, 'stage "late" trains MTP modules, and the model has none'),
        ({"model": SIZES | {"hidden_sise": 1}}, "model.hidden_sise is no field; the nearest is hidden_size"),
        ({"model": SIZES | {"vocab_size": 300}}, "has 320 entries, the model 300"),
        ({"model": SIZES | {"hidden_size": "64"}}, "hidden_size"),
        ({"row_tokens": 5_000}, "row_tokens = 5000 is more than the model's 4096 positions"),
        (
            {"corpus": "nowhere"},
            'stage "late" takes text from nowhere/en.jsonl, which is missing: run axk1',
        ),
        ({"tokenizer": "no/such"}, "no/such"),
        (
            {"stage": [Stage("late", steps=2, learning_rate=1e-2, schedule="linear", data={"none.jsonl": 1.0})]},
            'stage "late": none.jsonl is missing, or no ordinary file',
        ),
    ],
)
def test_a_mistake_of_a_later_stage_shows_before_anything_starts(recipe, tmp_path, change, words, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    late = Stage("late", steps=2, learning_rate=1e-2, schedule="linear", text=0.5, learn="mtp")
    with pytest.raises(ValueError, match=words):
        run(replace(recipe, **{"stage": [STAGES[1], late], **change}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_after_a_step_and_nothing_is_lost(recipe, finished, tmp_path, number) -> None:
    from safetensors.torch import load_file

    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("sft: step 1 of 6"):
            os.kill(os.getpid(), number)

    (tmp_path / "pretrain").symlink_to(finished[0] / "pretrain")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, say)
    begun = lines.index("pretrain (1 of 2): finished before")
    assert lines[begun + 1].startswith("sft (2 of 2): 6 steps in ")
    assert any(re.fullmatch(r"sft: [01] of 12 rows of training data", line) for line in lines)
    assert lines[-1].startswith("Stopping after this step, with a checkpoint")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [path.name for path in (tmp_path / "sft").glob("checkpoint-*")] == ["checkpoint-1"]
    again = run(recipe, tmp_path, lines.append)
    assert re.fullmatch(r"sft: step 6 of 6, loss \d+\.\d+, [\d,]+ tokens/s, 0:00 left", lines[-1])
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (finished[1], again))
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-5) for key in whole)


def test_ctrl_c_twice_stops_at_once() -> None:
    stop = StopAtStep(lambda line: None)
    with stop.on_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_loss_that_is_none_stops_the_run(recipe, tmp_path) -> None:
    """Before anything is learned from it, so that the newest checkpoint is good."""
    wild = Stage("wild", steps=9, learning_rate=1e25, schedule="constant")
    with pytest.raises(ValueError, match=r"The loss of step \d is (nan|inf): lower learning_rate"):
        run(replace(recipe, stage=[wild]), tmp_path)
    assert not (tmp_path / "wild" / "final").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes")
def test_a_disk_that_takes_no_more_is_said_and_the_run_goes_on(recipe, finished, tmp_path) -> None:
    """A limit on file sizes lets the data be written and no weights."""
    import resource

    from safetensors.torch import load_file

    (tmp_path / "pretrain").symlink_to(finished[0] / "pretrain")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot be written to .*sft.*Make room and run the same command"):
            run(recipe, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = run(recipe, tmp_path)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (finished[1], again))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_stages_begin_with_others_and_with_sums_and_learn_files(recipe, finished, tmp_path) -> None:
    """Think-Fusion's shape: two stages from one base, their sum, and a stage on a file of conversations."""
    from safetensors.torch import load_file

    lines = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!", **reasoning}]}
        for n in range(40)
        for reasoning in ({}, {"reasoning_content": f"{n} and {n}"})
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("pretrain", "sft"):
        (tmp_path / name).symlink_to(finished[0] / name)
    options = {"learning_rate": 1e-2, "schedule": "constant"}
    plain = Stage("plain", steps=2, start="pretrain", think=0.0, **options)  # pyright: ignore[reportArgumentType]
    data = {str(tmp_path / "own.jsonl"): 1.0}
    last = Stage("both", steps=3, merge={"sft": 0.8, "plain": 0.2}, data=data, **options)  # pyright: ignore
    run(replace(recipe, stage=[*STAGES, plain, last]), tmp_path)
    sft, other, start = (
        load_file(tmp_path / name / "model.safetensors") for name in ("sft/final", "plain/final", "both/start")
    )
    for name, value in start.items():
        assert torch.allclose(value, 0.8 * sft[name] + 0.2 * other[name], atol=1e-6), name
    log = [json.loads(line) for line in (tmp_path / "both" / "log.jsonl").read_text().splitlines()]
    losses = [line["lm_loss"] for line in log if "lm_loss" in line]
    assert losses[-1] < losses[0]


SHORT = {"learning_rate": 1e-2, "schedule": "constant"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def test_a_stage_makes_the_context_longer(recipe: Recipe, tmp_path) -> None:
    """From 64 to 256 positions by YaRN: the next stage and the export keep it, which read on where the first ends."""
    from axk1.chat import load
    from axk1.generation.sampling import GREEDY

    rows = [{"text": f"{n} and {n} again, and once more {n}. " * 12} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {"data": {str(tmp_path / "a.jsonl"): 1.0}}
    first, longer, last, plain = (
        Stage("first", steps=2, **SHORT, **data),
        Stage("longer", steps=3, row_tokens=256, batch_rows=1, rope_parameters=YARN, **SHORT, **data),
        Stage("last", steps=1, row_tokens=200, **SHORT, **data),
        Stage("plain", steps=1, start="first", **SHORT, **data),
    )
    model = SIZES | {"max_position_embeddings": 64}
    long = replace(recipe, row_tokens=64, model=model, stage=[first, longer, last, plain])
    run(long, tmp_path / "run")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = {}
    for name in ("first", "longer", "last", "plain"):
        export_model(tmp_path / "run" / name / "final", tmp_path / "tokenizer", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        rope, positions = config["rope_parameters"], config["max_position_embeddings"]
        extended = name in ("longer", "last")
        assert (rope["rope_type"], positions) == (("yarn", 256) if extended else ("default", 64)), name
        assert rope["rope_theta"] == 10_000
        taken = json.loads((tmp_path / name / "tokenizer_config.json").read_text())["model_max_length"]
        assert taken == positions
        question = [{"role": "user", "content": "7 and 7 again. " * 9}]
        chat = load(tmp_path / name)
        assert 64 < len(chat.prompt(question, False)) < 240
        if not extended:
            with pytest.raises(ValueError, match="64"):
                chat.reply(question, think=False, sampling=GREEDY, max_new_tokens=8)
            continue
        texts[name] = chat.reply(question, think=False, sampling=GREEDY, max_new_tokens=8)
    assert all(reply.prompt_tokens > 64 for reply in texts.values())
    shapes = {stage.name: PackedRows(tmp_path / "run" / stage.name / "data.npy") for stage in long.stage}
    assert {name: (len(held), held.row_tokens) for name, held in shapes.items()} == {
        "first": (4, 64),
        "longer": (3, 256),
        "last": (2, 200),
        "plain": (2, 64),
    }


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            [Stage("a", 1, **SHORT, row_tokens=65)],
            "row_tokens = 65 is more than the model's 64 positions: lower it, or",
        ),
        (
            [Stage("a", 1, **SHORT, rope_parameters=YARN | {"factor": 0.5})],
            """stage "a": rope_parameters['factor']=0.5 must be a number of at least 1""",
        ),
        (
            [Stage("a", 1, **SHORT, rope_parameters=YARN | {"factr": 1})],
            """stage "a": rope_parameters['factr']=1 is no setting that this model knows""",
        ),
        (
            [
                Stage("a", 1, **SHORT),
                Stage("b", 1, **SHORT, rope_parameters=YARN),
                Stage("c", 1, **SHORT, merge={"a": 0.5, "b": 0.5}),
            ],
            'stage "c" merges "a" and "b", whose lengths or rotary settings differ',
        ),
    ],
)
def test_a_length_that_does_not_fit_is_said_first(recipe: Recipe, tmp_path, stages, words) -> None:
    model = SIZES | {"max_position_embeddings": 64}
    with pytest.raises(ValueError, match=re.escape(words)):
        run(replace(recipe, row_tokens=64, model=model, stage=stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rotary_settings_have_a_type() -> None:
    with pytest.raises(ValueError, match='stage "a": rope_parameters has no rope_type, such as "yarn"'):
        Stage("a", 1, **SHORT, rope_parameters={"factor": 2.0, "original_max_position_embeddings": 64})
    for missing in ("factor", "original_max_position_embeddings"):
        with pytest.raises(ValueError, match=f'stage "a": rope_parameters has no {missing}, which yarn needs'):
            Stage("a", 1, **SHORT, rope_parameters={key: value for key, value in YARN.items() if key != missing})


def test_a_corrupt_line_of_a_later_stage_shows_before_training(recipe: Recipe, tmp_path) -> None:
    """And where it is skipped, how many were is said and kept."""
    lines = [json.dumps({"text": f"text {n} " * 20}) for n in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:20], "{", *lines[20:]]))
    file, said = str(tmp_path / "a.jsonl"), []
    stages = [Stage("first", 1, **SHORT), Stage("second", 2, **SHORT, data={file: 1.0})]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 21: .*Mend or remove the line"):
        run(replace(recipe, stage=stages), tmp_path / "run", said.append)
    assert not list((tmp_path / "run").rglob("checkpoint-*")) and not any("building" in line for line in said)
    stages[1] = replace(stages[1], data={file: {"share": 1.0, "corrupt": "skip"}})
    run(replace(recipe, stage=stages), tmp_path / "again", said.append)
    taken = json.loads((tmp_path / "again" / "second" / "data.json").read_text())[file]
    assert taken["corrupt"] == taken["rounds"] + 1 and taken["first_corrupt"].startswith(f"{file}, line 21: ")
    assert any(line.startswith(f"second: {file}: {taken['examples']} examples, ") for line in said)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_several_processes_see_the_same_rows_in_the_same_order(recipe: Recipe, tmp_path) -> None:
    """One process, two, and two that go on from the checkpoint of one: the losses of every step, and the weights."""
    from safetensors.torch import load_file

    lines = [{"text": f"{n} and {n * n} " * (n % 9 + 5)} for n in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = f"preset = 'nano'\ntokenizer = '{recipe.tokenizer}'\nrow_tokens = 160\nbatch_rows = 4\nsave_steps = 2\n"
    text += "dtype = 'float32'\n[model]\n" + "".join(f"{key} = {value}\n" for key, value in SIZES.items())
    text += "[[stage]]\nname = 'a'\nsteps = 6\nlearning_rate = 1e-3\nschedule = 'linear'\n"
    (tmp_path / "own.toml").write_text(text + f"data = {{ '{tmp_path / 'a.jsonl'}' = 1.0 }}\n")

    def train(out: str, ranks: int) -> None:
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] if ranks > 1 else []
        command = [sys.executable, *torchrun, "-m", "axk1", "train", str(tmp_path / "own.toml")]
        done = subprocess.run(
            [*command, "--threads", "1", "--out", str(tmp_path / out)], capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr

    train("one", 1)
    train("two", 2)
    (tmp_path / "both" / "a").mkdir(parents=True)
    for name in ("checkpoint-4", "data.npy", "data.json", "stage.json"):
        source = tmp_path / "one" / "a" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / "both" / "a" / name)
    train("both", 2)
    logs, weights = {}, {}
    for name in ("one", "two", "both"):
        log = (tmp_path / name / "a" / "log.jsonl").read_text().splitlines()[1:]
        logs[name] = [json.loads(line) for line in log if "lm_loss" in line]
        weights[name] = load_file(tmp_path / name / "a" / "final" / "model.safetensors")
    assert [line["step"] for line in logs["one"]] == [1, 2, 3, 4, 5, 6]
    for other in ("two", "both"):
        for one, two in zip(logs["one"], logs[other], strict=True):
            for key in ("loss", "lm_loss", "mtp_loss", "grad_norm", "router_bias"):
                assert two[key] == pytest.approx(one[key], abs=2e-4), (other, one["step"], key)
        for key, value in weights["one"].items():
            assert torch.allclose(value, weights[other][key], atol=1e-5), (other, key)
    assert (tmp_path / "one" / "a" / "data.npy").read_bytes() == (tmp_path / "two" / "a" / "data.npy").read_bytes()


def test_the_number_format_is_what_the_processor_is_fast_in(recipe, monkeypatch) -> None:
    from axk1.train import stages

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for fast, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(stages, "multiplies_bfloat16", lambda fast=fast: fast)
        assert stages.products_dtype(recipe) == name
        assert stages._arguments(recipe, STAGES[0], Path("x")).bf16 is fast
    assert stages.products_dtype(replace(recipe, dtype="bfloat16")) == "bfloat16"


def test_a_stage_for_the_mtp_module_leaves_the_trunk_to_the_bit(recipe: Recipe, finished, tmp_path) -> None:
    """Biases of its routers too, while the module's own weights and bias move."""
    from safetensors.torch import load_file

    for stage in STAGES:  # as if they had run here
        (tmp_path / stage.name).symlink_to(finished[0] / stage.name)
    options = {"learning_rate": 1e-2, "schedule": "constant", "learn": "mtp", "drafts": 3}
    last = run(replace(recipe, stage=[*STAGES, Stage("drafts", steps=4, **options)]), tmp_path)  # pyright: ignore
    before, after = (load_file(folder / "model.safetensors") for folder in (finished[1], last))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    depth = json.loads((last / "config.json").read_text())["num_hidden_layers"]
    assert moved and all(key.startswith(f"model.layers.{depth}.") for key in moved)
    assert any(key.endswith("e_score_correction_bias") for key in moved)
    log = [json.loads(line) for line in (tmp_path / "drafts" / "log.jsonl").read_text().splitlines()]
    losses = [line["mtp_loss"] for line in log if "mtp_loss" in line]
    assert losses[-1] < losses[0]


def test_router_biases_move_in_training(finished) -> None:
    from safetensors.torch import load_file

    weights = load_file(finished[1] / "model.safetensors")
    biases = [value for key, value in weights.items() if key.endswith("e_score_correction_bias")]
    assert len(biases) == 2 and all(bias.abs().max() > 0 for bias in biases)


def test_the_export_chats_and_is_evaluated(recipe: Recipe, finished, tmp_path, capsys) -> None:
    from axk1.cli.evaluate import evaluate

    export_model(finished[1], Path(recipe.tokenizer), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    evaluate(str(tmp_path / "model"), count=4, batch_size=4, details=tmp_path / "replies.jsonl", as_json=True)
    report = json.loads(capsys.readouterr().out)
    replies = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reply["think"] for reply in replies] == [True] * 4 + [False] * 4
    assert report["think"]["all"]["count"] == report["non_think"]["all"]["count"] == 4
    assert 0 <= report["mtp_acceptance"] <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = 'nano'", "missing .* required"),
        (
            "preset = 'nano'\ntokenizer = 'x'\nbatch_row = 3",
            "the recipe: batch_row is no field; the nearest is batch_rows",
        ),
        ("preset = 'nano'\ntokenizer = 'x'\nseed = 1.5", "the recipe: seed = 1.5 must be a whole number"),
        ("preset = 'nano'\ntokenizer = 'x'", r"the recipe has no \[\[stage\]\]: nothing to train"),
        ("preset = 'nano'\ntokenizer = 'x'\nstage = 3", r"stage must be written as \[\[stage\]\]"),
        ("preset = 'mano'\ntokenizer = 'x'\n" + STAGE, 'preset = "mano" in the recipe: it must be one of '),
        ("preset = 'nano'\ntokenizer = 'x'\nadam_beta2 = -1\n" + STAGE, "adam_beta2 = -1 must be from 0 to 1"),
        ("preset = 'nano'\ntokenizer = 'x'\nbatch_rows = 0\n" + STAGE, "batch_rows = 0 must be at least 1"),
        ("preset = 'nano'\ntokenizer = 'x'\nmodel = 1\n" + STAGE, r"model = 1 must be a table, \[model\]"),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE * 2, 'has two stages "a"'),
        *(
            ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE + more, 'stage "a": ' + words)
            for more, words in [
                ("text = 6", "text = 6 must be from 0 to 1"),
                ("think = nan", "think = nan must be from 0 to 1"),
                ("learn_prompt = 1", "learn_prompt = 1 must be true or false"),
                ("tink = 0.5", "tink is no field; the nearest is think"),
                ("warmup_steps = 101", "warmup_steps = 101 must be from 0 to 100"),
                ("drafts = -1", "drafts = -1 must be at least 0"),
                ("tasks = {aritmetic = 1}", "tasks.aritmetic is no task; the nearest is arithmetic"),
                ("tasks = {chat = -1}", "tasks.chat = -1 must be a share"),
                ("tasks = {chat = 0}", "all shares of its tasks are 0"),
                ("tasks = 1", "tasks = 1 must be a table"),
            ]
        ),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE.replace("100", "'100'"), "steps = '100' must be a whole number"),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE.replace("100", "0"), "steps = 0 must be at least 1"),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE.replace("'a'", "'../a'"), "cannot be empty or hold a '/'"),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE.replace("linear", "liner"), 'schedule = "liner" in stage "a"'),
        ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE.replace("0.1", "0"), "learning_rate = 0 must be above 0"),
        *(
            ("preset = 'nano'\ntokenizer = 'x'\n" + STAGE + STAGE.replace("'a'", "'b'") + more, words)
            for more, words in [
                ("start = 'c'", 'stage "b": it begins with "c", which is no earlier stage'),
                ("start = 'b'", 'stage "b": it begins with "b", which is no earlier stage'),
                ("merge = {a = 1}", "merge must name two stages or more"),
                ("merge = {a = 0.5, b = 0.4}", "whose shares sum to 1"),
                ("merge = {a = 'x'}", "merge.a = 'x' must be a number"),
                ("start = 'a'\nmerge = {a = 0.5, b = 0.5}", "leave one out"),
                ("data = {'x.jsonl' = 0.8}\ntext = 0.3", "1 at most in all"),
            ]
        ),
        ("preset = ", "is not a valid recipe"),
        (
            "preset = 'nano'\ntokenizer = 'x'\n[[stage]]\nname = 'a'\nsteps = 1\nlearning_rate = 1\n"
            "schedule = 'linear'\nlearn = 'head'",
            'learn = "head" in stage "a": it must be "all" or "mtp"',
        ),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, text, message) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Recipe.load(tmp_path / "recipe.toml")


def test_values_beside_the_recipe(tmp_path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("preset = 'nano'\ntokenizer = 'x'\nseed = 1\n" + STAGE)
    changes = ["seed=7", "tokenizer=my/tokenizer", "model.num_hidden_layers=2", "a.steps = 30", "a.tasks.chat=0.5"]
    recipe = Recipe.load(file, changes)
    assert (recipe.seed, recipe.tokenizer, recipe.model) == (7, "my/tokenizer", {"num_hidden_layers": 2})
    assert (recipe.stage[0].steps, recipe.stage[0].tasks) == (30, {"chat": 0.5})
    for change, words in {
        "seeds=7": "with seeds=7 is not a valid recipe: the recipe: seeds is no field; the nearest is seed",
        "seed": "seed must be FIELD=VALUE",
        "seed=x": "seed = 'x' must be a whole number",
        "b.steps=3": "there is no stage b; ",
        "a.steps.x=3": "a.steps.x: steps is no table",
        "a.step=3": 'stage "a": step is no field; the nearest is steps',
    }.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            Recipe.load(file, [change])


def test_a_stage_goes_on_with_what_it_was_begun_with(recipe: Recipe, finished) -> None:
    """Its data, its steps and its rates; how often it saves is free."""
    out, final = finished
    assert run(replace(recipe, save_steps=50), out) == final
    other = replace(recipe, stage=[STAGES[0], replace(STAGES[1], steps=STAGES[1].steps + 1)])
    with pytest.raises(ValueError, match=f"sft was begun with steps = {STAGES[1].steps}, .* give another --out"):
        run(other, out)
    with pytest.raises(ValueError, match="pretrain was begun with batch_rows = 2"):
        run(replace(recipe, batch_rows=3), out)


def test_a_stage_that_has_learned_nothing_takes_other_values(recipe: Recipe, tmp_path, monkeypatch) -> None:
    """Its data are packed again, for what it is run with now; the stage before it stays."""
    import axk1.train.stages as stages

    first, later = Stage("first", steps=1, **SHORT), Stage("later", steps=2, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_run_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(replace(recipe, stage=[first, later]), tmp_path)
    assert len(PackedRows(tmp_path / "later" / "data.npy")) == 4
    before = (tmp_path / "first" / "data.npy").stat().st_mtime_ns
    run(replace(recipe, stage=[first, replace(later, steps=3, row_tokens=800)]), tmp_path)
    rows = PackedRows(tmp_path / "later" / "data.npy")
    assert (len(rows), rows.row_tokens) == (6, 800)
    assert (tmp_path / "first" / "data.npy").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "later" / "stage.json").read_text())["row_tokens"] == 800


def test_a_missing_recipe_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Recipe.load(tmp_path / "none.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ValueError, match="no ordinary file"):
        Recipe.load(tmp_path / "pipe.toml")


def test_the_shipped_recipe_loads() -> None:
    recipe = Recipe.load(Path(__file__).parents[2] / "recipes" / "nano.toml")
    assert [stage.name for stage in recipe.stage] == ["pretrain", "sft", "anneal", "refine", "more", "finish", "drafts"]


def test_the_recipe_of_the_second_edition_loads() -> None:
    recipe = Recipe.load(Path(__file__).parents[2] / "recipes" / "nano2.toml")
    names = ["pretrain", "columns", "situations-1", "situations-2", "situations-3", "finish", "drafts"]
    assert [stage.name for stage in recipe.stage] == names
    assert all(0 < stage.templates < 0.5 for stage in recipe.stage)
