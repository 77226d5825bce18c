"""transformers' Trainer and PEFT on the model, for a few steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PAD, pad_rows, small_model, tokens
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from axk1 import AXK1ForCausalLM
from axk1.checkpoint.verify import verify_checkpoint
from axk1.modeling import trunk

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def new_model(seed: int = 0) -> Any:
    return small_model(seed, num_nextn_predict_layers=1)


def examples(count: int = 24, length: int = 10) -> list[dict[str, list[int]]]:
    """Texts that count up: easily learned. Lengths differ, so that packing and accumulation have to weigh them."""
    rows = []
    for i in range(count):
        ids = [(i + j) % 50 + 2 for j in range(length - i % 4)]
        rows.append({"input_ids": ids, "labels": list(ids)})
    return rows


def arguments(folder: Path, **overrides: Any) -> TrainingArguments:
    settings: dict[str, Any] = dict(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=6,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    return TrainingArguments(**{**settings, **overrides})


def make_trainer(model: Any, folder: Path, **overrides: Any) -> Any:
    return Trainer(
        model=model,
        args=arguments(folder, **overrides),
        train_dataset=examples(),  # pyright: ignore[reportArgumentType]
        eval_dataset=examples(8),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorWithFlattening(),
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_weights(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_trainer_learns_packed_texts_with_accumulation(tmp_path: Path) -> None:
    trainer = make_trainer(new_model(), tmp_path, max_steps=25)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.model_accepts_loss_kwargs, "num_items_in_batch must reach the model"
    assert len(losses(trainer)) == 25 and all(0 < loss < 20 for loss in losses(trainer))
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_accumulated_loss_is_the_whole_batchs(tmp_path: Path) -> None:
    """The same four packed texts as one batch or as two micro-batches: same first loss, same weights after a step."""
    trainers = []
    for micro, steps in ((4, 1), (2, 2)):
        trainer = make_trainer(
            new_model(),
            tmp_path / str(micro),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
        )
        trainer.train()
        trainers.append(trainer)
    assert losses(trainers[0])[0] == pytest.approx(losses(trainers[1])[0], rel=1e-4)
    one, two = (dict(trainer.model.named_parameters()) for trainer in trainers)
    moved = new_model().state_dict()
    for name, parameter in one.items():
        assert torch.allclose(parameter, two[name], atol=1e-6), name
    assert any(not torch.equal(parameter, moved[name]) for name, parameter in one.items())


def test_the_balance_loss_does_not_grow_with_accumulation(tmp_path: Path) -> None:
    """Padded rows and every objective: eight sequences as one, two or four micro-batches; biases by RouterBalance."""
    from axk1.train.stages import RouterBalance

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids, mask = pad_rows([torch.tensor(row["input_ids"]) for row in rows], "right")
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    found = []
    for steps in (1, 2, 4):
        model = small_model(num_nextn_predict_layers=1, router_aux_loss_coef=0.5, router_bias_update_rate=1e-2)
        micro = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
        trainer = Trainer(
            model=model,
            args=arguments(tmp_path, **micro, max_steps=3, optim="sgd", learning_rate=0.05, max_grad_norm=0.0),
            train_dataset=examples(),  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            callbacks=[RouterBalance()],
        )
        trainer.train()
        found.append((losses(trainer), {name: value.clone() for name, value in model.state_dict().items()}))
    for logged, weights in found[1:]:
        assert logged == pytest.approx(found[0][0], rel=1e-4)
        for name, value in weights.items():
            assert torch.allclose(value, found[0][1][name], atol=1e-5), name


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """Stopped after three steps and resumed from the checkpoint on disk: the weights of a run that never stopped."""
    whole = make_trainer(new_model(), tmp_path / "whole")
    whole.train()
    first = make_trainer(new_model(), tmp_path / "cut", max_steps=3, save_strategy="steps", save_steps=3)
    first.train()
    assert (tmp_path / "cut" / "checkpoint-3" / "model.safetensors").is_file()
    second = make_trainer(new_model(seed=1), tmp_path / "cut")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert losses(second)[-3:] == pytest.approx(losses(whole)[-3:], rel=1e-5)
    assert not same_weights(first.model, whole.model)
    for name, parameter in whole.model.named_parameters():
        assert torch.allclose(parameter, second.model.get_parameter(name), atol=1e-6), name


@pytest.mark.parametrize("overrides", [{"gradient_checkpointing": True}, {"bf16": True}], ids=lambda o: next(iter(o)))
def test_trainer_options(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """Gradient checkpointing leaves the losses as they are; bf16 autocast stays close."""
    plain = make_trainer(new_model(), tmp_path / "plain", max_steps=3)
    plain.train()
    other = make_trainer(new_model(), tmp_path / "other", max_steps=3, **overrides)
    other.train()
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4 if "gradient_checkpointing" in overrides else 0.05)


def test_predictions_are_the_logits_alone(tmp_path: Path) -> None:
    """Losses, router statistics and caches stay out of what evaluation gathers."""
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in tokens(4, 6)]
    trainer: Any = Trainer(model=new_model(), args=arguments(tmp_path))
    prediction = trainer.predict(rows)
    assert prediction.predictions.shape == (4, 6, trainer.model.config.vocab_size)


TARGETS = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "shared_experts.down_proj"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(tmp_path: Path, checkpointing: bool) -> None:
    """Adapters alone learn; saved and loaded they give the same logits on a fresh base, and merge into it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = new_model()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    trainer = make_trainer(model, tmp_path, max_steps=12, learning_rate=2e-2, gradient_checkpointing=checkpointing)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.95 * before
    fresh = new_model()
    for name, parameter in base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, fresh.get_parameter(name.replace(".base_layer", ""))), name
    model.save_pretrained(str(tmp_path / "adapter"))
    ids = tokens(2, 8)
    expected = model.eval()(ids).logits
    assert (expected - new_model()(ids).logits).abs().max() > 0.01
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert torch.allclose(loaded(ids).logits, expected, atol=1e-6)
    merged: Any = loaded.merge_and_unload()
    assert merged.__class__ is AXK1ForCausalLM
    assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    found = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    assert torch.equal(found, merged.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=PAD))


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def test_lora_on_experts_is_exported_in_the_released_layout(tmp_path: Path) -> None:
    """Adapters on the fused 3-D weights learn, are merged back, and saved they are a checkpoint like any other."""
    from peft import LoraConfig, get_peft_model

    base = new_model()
    settings = LoraConfig(r=2, target_modules=[], target_parameters=EXPERTS, task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 3 and all(".experts." in name for name in trainable)  # MTP module too
    trainer = make_trainer(model, tmp_path, max_steps=12, learning_rate=5e-2)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.97 * before
    ids = tokens(2, 8)
    expected = model.eval()(ids).logits.detach()
    merged: Any = model.merge_and_unload()
    assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    report = verify_checkpoint(tmp_path / "merged")
    assert report.layout == "released" and report.mtp_layers == 1
    loaded, start = AXK1ForCausalLM.from_pretrained(tmp_path / "merged"), new_model()
    assert torch.allclose(loaded(ids).logits, expected, atol=1e-4)
    moved = {n for n, p in loaded.named_parameters() if not torch.allclose(p, start.get_parameter(n), atol=1e-6)}
    assert moved == {f"model.layers.{i}.{name}" for i in (1, 2, 3) for name in EXPERTS}


def adapted(model: Any) -> set[str]:
    """Modules of layer 1 that learn, by their last names."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and ".layers.1." in name]
    return {name.split(".layers.1.")[1].split(".lora_")[0].split(".ln_tuning")[0] for name in names}


def test_adapters_know_where_to_go() -> None:
    """Without ``target_modules``: PEFT's defaults for this architecture, which importing axk1 registers."""
    from peft import LNTuningConfig, LoraConfig, get_peft_model

    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    lora = get_peft_model(new_model(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert adapted(lora) == {f"self_attn.{name}" for name in attention}
    norms = get_peft_model(new_model(), LNTuningConfig(task_type="CAUSAL_LM"))
    assert adapted(norms) == {"input_layernorm", "post_attention_layernorm"}


def test_prefix_tuning_says_why_not() -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    ids = tokens(2, 5)
    for depth in (0, 1):
        base = small_model(num_nextn_predict_layers=depth)
        model: Any = get_peft_model(base, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
        with pytest.raises(ValueError, match=r"prefix tuning, cannot stand in for it: use LoRA or prompt tuning"):
            model(input_ids=ids, labels=ids)
    model = get_peft_model(new_model(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.prompt_encoder.default.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["label_smoothing_factor", "compute_loss_func"])
def test_a_loss_of_the_trainers_own(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer keeps the labels: it learns, and is told once what its loss lacks."""
    said: list[str] = []
    monkeypatch.setattr(trunk.logger, "warning_once", said.append)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    smoothing = {"label_smoothing_factor": 0.1} if how == "label_smoothing_factor" else {}
    trainer: Any = Trainer(
        model=new_model(),
        args=arguments(tmp_path, max_steps=4, **smoothing),
        train_dataset=examples(),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorWithFlattening(),
        compute_loss_func=None if smoothing else loss,
    )
    trainer.train()
    assert len(losses(trainer)) == 4 and all(0 < value < 20 for value in losses(trainer))
    assert said and "mtp_loss_weight=0.3" in said[0]
