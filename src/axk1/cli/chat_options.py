"""Options that `axk1 chat` and `axk1 generate` share."""

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from axk1.chat import Chat

Think = Annotated[bool, typer.Option("--think/--no-think", help="Reason before answering.")]
Budget = Annotated[int, typer.Option(help="Reasoning tokens at most: -1 unlimited, 0 none.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Reasoning and answer together. Default: what the context holds.")
]
Temperature = Annotated[float, typer.Option(help="0 always takes the most probable token.")]
TopP = Annotated[float, typer.Option(help="Sample from the most probable tokens that reach this share.")]
TopK = Annotated[int, typer.Option(help="Sample from the K most probable tokens; 0: off.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below this share of the best one's probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 makes repeating a token less likely.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU when there is one.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` without control characters, which could steer the terminal; new lines and tabs stay."""
    return _CONTROL.sub("\ufffd", text)


def lenient_stdin() -> None:
    """Makes bytes on standard input that are not text arrive as replacement characters."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def load_chat(model: Path | None, device: str | None, dtype: str) -> "Chat":
    """Loads a checkpoint without transformers' progress bars and notices."""
    from axk1.chat import load, resolve_model_path

    folder = resolve_model_path(model)  # before the slow imports: a wrong path is reported at once
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return load(folder, device=device, dtype=dtype)
