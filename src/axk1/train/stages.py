"""A recipe's stages from data to weights, on transformers' Trainer. Thin: the objectives live in the model.

``axk1 train RECIPE`` runs every stage that is not finished yet and resumes the one that was cut off.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from axk1.checkpoint.merge import merge_checkpoints
from axk1.checkpoint.streaming import STATE
from axk1.files import write_text
from axk1.kernels.instructions import multiplies_bfloat16
from axk1.load import load_tokenizer
from axk1.modeling.moe import AXK1Router
from axk1.modeling.objectives import IGNORE
from axk1.pretrained import AXK1ForCausalLM
from axk1.train.board import board
from axk1.train.checkpoints import newest_whole, write_whole, written_or_said
from axk1.train.corpus import PARTS
from axk1.train.curves import draw_curves
from axk1.train.examples import Example, problem_examples, text_examples
from axk1.train.initialize import initialize
from axk1.train.muon import MuonAdamW, parameter_groups
from axk1.train.packing import PackedRows, pack
from axk1.train.progress import Paced, Say, StepLines, StopAtStep
from axk1.train.recipe import Recipe, Settings, Stage, check_recipe, processes
from axk1.train.sources import Taken, endless_examples

LOSSES = ("lm_loss", "mtp_loss", "aux_loss")
ACCEPTANCE_TOKENS = 256
"""Places of a row that drafts are compared at when a step is logged: logits of more would be large."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class _LossParts(Trainer):
    """Logs the next-token and the MTP loss apart, and what experts, biases and drafts do; the head runs on labelled
    positions only."""

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
        for name in LOSSES:
            if getattr(outputs, name) is not None:
                self.parts.setdefault(name, []).append(getattr(outputs, name).detach().item())
        # after the step's own forward: autocast keeps the weights that it has cast, and these need gradients
        if (self.state.global_step + 1) % self.args.logging_steps == 0:
            for name, value in accepted_drafts(cast(AXK1ForCausalLM, self.model), inputs).items():
                self.parts.setdefault(name, []).append(value)
        # a rank's loss is its part of the whole step's, and DDP takes the mean of the ranks' gradients
        loss = outputs.loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        means = {name: sum(values) / len(values) for name, values in self.parts.items() if values}
        for values in self.parts.values():
            values.clear()
        means = self._over_ranks(means)
        drafted, right = means.pop("drafted", 0.0), means.pop("right", 0.0)
        logs |= {name: round(value, 4) for name, value in means.items()}
        if drafted:
            logs["acceptance"] = round(right / drafted, 4)
        if means and (bias := largest_bias(cast(AXK1ForCausalLM, self.model))) is not None:
            logs["router_bias"] = round(bias, 6)
        super().log(logs, *args, **kwargs)

    def _over_ranks(self, means: dict[str, float]) -> dict[str, float]:
        """Losses are sums over the ranks, each of which has divided by the labels of all; the rest are means."""
        world = self.accelerator.num_processes
        if world == 1 or not means:
            return means
        total = torch.tensor([*means.values()], dtype=torch.float64, device=self.args.device)
        torch.distributed.all_reduce(total)
        return {
            name: value if name in LOSSES else value / world for name, value in zip(means, total.tolist(), strict=True)
        }


@torch.no_grad()
def accepted_drafts(model: AXK1ForCausalLM, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """How many places of the first row's beginning have a first draft of the MTP module, ``drafted``, and at how many
    of these, ``right``, it is the token that the trunk finds most probable there.

    Nothing where the model has no MTP module, or no trunk.

    Args:
        inputs: ``input_ids``, ``labels`` and ``position_ids``, each ``[batch, tokens]``; ``ACCEPTANCE_TOKENS`` count.
    """
    if not model.config.num_nextn_predict_layers or "states" in inputs:
        return {}
    ids, labels, places = (inputs[name][:1, :ACCEPTANCE_TOKENS] for name in ("input_ids", "labels", "position_ids"))
    was_training = model.training
    model.eval()
    made = model(input_ids=ids, position_ids=places, use_cache=False, output_mtp_logits=True)
    model.train(was_training)
    drafts, chosen = made.mtp_logits[0][:, :-2].argmax(-1), made.logits[:, 1:-1].argmax(-1)
    counted = (places[:, 2:] - places[:, :-2] == 2) & (labels[:, 2:] != IGNORE)
    return {"drafted": float(counted.sum()), "right": float((counted & (drafts == chosen)).sum())}


def largest_bias(model: AXK1ForCausalLM) -> float | None:
    """The largest magnitude of any router's bias; None without routers."""
    routers = [each for each in model.modules() if isinstance(each, AXK1Router)]
    return max((router.e_score_correction_bias.abs().max().item() for router in routers), default=None)


class RouterBalance(TrainerCallback):
    """Auxiliary-loss-free balancing: moves the routers' biases after every optimizer step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        cast(AXK1ForCausalLM, model).update_router_biases()


class ExpertLoad(TrainerCallback):
    """Tokens of a layer's busiest expert over an equal share: 1 where all are as busy.

    Args:
        parts: is given of every step the mean over layers, ``expert_load``, and the worst's, ``expert_load_max``.
    """

    def __init__(self, parts: dict[str, list[float]]) -> None:
        self.parts = parts

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        routers = [each for each in cast(AXK1ForCausalLM, model).modules() if isinstance(each, AXK1Router)]
        counts = [router.tokens_per_expert.float() for router in routers if router.tokens_per_expert.any()]
        loads = [(count.max() / count.mean()).item() for count in counts]
        if loads:
            self.parts.setdefault("expert_load", []).append(sum(loads) / len(loads))
            self.parts.setdefault("expert_load_max", []).append(max(loads))


def _nothing(line: str) -> None:
    """What the other ranks say."""


def run(recipe: Recipe, out: Path, say: Say = _nothing) -> Path:
    """Runs all stages of ``recipe`` in ``out`` and returns the folder of the final checkpoint (fp32).

    A finished stage is skipped, a started one resumed from its last checkpoint; ``out/STAGE/log.jsonl`` holds the
    curve, ``curves.svg`` shows it. Under torchrun all processes call this; the first one packs and writes.

    Args:
        say: is told a line every few seconds, from the first on.

    Raises:
        ValueError: model, tokenizer and corpus do not fit together, in any stage; nothing was begun.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    tokenizer = load_tokenizer(recipe.tokenizer)
    check_recipe(recipe, tokenizer)
    ranks, before = _ranks(), None
    if not ranks.is_main_process:
        say = _nothing
    with ranks.main_process_first():  # all data first: a corrupt line shows before anything is trained
        for stage in recipe.stage:
            _check_begun(recipe.at(stage), stage, out / stage.name)
        for stage in recipe.stage:
            if not (out / stage.name / "final" / "config.json").is_file():
                _pack_stage(recipe.at(stage), stage, tokenizer, out / stage.name, say)
    for number, stage in enumerate(recipe.stage, 1):
        folder, here = out / stage.name, recipe.at(stage)
        before = out / stage.start / "final" if stage.start else before
        if (folder / "final" / "config.json").is_file():
            say(f"{stage.name} ({number} of {len(recipe.stage)}): finished before")
        else:
            say(f"{stage.name} ({number} of {len(recipe.stage)}): {stage.steps:,} steps in {products_dtype(recipe)}")
            with ranks.main_process_first():
                begin = _merged(stage, out, folder) if stage.merge else before
            _run_stage(here, stage, tokenizer, begin, folder, say)
        before = folder / "final"
    return cast(Path, before)


def _check_begun(recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Writes down what ``stage`` is run with, or finds that it was begun with something else. Of a stage that has made
    no checkpoint, the data that were packed for something else are removed.

    Raises:
        ValueError: it was, and there is a checkpoint.
    """
    shared = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    for free in ("stage", "save_steps", "tensorboard"):
        del shared[free]
    given = json.loads(json.dumps({**asdict(stage), **shared}))
    record = folder / "stage.json"
    begun = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    name = next((name for name, value in given.items() if begun.get(name, value) != value), None)
    if name is not None and (any(folder.glob("checkpoint-*")) or (folder / "final").exists()):
        raise ValueError(
            f'{folder} was begun with {name} = {json.dumps(begun[name])}, and stage "{stage.name}" has '
            f"{json.dumps(given[name])} now: give another --out, or remove that folder and those of later stages."
        )
    if name is not None:
        (folder / "data.npy").unlink(missing_ok=True)
        shutil.rmtree(folder / "start", ignore_errors=True)
    if name is not None or not begun:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(record, json.dumps(given, indent=1) + "\n")


def _merged(stage: Stage, out: Path, folder: Path) -> Path:
    """The weighted sum of earlier stages that ``stage`` begins with."""
    start = folder / "start"
    if not start.is_dir() or (start / STATE).exists():
        merge_checkpoints([out / name / "final" for name in stage.merge], list(stage.merge.values()), start)
    return start


def export_model(final: Path, tokenizer: Path, out: Path) -> None:
    """Writes the trained model in bf16 to ``out``, beside its tokenizer, which takes as many tokens, and template."""
    model = AXK1ForCausalLM.from_pretrained(final, dtype="bfloat16")
    model.config.router_bias_update_rate = 0.0  # a shipped model is not being trained
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file() and (tokenizer / name).resolve() != (out / name).resolve():
            shutil.copyfile(tokenizer / name, out / name)
    settings = out / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    if values.get("model_max_length", math.inf) < model.config.max_position_embeddings:
        values["model_max_length"] = model.config.max_position_embeddings
        write_text(settings, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _pack_stage(recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast, folder: Path, say: Say) -> None:
    """The rows of all steps in ``folder/data.npy``, and what was taken from which source in ``folder/data.json``."""
    data = folder / "data.npy"
    if data.is_file():
        return
    rows, paced, taken = stage.steps * recipe.batch_rows, Paced(say), {}
    examples = stage_examples(recipe, stage, tokenizer, taken)
    pad = cast(int, tokenizer.pad_token_id)
    pack(examples, rows, recipe.row_tokens, pad, data, lambda done: paced(lambda: _packed(stage, done, rows)))
    write_text(folder / "data.json", json.dumps({name: asdict(each) for name, each in taken.items()}, indent=1) + "\n")
    for name, each in taken.items():
        say(f"{stage.name}: {name}: {each.words()}")


def _run_stage(
    recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast, before: Path | None, folder: Path, say: Say
) -> None:
    say(f"{stage.name}: building the model")
    set_seed(recipe.seed)
    model = _model(recipe, stage, before)
    if stage.learn == "mtp":
        model.requires_grad_(False)
        for module in model.model.mtp_layers:
            module.requires_grad_(True)
    fit(model, PackedRows(folder / "data.npy"), tokenizer, recipe, stage, folder, say)


def fit(
    model: AXK1ForCausalLM,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    stage: Stage,
    folder: Path,
    say: Say = _nothing,
) -> Path:
    """Trains what is not frozen of ``model`` on ``rows`` and returns ``folder/final``; goes on from the newest whole
    checkpoint in ``folder``.

    Raises:
        ValueError: the loss is not finite.
        OSError: the disk is full or not writable; the same call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a step, with a checkpoint.
    """
    before_the_cut = newest_whole(folder)
    trainer = _LossParts(
        drafts=stage.drafts,
        model=model,
        optimizers=(_muon(settings, stage, model), None),
        args=_arguments(settings, stage, folder),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[RouterBalance(), StepLines(say, stage.name, settings.batch_rows * settings.row_tokens)],
    )
    trainer.add_callback(ExpertLoad(trainer.parts))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stop := StopAtStep(say))
    if settings.tensorboard and trainer.is_world_process_zero():
        done = int(before_the_cut.name.rpartition("-")[2]) if before_the_cut else 0
        trainer.add_callback(board(folder / "tensorboard", done))
    with stop.on_interrupt(), written_or_said(folder):
        trainer.train(resume_from_checkpoint=str(before_the_cut) if before_the_cut else None)
    if stop.stopped:
        raise KeyboardInterrupt
    if trainer.is_world_process_zero():
        with written_or_said(folder):
            history = trainer.state.log_history
            _write_log(history, stage, folder / "log.jsonl")
            write_text(folder / "curves.svg", draw_curves(stage.name, history))
            write_whole(folder / "final", lambda final: trainer.save_model(str(final)))
    trainer.accelerator.wait_for_everyone()
    return folder / "final"


def _packed(stage: Stage, done: int, rows: int) -> str:
    return f"{stage.name}: {done:,} of {rows:,} rows of training data"


def products_dtype(settings: Settings) -> str:
    """Of matrix products: what the recipe says, or what the processor is fast in."""
    if settings.dtype != "auto":
        return settings.dtype
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else multiplies_bfloat16()
    return "bfloat16" if fast else "float32"


def _model(recipe: Recipe, stage: Stage, before: Path | None) -> AXK1ForCausalLM:
    # Off CUDA the plain loop wins: it follows autocast to bf16, transformers' grouped_mm stays in fp32.
    experts = "grouped_mm" if torch.cuda.is_available() else "eager"
    if before is not None:
        longer: dict[str, Any] = {"config": recipe.config(stage)} if stage.changes({}) else {}
        return AXK1ForCausalLM.from_pretrained(before, dtype="float32", experts_implementation=experts, **longer)
    model = AXK1ForCausalLM(recipe.config(stage))
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
        per_device_train_batch_size=settings.batch_rows // processes(),
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
        data_seed=settings.seed,  # the rows' order is a permutation of this and the epoch, on any number of processes
        logging_steps=min(20, max(1, stage.steps // 4)),
        save_steps=settings.save_steps,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to=[],
    )


def stage_examples(
    recipe: Recipe, stage: Stage, tokenizer: PreTrainedTokenizerFast, taken: dict[str, Taken] | None = None
) -> Iterator[Example]:
    """Problems, text and sources, mixed by tokens in the stage's shares; endless. Other stages see other problems.

    Args:
        recipe: as it is at the stage (:meth:`Recipe.at`).
        taken: is filled with what is taken from each source.

    Raises:
        ValueError: a source that cannot be read or learned from, naming file and line.
    """
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
    for name, source in stage.sources().items():
        if source.share:
            counts = (taken if taken is not None else {}).setdefault(name, Taken())
            sources[name] = (
                source.share,
                endless_examples(name, tokenizer, recipe.row_tokens, seed, source, counts),
            )
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


def _ranks() -> PartialState:
    """The processes that torchrun has started, or this one; packing may take long, and the others wait."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))


def _write_log(history: list[dict[str, Any]], stage: Stage, path: Path) -> None:
    lines = [{"stage": asdict(stage)}, *history]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
