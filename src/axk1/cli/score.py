"""`axk1 score`: perplexity of a checkpoint that need not fit into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from axk1.cli.texts import RowTokens


def score(
    model: Annotated[str, typer.Argument(help="Checkpoint, quantised or not: folder, name on the hub, HTTP address.")],
    texts: Annotated[Path, typer.Argument(help="JSONL of texts or conversations, plain text, or Parquet.")],
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the texts that are taken, from the first on.")] = 32768,
    row_tokens: RowTokens = 2048,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for what is computed so far: the same command goes on after an interruption."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say how probable texts are to a model, one layer and one expert of it in memory at a time, in float32.

    Of conversations only the replies count. Memory holds the states of all texts twice: 4 bytes x hidden size x tokens.
    """
    from axk1.cli.progress import progress_of
    from axk1.cli.texts import read_rows
    from axk1.layerwise.score import score as compute

    rows = read_rows(model, texts, tokens, row_tokens)
    with progress_of("scoring", counted=True) as progress:
        found = compute(model, rows, work, progress)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))  # noqa: T201
        return
    typer.echo(f"perplexity {found.perplexity:.6g} over {found.tokens:,} tokens")
    typer.echo(f"{found.nats:.6f} nats a token; {found.right:.1%} of the tokens were the most probable")
