"""`axk1 train`: a recipe from data to weights; and `axk1 train mtp`: an MTP module for a finished model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import axk1
from axk1.cli import chat_options as options

if TYPE_CHECKING:
    from axk1.train.recipe import Recipe


TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write losses and loads for TensorBoard too, into the run's folder.")
]


class _RecipeOrCommand(TyperGroup):
    """`axk1 train FILE` runs a recipe: what is no command of the group is given to `recipe`."""

    default = "recipe"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``args``, after the name of the command that they are for."""
        named = not args or args[0] in self.commands or args[0] in ("-h", "--help")
        return super().parse_args(ctx, args if named else [self.default, *args])


app = typer.Typer(
    cls=_RecipeOrCommand,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train: `axk1 train RECIPE` from data to weights, `axk1 train mtp MODEL` a module that drafts.",
)


@app.command("recipe")
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/nano.toml; nano for the shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on where it stopped.")] = Path("runs/nano"),
    threads: options.Threads = None,
    export: Annotated[Path | None, typer.Option(help="Write the finished model here, bf16, with tokenizer.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="In place of what the recipe says: seed=7, pretrain.steps=100."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and start nothing.")] = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Run every stage of a recipe that is not finished yet, resuming the one that was cut off (`axk1 train RECIPE`)."""
    options.check_threads(threads)
    file = shipped(recipe, Path("recipes") / f"{recipe}.toml")
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist, or is no ordinary file: give the path of a recipe such as recipes/nano.toml."
        )
    typer.echo("Loading PyTorch and transformers.", err=True)
    import torch

    from axk1.train.recipe import Recipe, is_first
    from axk1.train.stages import export_model, run

    plan = Recipe.load(file, changes or ())
    plan = replace(plan, tokenizer=str(shipped(Path(plan.tokenizer), Path(plan.tokenizer))))
    plan = replace(plan, tensorboard=plan.tensorboard or tensorboard)
    if threads is not None:
        torch.set_num_threads(threads)
    if dry_run:
        return _show_estimate(plan)
    with _going_on() as say:
        final = run(plan, out, say)
    if not is_first():  # of several processes
        return
    if export is not None:
        export_model(final, Path(plan.tokenizer), export)
    typer.echo(f"Finished: {export or final}")


@app.command("mtp")
def mtp(
    model: Annotated[Path, typer.Argument(help="Checkpoint folder, in either layout; its trunk stays to the bit.")],
    export: Annotated[Path, typer.Option(help="Folder to write: the checkpoint with its module.")] = Path("with-mtp"),
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL of prompts, answered by MODEL in both modes: what the module learns.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL of texts, or of conversations that MODEL has written, in their place.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; goes on where it stopped.")] = Path("runs/mtp"),
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 1000,
    drafts: Annotated[int, typer.Option(help="Tokens that the module learns to draft one after the other.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Of norms and router; falls to zero.")] = 4e-3,
    muon_learning_rate: Annotated[float, typer.Option(help="Of all matrices, by Muon; 0: AdamW for all.")] = 1e-2,
    row_tokens: Annotated[int, typer.Option(help="Texts are packed into rows of this length.")] = 256,
    batch_rows: Annotated[int, typer.Option(help="Rows of a step.")] = 16,
    temperature: Annotated[float, typer.Option(help="Of the replies to --prompts.")] = 0.6,
    max_new_tokens: Annotated[int, typer.Option(help="Of a reply to --prompts.")] = 512,
    seed: Annotated[int, typer.Option(help="Of replies and training.")] = 0,
    threads: options.Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what memory it takes, and start nothing.")] = False,
    tensorboard: TensorBoard = False,
) -> None:
    """Train an MTP module for a finished checkpoint, which drafts tokens for it (`--drafts` of other commands).

    The model's own replies teach it best. A tenth of them is kept out, and acceptance measured on it: by the `domain`
    of the prompts' lines and by mode.
    """
    options.check_threads(threads)
    if dry_run:
        return _show_graft(model, muon=muon_learning_rate > 0)
    if (prompts is None) == (data is None):
        raise ValueError("Give either --prompts, for the model to answer, or --data, with texts that are there.")
    typer.echo("Loading PyTorch and transformers.", err=True)
    import torch

    from axk1.checkpoint.convert import attach_module
    from axk1.generation.sampling import Sampling
    from axk1.train.board import check_board
    from axk1.train.graft import graft
    from axk1.train.own_replies import from_file, own_replies
    from axk1.train.recipe import Settings, Stage

    if threads is not None:
        torch.set_num_threads(threads)
    if tensorboard:
        check_board()
    shape: dict[str, Any] = {"row_tokens": row_tokens, "batch_rows": batch_rows}
    settings = Settings(seed=seed, **shape, weight_decay=0.02, tensorboard=tensorboard)
    rates: dict[str, Any] = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
    stage = Stage("mtp", steps, schedule="linear", learn="mtp", drafts=drafts, **rates)
    with _going_on() as say:
        if prompts is not None:
            sampling = Sampling(temperature=temperature, seed=seed)
            texts = own_replies(model, prompts, out, row_tokens, sampling, max_new_tokens, say)
        else:
            texts = from_file(model, Path(str(data)), row_tokens)
        module = graft(model, texts, out, settings, stage, say)
        attach_module(model, module, export)
    _show_acceptance(out / "acceptance.json")
    typer.echo(f"Finished: {export}")


@contextmanager
def _going_on() -> Iterator[Callable[[str], None]]:
    """What says lines with the time; Ctrl-C gets a last one."""
    start = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"{time.monotonic() - start:7.1f} s  {line}", err=True)

    try:
        yield say
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command goes on.", err=True)
        raise


def _show_acceptance(report: Path) -> None:
    """Acceptance by domain and place, beside that of the module that the checkpoint had."""
    values = json.loads(report.read_text(encoding="utf-8"))
    for domain, found in values["grafted"].items():
        before = values.get("own", {}).get(domain)
        places = ", ".join(f"{share:.1%}" for share in found["at"])
        beside = "" if before is None else f"; the module before: {', '.join(f'{share:.1%}' for share in before['at'])}"
        typer.echo(f"{domain}: accepted {places} of {found['count']:,}{beside}")


def _show_graft(model: Path, muon: bool) -> None:
    from axk1.checkpoint.files import load_config
    from axk1.config import PRESETS, AXK1Config
    from axk1.plan.training import estimate_graft
    from axk1.train.estimate import graft_sentences

    preset = str(model) in PRESETS and not model.exists()
    config = AXK1Config.preset(str(model)) if preset else load_config(model)
    for line in graft_sentences(estimate_graft(config, muon)):
        typer.echo(line)


def _show_estimate(plan: Recipe) -> None:
    from axk1.load import load_tokenizer
    from axk1.train.estimate import estimate, sentences
    from axk1.train.recipe import check_recipe

    check_recipe(plan, load_tokenizer(plan.tokenizer))
    for line in sentences(estimate(plan)):
        typer.echo(line)


def shipped(path: Path, name: Path) -> Path:
    """``path``, or where there is nothing, the file or folder ``name`` that comes with axk1, if there is one."""
    package = Path(axk1.__file__).parent
    places = [package / name, package.parents[1] / name]  # installed; in a clone, src/axk1/../..
    return path if path.exists() else next((place for place in places if place.exists()), path)
