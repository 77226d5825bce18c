"""A whole recipe on a tiny model: stages, resuming, log, export, evaluation."""

import json
from pathlib import Path

import pytest
import torch
from scripted import SIZES, make_tokenizer

from axk1.train.stages import Recipe, Stage, export_model, run

STAGES = [
    Stage("pretrain", steps=4, learning_rate=1e-2, schedule="constant_with_warmup", text=0.5, learn_prompt=True),
    Stage("sft", steps=6, learning_rate=1e-2, schedule="linear", think=0.5),
]


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


def test_a_finished_run_is_left_alone(recipe: Recipe, finished) -> None:
    out, final = finished
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run(recipe, out) == final
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


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
    again = run(recipe, tmp_path)
    from safetensors.torch import load_file

    whole, resumed = (load_file(folder / "model.safetensors") for folder in (finished[1], again))
    assert whole.keys() == resumed.keys()
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-5) for key in whole)


def test_a_stage_for_the_mtp_module_leaves_the_trunk_to_the_bit(recipe: Recipe, finished, tmp_path) -> None:
    """Biases of its routers too, while the module's own weights and bias move."""
    from dataclasses import replace

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
    evaluate(tmp_path / "model", 4, 0, 4, tmp_path / "replies.jsonl", True)
    report = json.loads(capsys.readouterr().out)
    replies = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reply["think"] for reply in replies] == [True] * 4 + [False] * 4
    assert report["think"]["all"]["count"] == report["non_think"]["all"]["count"] == 4
    assert 0 <= report["mtp_acceptance"] <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset = 'nano'", "missing .* required"),
        ("preset = 'nano'\ntokenizer = 'x'\nbatch = 3", "unexpected keyword argument 'batch'"),
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


def test_a_missing_recipe_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Recipe.load(tmp_path / "none.toml")


def test_the_shipped_recipe_loads() -> None:
    recipe = Recipe.load(Path(__file__).parents[2] / "recipes" / "nano.toml")
    assert [stage.name for stage in recipe.stage] == ["pretrain", "sft", "anneal", "refine", "more", "finish", "drafts"]
