"""The examples of docs/training.md, in their order; those of libraries that are not installed, and of several
processes, are left out."""

import importlib.util
import re

import pytest
from pages import DOCS, blocks, make_workplace

OPTIONAL = ("trl", "lm_eval")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_examples_run(tmp_path, closing_checkpoint, monkeypatch):
    monkeypatch.chdir(make_workplace(tmp_path, closing_checkpoint))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace: dict = {}
    ran = 0
    for block in blocks(DOCS / "training.md", "python"):
        needed = re.findall(r"^from (\w+)", block, re.MULTILINE)
        if "under torchrun" not in block and all(importlib.util.find_spec(name) for name in needed if name in OPTIONAL):
            exec(block, namespace)
            ran += 1
    assert ran >= 3
