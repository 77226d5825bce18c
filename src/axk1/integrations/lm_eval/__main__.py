"""``python -m axk1.integrations.lm_eval FOLDER``: writes the task for lm-eval's ``--include_path FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from axk1.integrations.lm_eval import write_task


def main(
    folder: Annotated[Path, typer.Argument(help="where to write axk1_problems.jsonl and axk1_problems.yaml")],
    count: Annotated[int, typer.Option(min=1, help="how many problems")] = 200,
    seed: Annotated[int, typer.Option(help="which problems")] = 0,
) -> None:
    """Writes held-out problems as a task for lm-eval."""
    write_task(folder, count, seed)
    typer.echo(f"{count} problems: lm_eval ... --include_path {folder} --tasks axk1_problems")


if __name__ == "__main__":
    typer.run(main)
