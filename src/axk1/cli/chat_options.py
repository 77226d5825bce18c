"""Options that `axk1 chat` and `axk1 generate` share, declared once."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from axk1.cli import streams

if TYPE_CHECKING:
    from axk1.chat import Chat
    from axk1.generation.sampling import Sampling
    from axk1.generation.speculate import Drafts

Model = Annotated[
    str | None, typer.Argument(help="Checkpoint folder or name on the hub. Default: AXK1_MODEL, else the nano.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; as many as torch finds when left out.")]
MOST_THREADS = 4096
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU when there is one.")]
ExpertCache = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Read routed experts from disk as they are needed, into a cache of this size, such as 8GiB.",
    ),
]


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
    threads: Threads = None
    expert_cache: ExpertCache = None

    def check(self) -> None:
        """Refuses what cannot go together, before the model is loaded.

        Raises:
            ValueError: naming the options.
        """
        if self.budget < -1:
            raise ValueError(f"budget is {self.budget}; it must be -1 (unlimited), 0 (no reasoning) or more.")
        if self.max_new_tokens is None:
            return
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be a whole number, at least 1.")
        if self.think and self.budget >= self.max_new_tokens:
            raise ValueError(
                f"A budget of {self.budget} reasoning tokens leaves no room for an answer in {self.max_new_tokens} new "
                "tokens; lower the budget or raise max_new_tokens."
            )

    def choices(self) -> dict[str, Any]:
        """How tokens are chosen, and how many; a terminal's standard error says that the libraries for it load.

        Raises:
            ValueError: for an option out of range.
        """
        with streams.status("Loading PyTorch and transformers"):
            return {
                "sampling": self.sampling(),
                "drafts": self.speculation(),
                "max_new_tokens": self.max_new_tokens,
            }

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

    def load(self, model: str | Path | None) -> "Chat":
        """The checkpoint, on the device and in the dtype chosen."""
        return load_chat(model, self.device, self.dtype, self.threads, self.expert_cache)


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


def load_chat(
    model: str | Path | None,
    device: str | None,
    dtype: str,
    threads: int | None = None,
    expert_cache: str | None = None,
) -> "Chat":
    """Loads a checkpoint; meanwhile a terminal's standard error says which.

    Raises:
        ValueError: where there is none, or for an option that is not right.
    """
    from axk1.load import resolve_model_path

    check_threads(threads)
    folder = resolve_model_path(model)  # before the slow imports: a wrong path is reported at once
    with streams.status(f"Loading {folder}"):
        import torch
        from transformers.utils import logging

        from axk1.chat import load

        if threads is not None:
            torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        return load(folder, device=device, dtype=dtype, expert_cache=expert_cache)


def check_threads(threads: int | None) -> None:
    """Refuses a number of threads below one, or beyond any machine."""
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}; it must be at least 1.")
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"--threads is {threads}; it must be at most {MOST_THREADS}.")
