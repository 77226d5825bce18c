"""`axk1 mlx`: mlx-lm's own commands, with A.X K1 among its models."""

import sys

import typer


def mlx(context: typer.Context) -> None:
    """Run a command of mlx-lm on A.X K1: generate, chat, server, convert, lora, ...; its options follow."""
    from axk1.integrations.mlx import register

    register()
    from mlx_lm import cli  # pyright: ignore[reportMissingImports]

    sys.argv = ["mlx_lm", *(context.args or ["--help"])]
    cli.main()
