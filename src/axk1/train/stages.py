"""A recipe's stages from data to weights, on transformers' Trainer. Thin: the objectives live in the model.

``axk1 train RECIPE`` runs every stage that is not finished yet and resumes the one that was cut off.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from axk1.checkpoint.merge import merge_checkpoints
from axk1.checkpoint.streaming import STATE
from axk1.files import write_text
from axk1.kernels.instructions import multiplies_bfloat16
from axk1.load import load_tokenizer
from axk1.modeling.moe import AXK1Router
from axk1.pretrained import AXK1ForCausalLM
from axk1.train.checkpoints import newest_whole, write_whole, written_or_said
from axk1.train.corpus import PARTS
from axk1.train.data import endless_examples
from axk1.train.examples import Example, problem_examples, text_examples
from axk1.train.initialize import initialize
from axk1.train.muon import MuonAdamW, parameter_groups
from axk1.train.packing import PackedRows, pack
from axk1.train.progress import Paced, Say, StepLines, StopAtStep
from axk1.train.recipe import Recipe, Settings, Stage, check_recipe

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class _LossParts(Trainer):
    """Logs the next-token and the MTP loss apart; the head runs on labelled positions only."""

    def __init__(self, *args: Any, drafts: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts: dict[str, list[float]] = {}
        self._extra = {"skip_logits": True, "use_cache": False, "mtp_drafts": drafts}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, **self._extra, num_items_in_batch=num_items_in_batch)
        if not outputs.loss.isfinite():
            raise ValueError(
                f"The loss of step {self.state.global_step + 1} is {outputs.loss.item()}: lower learning_rate or "
                f"max_grad_norm and run again, which goes on from the newest checkpoint in {self.args.output_dir}."
            )
        for name in ("lm_loss", "mtp_loss", "aux_loss"):
            if getattr(outputs, name) is not None:
                self.parts.setdefault(name, []).append(getattr(outputs, name).detach().item())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for name, values in self.parts.items():
            if values:
                logs[name] = round(sum(values) / len(values), 4)
            values.clear()
        super().log(logs, *args, **kwargs)


class RouterBalance(TrainerCallback):
    """Auxiliary-loss-free balancing: moves the routers' biases after every optimizer step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        cast(AXK1ForCausalLM, model).update_router_biases()


class ExpertLoad(TrainerCallback):
    """Tokens of a layer's busiest expert over an equal share, the mean over layers: 1 where all are as busy.

    Args:
        loads: is given one such number for every step.
    """

    def __init__(self, loads: list[float]) -> None:
        self.loads = loads

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        routers = [each for each in cast(AXK1ForCausalLM, model).modules() if isinstance(each, AXK1Router)]
        counts = [router.tokens_per_expert.float() for router in routers if router.tokens_per_expert.any()]
        if counts:
            self.loads.append(sum((count.max() / count.mean()).item() for count in counts) / len(counts))


def run(recipe: Recipe, out: Path, say: Say = lambda line: None) -> Path:
    """Runs all stages of ``recipe`` in ``out`` and returns the folder of the final checkpoint (fp32).

    A finished stage is skipped, a started one resumed from its last checkpoint;
    ``out/STAGE/log.jsonl`` holds the curve.

    Args:
        say: is told a line every few seconds, from the first on.

    Raises:
        ValueError: model, tokenizer and corpus do not fit together, in any stage; nothing was begun.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    tokenizer = load_tokenizer(recipe.tokenizer)
    check_recipe(recipe, tokenizer)
    before = None
    for number, stage in enumerate(recipe.stage, 1):
        folder = out / stage.name
        before = out / stage.start / "final" if stage.start else before
        _check_begun(recipe, stage, folder)
        if (folder / "final" / "config.json").is_file():
            say(f"{stage.name} ({number} of {len(recipe.stage)}): finished before")
        else:
            say(f"{stage.name} ({number} of {len(recipe.stage)}): {stage.steps:,} steps in {products_dtype(recipe)}")
            begin = _merged(stage, out, folder) if stage.merge else before
            _run_stage(recipe, stage, tokenizer, begin, folder, say)
        before = folder / "final"
    return cast(Path, before)


def _check_begun(recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Writes down what ``stage`` is run with, or finds that it was begun with something else.

    Raises:
        ValueError: it was.
    """
    shared = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    del shared["stage"], shared["save_steps"]
    given = json.loads(json.dumps({**asdict(stage), **shared}))
    record = folder / "stage.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(given, indent=1) + "\n")
        return
    begun = json.loads(record.read_text(encoding="utf-8"))
    for name, value in given.items():
        if begun.get(name, value) != value:
            raise ValueError(
                f'{folder} was begun with {name} = {json.dumps(begun[name])}, and stage "{stage.name}" has '
                f"{json.dumps(value)} now: give another --out, or remove that folder and those of later stages."
            )


def _merged(stage: Stage, out: Path, folder: Path) -> Path:
    """The weighted sum of earlier stages that ``stage`` begins with."""
    start = folder / "start"
    if not start.is_dir() or (start / STATE).exists():
        merge_checkpoints([out / name / "final" for name in stage.merge], list(stage.merge.values()), start)
    return start


def export_model(final: Path, tokenizer: Path, out: Path) -> None:
    """Writes the trained model in bf16 to ``out``, beside its tokenizer and template."""
    model = AXK1ForCausalLM.from_pretrained(final, dtype="bfloat16")
    model.config.router_bias_update_rate = 0.0  # a shipped model is not being trained
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file() and (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)


def _run_stage(
    recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast, before: Path | None, folder: Path, say: Say
) -> None:
    data = folder / "data.npy"
    if not data.is_file():
        rows, paced = stage.steps * recipe.batch_rows, Paced(say)
        examples = _examples(recipe, stage, tokenizer)
        pad = cast(int, tokenizer.pad_token_id)
        pack(examples, rows, recipe.row_tokens, pad, data, lambda done: paced(lambda: _packed(stage, done, rows)))
    say(f"{stage.name}: building the model")
    set_seed(recipe.seed)
    model = _model(recipe, before)
    if stage.learn == "mtp":
        model.requires_grad_(False)
        for module in model.model.mtp_layers:
            module.requires_grad_(True)
    fit(model, PackedRows(data), tokenizer, recipe, stage, folder, say)


def fit(
    model: AXK1ForCausalLM,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    stage: Stage,
    folder: Path,
    say: Say = lambda line: None,
) -> Path:
    """Trains what is not frozen of ``model`` on ``rows`` and returns ``folder/final``; goes on from the newest whole
    checkpoint in ``folder``.

    Raises:
        ValueError: the loss is not finite.
        OSError: the disk is full or not writable; the same call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a step, with a checkpoint.
    """
    trainer = _LossParts(
        drafts=stage.drafts,
        model=model,
        optimizers=(_muon(settings, stage, model), None),
        args=_arguments(settings, stage, folder),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[RouterBalance(), StepLines(say, stage.name, settings.batch_rows * settings.row_tokens)],
    )
    trainer.add_callback(ExpertLoad(trainer.parts.setdefault("expert_load", [])))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop := StopAtStep(say))
    with stop.on_interrupt(), written_or_said(folder):
        before_the_cut = newest_whole(folder)
        trainer.train(resume_from_checkpoint=str(before_the_cut) if before_the_cut else None)
    if stop.stopped:
        raise KeyboardInterrupt
    with written_or_said(folder):
        _write_log(trainer.state.log_history, stage, folder / "log.jsonl")
        write_whole(folder / "final", lambda final: trainer.save_model(str(final)))
    return folder / "final"


def _packed(stage: Stage, done: int, rows: int) -> str:
    return f"{stage.name}: {done:,} of {rows:,} rows of training data"


def products_dtype(settings: Settings) -> str:
    """Of matrix products: what the recipe says, or what the processor is fast in."""
    if settings.dtype != "auto":
        return settings.dtype
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else multiplies_bfloat16()
    return "bfloat16" if fast else "float32"


def _model(recipe: Recipe, before: Path | None) -> AXK1ForCausalLM:
    # Off CUDA the plain loop wins: it follows autocast to bf16, transformers' grouped_mm stays in fp32.
    experts = "grouped_mm" if torch.cuda.is_available() else "eager"
    if before is not None:
        return AXK1ForCausalLM.from_pretrained(before, dtype="float32", experts_implementation=experts)
    model = AXK1ForCausalLM(recipe.config())
    if recipe.unit_init:
        initialize(model)
    model.set_experts_implementation(experts)
    return model


def _muon(settings: Settings, stage: Stage, model: AXK1ForCausalLM) -> MuonAdamW | None:
    if not stage.muon_learning_rate:
        return None
    groups = parameter_groups(model, muon_lr=stage.muon_learning_rate, lr=stage.learning_rate)
    return MuonAdamW(groups, betas=(0.9, settings.adam_beta2), weight_decay=settings.weight_decay)


def _arguments(settings: Settings, stage: Stage, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=settings.batch_rows,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.schedule,
        warmup_steps=stage.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=products_dtype(settings) == "bfloat16",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        logging_steps=min(20, max(1, stage.steps // 4)),
        save_steps=settings.save_steps,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to=[],
    )


def _examples(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast) -> Iterator[Example]:
    """Problems, mixed with text by tokens so that ``stage.text`` is its share. Other stages see other problems."""
    seed = recipe.seed * 1_000 + [s.name for s in recipe.stage].index(stage.name)
    drawn = problem_examples(
        tokenizer,
        seed,
        think=stage.think,
        dialogue=stage.dialogue,
        learn_prompt=stage.learn_prompt,
        tasks=stage.tasks,
        templates=stage.templates,
    )
    problems = (example for example in drawn if len(example.input_ids) <= recipe.row_tokens)  # a rare long dialogue
    sources: dict[str, tuple[float, Iterator[Example]]] = {}
    if stage.text:
        sources["text"] = (stage.text, text_examples(Path(recipe.corpus), tokenizer, recipe.row_tokens, seed, PARTS))
    for file, share in stage.data.items():
        sources[file] = (share, endless_examples(Path(file), tokenizer, recipe.row_tokens, seed))
    rest = 1 - sum(share for share, _ in sources.values())
    if rest > 1e-9:
        sources["problems"] = (rest, problems)
    return _mixed(sources)


def _mixed(sources: dict[str, tuple[float, Iterator[Example]]]) -> Iterator[Example]:
    """Endless: always from the source that lags most behind its share of the tokens so far."""
    tokens = dict.fromkeys(sources, 0)
    while True:
        total = sum(tokens.values())
        name = max(sources, key=lambda name: sources[name][0] * total - tokens[name])
        for example in islice(sources[name][1], 8):
            tokens[name] += len(example.input_ids)
            yield example


def _write_log(history: list[dict[str, Any]], stage: Stage, path: Path) -> None:
    lines = [{"stage": asdict(stage)}, *history]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
