"""A `tokenizer.json` is read by compiled code, which can do worse than to raise an error: what is known of that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNREADABLE = "The tokenizer cannot read this text"


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Turns what the tokenizers library raises into a ValueError of one sentence that begins with ``what``.

    It raises bare Exceptions, and a panic of its Rust code where a regular expression of ``tokenizer.json`` takes more
    steps than its engine allows: a BaseException, which would pass through every handler of errors.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def check_merges(file: Path) -> None:
    """Refuses a ``tokenizer.json`` whose merges would be cut by the length of a prefix: where that is inside a
    character, tokenizers ends the process.

    Raises:
        ValueError: there is such a prefix, or no JSON.
    """
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}).") from error
    model = values.get("model") if isinstance(values, dict) else None
    if isinstance(model, dict) and "merges" in model and model.get("continuing_subword_prefix"):
        raise ValueError(f"{file} has a continuing_subword_prefix, which BPE is not read with here; remove the key.")
