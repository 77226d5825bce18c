"""Writes ``docs/licences.md`` from what is installed: ``python docs/licences.py`` in a fresh ``.venv``."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from axk1.files import write_text

PAGE = Path(__file__).with_suffix(".md")
VENDORED = Path(__file__).parents[1] / "src/axk1/serve/page/vendor/manifest.json"
_OF_A_GPU = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")
"""What some builds of PyTorch need and others do not."""
_INTRO = """# Licences

axk1 is Apache-2.0. These are the packages that `pip install` brings with it and what they say of their licence
themselves; `python docs/licences.py` writes this page from an environment, and a test compares them. Versions are those
of `constraints.txt`.

Not listed: builds of PyTorch for GPUs bring NVIDIA's or AMD's libraries under those companies' own terms, the extras
(`train`, `data`, `serve`, `vllm`, `sglang`, `dev`) have packages of their own, and the corpus that the nano's tokenizer
was trained on has [its own table](tokenizer.md#the-corpus).

| package | needed by | licence |
|---|---|---|
"""
_PAGE_INTRO = """
The page of `axk1 serve` comes with libraries that are part of this repository, unmodified, with their licences' texts
and their hashes beside them (`src/axk1/serve/page/vendor`):

| package | version | licence |
|---|---|---|
"""


def licences_page() -> str:
    """The page for the packages that axk1 needs, directly or through others, as far as they are installed."""
    found, needed_by = _closure("axk1")
    rows = (f"| {name} | {', '.join(sorted(needed_by[name]))} | {licence(found[name])} |" for name in sorted(found))
    return _INTRO + "\n".join(rows) + "\n" + _PAGE_INTRO + "\n".join(_vendored()) + "\n"


def _vendored() -> list[str]:
    """A row for each library of the page."""
    packages = json.loads(VENDORED.read_text(encoding="utf-8"))
    return [f"| {name} | {package['version']} | {package['licence']} |" for name, package in sorted(packages.items())]


def _closure(root: str) -> tuple[dict[str, Distribution], dict[str, set[str]]]:
    """All packages below ``root``, and which of them need each."""
    found: dict[str, Distribution] = {}
    needed_by: dict[str, set[str]] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        for need in map(Requirement, (distribution(name).requires or ())):
            if _OF_A_GPU.match(need.name) or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            other = _normal(need.name)
            needed_by.setdefault(other, set()).add(name)
            if other not in found:
                try:
                    found[other] = distribution(other)
                except PackageNotFoundError:
                    raise ValueError(f"{other} is not installed, which {name} needs.") from None
                waiting.append(other)
    return found, needed_by


def licence(package: Distribution) -> str:
    """What a package says of its licence: its expression, else its classifiers, else the one line that it has."""
    expression = package.metadata.get("License-Expression")
    if expression:
        return expression
    classes = [text for text in package.metadata.get_all("Classifier") or () if text.startswith("License ::")]
    if classes:
        return ", ".join(text.split(" :: ")[-1] for text in classes)
    line = (package.metadata.get("License") or "").strip().split("\n")[0]
    if not line:
        raise ValueError(f"{package.name} names no licence; look it up.")
    return line


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    write_text(PAGE, licences_page())
