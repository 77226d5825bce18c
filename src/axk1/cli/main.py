"""The command line `axk1`: its commands, and what a user sees when one fails.

The files of the commands import torch and transformers inside their functions, so that `axk1 --help` is fast.
"""

import errno
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import axk1
from axk1.allocator import keep_freed_memory
from axk1.cli import (
    bench,
    chat,
    convert,
    corpus,
    data,
    demo,
    evaluate,
    export,
    generate,
    info,
    merge,
    mlx,
    plan,
    quantize,
    score,
    serve,
    streams,
    tokenizer,
    train,
    verify,
)
from axk1.terminal import error_line


class Group(TyperGroup):
    """Turns what a user can cause into one line on standard error; `--debug` or AXK1_DEBUG=1 shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command: exit code 2 for an error with a clear message, 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `axk1 ... | head`
            raise
        except (ValueError, OSError) as error:
            if _debugging():
                raise
            _show_error(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(demo.demo, chat.chat, generate.generate, info.info, plan.plan),
    *(verify.verify, convert.convert, quantize.quantize, merge.merge),
)
for function in _COMMANDS:
    app.command()(function)
app.command("serve", context_settings={"ignore_unknown_options": False, "allow_extra_args": True})(serve.serve)
app.command("mlx", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)(
    mlx.mlx
)
app.add_typer(train.app, name="train")
app.command("bench")(bench.bench)
app.command("eval")(evaluate.evaluate)
app.command("score")(score.score)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(corpus.app, name="corpus")
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")


def _debugging() -> bool:
    return os.environ.get("AXK1_DEBUG", "0") not in ("", "0")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"axk1 {axk1.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and libraries' notices (also AXK1_DEBUG=1).")
    ] = False,
) -> None:
    """Run, check, convert and train models of the A.X K1 architecture."""
    if debug:
        os.environ["AXK1_DEBUG"] = "1"
    if not _debugging():
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _show_error(error: BaseException) -> None:
    colour = typer.colors.RED if streams.coloured(sys.stderr) else None
    typer.secho(error_line(error), fg=colour, err=True)


def main() -> None:
    """The entry point of the `axk1` command."""
    streams.prepare()
    keep_freed_memory()
    try:
        code: Any = app() or 0
    except SystemExit as ended:
        code = ended.code
    except OSError as error:  # of standard output, outside of any command: --help on a full disk
        code = _output_failed(error)
    try:
        sys.stdout.flush()  # here, where a full disk can still be named
    except OSError as error:
        code = code or _output_failed(error)
        streams.give_up_output()
    sys.exit(code)


def _output_failed(error: OSError) -> int:
    if error.errno == errno.EPIPE:
        return 1
    _show_error(error)
    return 2
