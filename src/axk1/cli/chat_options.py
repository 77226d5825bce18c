"""Options that `axk1 chat` and `axk1 generate` share, declared once."""

import dataclasses
import functools
import inspect
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from axk1.terminal import printable as printable

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.generation.sampling import Sampling
    from axk1.generation.speculate import Drafts

Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU when there is one.")]


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """How replies are made: a field is an option of the command line."""

    think: Annotated[bool, typer.Option("--think/--no-think", help="Reason before answering.")] = False
    budget: Annotated[int, typer.Option(help="Reasoning tokens at most: -1 unlimited, 0 none.")] = -1
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Reasoning and answer together. Default: what the context holds.")
    ] = None
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 0.6
    top_p: Annotated[float, typer.Option(help="Sample from the most probable tokens that reach this share.")] = 0.95
    top_k: Annotated[int, typer.Option(help="Sample from the K most probable tokens; 0: off.")] = 0
    min_p: Annotated[float, typer.Option(help="Leave out tokens below this share of the best one's probability.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes repeating a token less likely.")] = 1.0
    presence_penalty: Annotated[float, typer.Option(help="Taken off the logits of tokens in the reply.")] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="The same, for each time they occur.")] = 0.0
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Added to a token id's logit; repeatable.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None
    drafts: Annotated[
        str, typer.Option(metavar="N|auto|0", help="Tokens the MTP module drafts a step; auto: as many as pay.")
    ] = "auto"
    device: Device = None
    dtype: Annotated[
        str,
        typer.Option(
            help="auto: as stored, but float32 on a CPU that is slow in that; float32, bfloat16, float16; or packed: "
            "bfloat16 in 12 bits, without loss."
        ),
    ] = "auto"

    def sampling(self) -> "Sampling":
        """The sampling options.

        Raises:
            ValueError: for one out of range.
        """
        from axk1.generation.sampling import Sampling

        names = {field.name for field in dataclasses.fields(Sampling)} - {"logit_bias"}
        biases = dict(_bias(text) for text in self.logit_bias or ())
        return Sampling(**{name: getattr(self, name) for name in names}, logit_bias=biases)

    def speculation(self) -> "Drafts":
        """The drafts.

        Raises:
            ValueError: for what is neither auto nor a number in range.
        """
        from axk1.generation.speculate import AUTO, Drafts

        if self.drafts != "auto" and not self.drafts.isdecimal():
            raise ValueError(f"--drafts is {self.drafts!r}; it must be auto, or a number of tokens (0: none).")
        return Drafts(AUTO if self.drafts == "auto" else int(self.drafts))

    def load(self, model: Path | None) -> "Chat":
        """The checkpoint, on the device and in the dtype chosen."""
        return load_chat(model, self.device, self.dtype)


def with_reply_options(command: Callable[..., None]) -> Callable[..., None]:
    """Puts an option for each field of :class:`ReplyOptions` in place of ``command``'s parameter ``how``."""
    own, hints = inspect.signature(command, eval_str=True), get_type_hints(ReplyOptions, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(ReplyOptions)
    ]
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "how"] + shared

    @functools.wraps(command)
    def run(**given: Any) -> None:
        how = ReplyOptions(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(**given, how=how)

    run.__signature__ = own.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise ValueError(f"--logit-bias is {text!r}; it must be a token id, =, and a number, as in 42=-5.") from error


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
