"""`axk1 tokenizer`: train a vocabulary, compare vocabularies by bytes per token, find the tokens worth drafting."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from axk1.tokenizer.report import Compression

app = typer.Typer(no_args_is_help=True, help="Train and measure tokenizers.")


def _parse_weights(given: list[str]) -> dict[str, float]:
    """`["ko=2", "code=0.5"]` as numbers by label."""
    weights: dict[str, float] = {}
    for text in given:
        label, _, number = text.partition("=")
        try:
            weights[label] = float(number)
        except ValueError as error:
            raise ValueError(f"--weight: '{text}' must be LABEL=NUMBER, for example ko=2.") from error
    return weights


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    inputs: Annotated[list[Path], typer.Argument(help="Text files, .jsonl files ('text' of each row), or folders.")],
    vocab_size: Annotated[int, typer.Option(help="Entries in all, special slots included.")] = 163_840,
    special_slots: Annotated[int, typer.Option(help="Named and reserved tokens at the end.")] = 149,
    digits: Annotated[int, typer.Option(help="Digits a number token may hold; 1 = every digit alone.")] = 3,
    weight: Annotated[list[str] | None, typer.Option(help="LABEL=NUMBER; a label is a file or folder name.")] = None,
    max_token_bytes: Annotated[int | None, typer.Option(help="Longest ordinary token, in bytes.")] = None,
    model_max_length: Annotated[int, typer.Option(help="Context length to declare.")] = 131_072,
    force: Annotated[bool, typer.Option("--force", help="Write over a tokenizer that is there already.")] = False,
) -> None:
    """Train a byte-level BPE tokenizer; the same files and options give the same vocabulary."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    from axk1.tokenizer.documents import find_files, weighted_documents
    from axk1.tokenizer.train import save_tokenizer, train_tokenizer

    _check_free(out, force)
    files = find_files(inputs)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=sum(file.path.stat().st_size for file in files))

        def documents() -> Iterator[str]:
            yield from weighted_documents(files, _parse_weights(weight or []), lambda size: bar.advance(task, size))
            bar.reset(task, total=None, description="merging")  # the library reports no fraction of this part

        tokenizer = train_tokenizer(
            documents(),
            vocab_size=vocab_size,
            special_slots=special_slots,
            digits=digits,
            max_token_bytes=max_token_bytes,
        )
        bar.update(task, total=1, completed=1)
    save_tokenizer(tokenizer, out, model_max_length=model_max_length)
    typer.echo(f"{out}: {tokenizer.get_vocab_size()} entries, the last {special_slots} special or reserved")


def _check_free(out: Path, force: bool) -> None:
    """Refuses, before the work, a folder that holds a tokenizer: a model's would fit its weights no more."""
    from axk1.tokenizer.train import FILES

    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder; name another.")
    if held := [name for name in FILES if (out / name).exists() and not force]:
        raise ValueError(f"{out} holds {held[0]} already; choose another folder, or write over it with --force.")


@app.command()
def report(
    tokenizers: Annotated[list[Path], typer.Argument(help="Tokenizer folders, or tokenizer.json files.")],
    corpus: Annotated[list[Path], typer.Option(help="Text files, .jsonl files or folders to measure on.")],
    max_bytes: Annotated[int, typer.Option(help="Bytes of text a label.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Bytes of text per token, by language and for code; more is better."""
    from rich.console import Console
    from rich.progress import Progress

    from axk1.tokenizer.documents import find_files
    from axk1.tokenizer.report import load_tokenizer, measure, sample_texts

    loaded = {str(path): load_tokenizer(path) for path in tokenizers}
    texts = sample_texts(find_files(corpus), max_bytes)
    with Progress(transient=True, console=Console(stderr=True), disable=as_json) as bar:
        task = bar.add_task("measuring", total=len(loaded) * len(texts))
        table = measure(loaded, texts, lambda: bar.advance(task))
    if as_json:
        rows = {label: {name: _as_row(cell) for name, cell in cells.items()} for label, cells in table.items()}
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print_table(list(loaded), table)


@app.command()
def draft_tokens(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder; its generation_config.json is written.")],
    corpus: Annotated[list[Path], typer.Argument(help="Text like the model writes: files, .jsonl files or folders.")],
    coverage: Annotated[float, typer.Option(help="Share of the text that the tokens make up.")] = 0.995,
    max_bytes: Annotated[int, typer.Option(help="Bytes of text a label.")] = 10_000_000,
) -> None:
    """Let the MTP module draft frequent tokens only: a shorter head, the same replies."""
    from rich.console import Console
    from rich.progress import Progress

    from axk1.tokenizer.documents import find_files
    from axk1.tokenizer.frequency import frequent_tokens, save_draft_tokens
    from axk1.tokenizer.report import load_tokenizer, sample_texts

    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"{checkpoint} is not a checkpoint: it has no config.json.")
    tokenizer = load_tokenizer(checkpoint)
    texts = [text for some in sample_texts(find_files(corpus), max_bytes).values() for text in some]
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        ids, share = frequent_tokens(tokenizer, bar.track(texts, description="counting"), coverage)
    save_draft_tokens(checkpoint, ids)
    of_all = f"{len(ids):,} of {tokenizer.get_vocab_size():,} tokens"
    typer.echo(f"{checkpoint}: drafts {of_all}; the frequent ones are {share:.2%} of the text")


def _as_row(cell: "Compression") -> dict[str, float]:
    return {"bytes": cell.bytes, "tokens": cell.tokens, "bytes_per_token": round(cell.bytes_per_token, 4)}


def _print_table(names: list[str], table: "dict[str, dict[str, Compression]]") -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table("text", "bytes", *names, title="bytes per token")
    for label, cells in table.items():
        size = next(iter(cells.values())).bytes
        grid.add_row(label, f"{size:,}", *(f"{cells[name].bytes_per_token:.3f}" for name in names))
    Console().print(grid)
