"""What travels beside the weights when a checkpoint is written anew: configuration, tokenizer, templates, texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import PICKLES
from axk1.checkpoint.reading import read_json
from axk1.files import replacing, write_text

NEVER = (".safetensors", ".safetensors.index.json", "axk1-manifest.json", ".py", ".gguf", *PICKLES)
NEEDED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
)
"""What a copy whose weights are others gets: the rest (card, scores, curves) tells of the original."""
CARD = "README.md"


def copy_beside(source: Path, target: Path, changes: dict[str, Any], card: str | None = None) -> None:
    """Copies everything of ``source`` but weights, code, pickles and hidden files; each file appears whole.

    Args:
        changes: values that ``config.json`` gets in place of the source's.
        card: a model card for weights that are not the source's; what else tells of those stays behind.

    Raises:
        CheckpointError: a file that is a link to somewhere else, whose content nobody wants to see copied.
    """
    for file in _files(source):
        if card is None or any(fnmatch(file.name, pattern) for pattern in NEEDED):
            _check_link(source, file)
            _copy(file, target / file.relative_to(source))
    for name in ("config.json", "tokenizer_config.json"):
        if (target / name).is_file():
            _rewrite(target / name, changes if name == "config.json" else {})
    if card is not None:
        write_text(target / CARD, card)


def quantized_card(
    source: Path,
    formats: str,
    command: str = "axk1 quantize",
    library: str = "transformers",
    name: str | None = None,
) -> str:
    """The model card of a quantised copy: what it is of and how it was made; no score, for none was measured.

    Args:
        source: the original's folder, whose card says its licence.
        formats: of the matrices, in words.
        command, library: what wrote the copy, and what reads it.
        name: of the original; that of its folder where left out.
    """
    name, licence = name or name_of(source), _front_matter(source / CARD).get("license")
    lines = ["---", f"base_model: {json.dumps(name)}", "base_model_relation: quantized", f"library_name: {library}"]
    lines += [f"license: {json.dumps(licence)}"] if licence else []
    return "\n".join(
        [
            *lines,
            "---",
            "",
            f"# {name}, quantised",
            "",
            f"A copy of `{name}` whose matrices are stored as {formats}, written by `{command}`.",
            "Tokenizer, templates and settings are the original's. Nothing was measured with these weights: the scores",
            "on the original's card are those of the original.",
            "",
        ]
    )


def merged_card(sources: Sequence[tuple[str, float]], folder: Path) -> str:
    """The model card of a weighted sum; no score, for none was measured.

    Args:
        sources: names and factors.
        folder: of the first one, whose card says the licence.
    """
    licence = _front_matter(folder / CARD).get("license")
    lines = ["---", f"base_model: {json.dumps([name for name, _ in sources])}", "base_model_relation: merge"]
    lines += ["library_name: transformers", *([f"license: {json.dumps(licence)}"] if licence else []), "---", ""]
    lines += [f"# {' + '.join(f'{weight:g} x {name}' for name, weight in sources)}", ""]
    lines += ["A weighted sum of these models' weights, written by `axk1 merge`. Tokenizer, templates and settings are"]
    return "\n".join([*lines, "the first one's. Nothing was measured with these weights.", ""])


def name_of(source: Path) -> str:
    """The name of a checkpoint: on the hub, where it lies in the hub's cache, else that of its folder."""
    home = source.resolve()
    cache = home.parent.parent.name
    return cache.removeprefix("models--").replace("--", "/", 1) if cache.startswith("models--") else home.name


def _files(source: Path) -> Iterator[Path]:
    """Files of the folder and of those in it, hidden ones and weights left out."""
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file() and not path.name.endswith(NEVER):
            yield path


def _check_link(source: Path, file: Path) -> None:
    """A link may lead within the folder, into the hub's cache, or to a file of the same name: not from ``LICENSE.txt``
    to a private key, of which the copy would be one more, for everyone to read."""
    target, home = file.resolve(), source.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    of_snapshot = home.parent.name == "snapshots" and target.parent == (home.parent.parent / "blobs").resolve()
    if not (target.is_relative_to(home) or in_cache or of_snapshot or target.name == file.name):
        raise CheckpointError(
            f"links to {target}, which is not part of this checkpoint. Put the file itself there, or remove the link.",
            file,
        )


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as original, replacing(place) as copy:
        shutil.copyfileobj(original, copy)


def _rewrite(file: Path, changes: dict[str, Any]) -> None:
    values = read_json(file)
    if not changes and "auto_map" not in values:
        return
    values.pop("auto_map", None)  # the code that it names is not copied
    if "dtype" in changes:
        values.pop("torch_dtype", None)
    values.update(changes)
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _front_matter(card: Path) -> dict[str, str]:
    """Plain ``key: value`` lines at the head of a card."""
    if not card.is_file():
        return {}
    try:
        with card.open(encoding="utf-8") as stream:
            head = stream.read(20_000)
    except (OSError, UnicodeDecodeError):
        return {}
    _, _, rest = head.partition("---\n")
    if not head.startswith("---\n") or "\n---" not in rest:
        return {}
    pairs = (line.partition(":") for line in rest.partition("\n---")[0].splitlines() if not line.startswith((" ", "-")))
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs if value.strip()}
