"""The documentation: the site builds, a broken link fails it, examples run, figures and numbers agree with the code."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import typer.main
from pages import DOCS, ROOT, blocks, make_workplace

from axk1.cli.main import app

PAGES = sorted(DOCS.glob("*.md")) + sorted(ROOT.glob("README*.md"))


@pytest.fixture
def workplace(tmp_path, closing_checkpoint):
    return make_workplace(tmp_path, closing_checkpoint)


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def build(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(root / "site")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("broken", ["", "[x](nowhere.md)", "[x](index.md#nowhere)", "![x](figures/nowhere.svg)"])
def test_site_builds_and_a_broken_link_fails_it(tmp_path, broken):
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    page = tmp_path / "docs" / "nano.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{broken}\n", encoding="utf-8")
    done = build(tmp_path)
    assert (done.returncode == 0) is (not broken), done.stderr


def test_links_between_readmes_and_files_exist():
    for page in sorted(ROOT.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_python_examples_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace: dict = {}
    for block in blocks(DOCS / "python.md", "python"):
        exec(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page):
    """Every `axk1` line of every page is parsed by the command line itself, without being run."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("axk1 "):
                parse(shlex.split(line, comments=True)[1:])


def parse(arguments: list[str]) -> None:
    command, name = typer.main.get_command(app), "axk1"
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        command = command.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    if "--help" not in arguments:
        command.make_context(name, arguments)


def test_figures_are_those_of_the_code(tmp_path):
    drawn = runpy.run_path(str(DOCS / "figures" / "draw.py"))
    drawn["draw_all"](tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(p.name for p in (DOCS / "figures").glob("*.svg"))
    for figure in tmp_path.iterdir():
        assert labels(figure) == labels(DOCS / "figures" / figure.name), "run python docs/figures/draw.py"
        assert f"(figures/{figure.name})" in text("architecture.md")


def labels(figure: Path) -> list[str]:
    return [node.text or "" for node in ET.parse(figure).iter("{http://www.w3.org/2000/svg}text")]


def test_numbers_of_the_architecture_page_are_those_of_the_code():
    from axk1.checkpoint.info import describe
    from axk1.checkpoint.names import expected_tensors
    from axk1.config import AXK1Config

    k1, page = describe("k1"), text("architecture.md")
    mtp = [spec for spec in expected_tensors(AXK1Config.preset("k1", num_nextn_predict_layers=1)) if spec.part == "MTP"]
    cache = [size for row in (k1.cache_bytes_per_token, *k1.cache) for size in (row.latent, row.expanded)]
    read = [k1.bytes_per_token[dtype] for dtype in ("bf16", "fp8", "int4")]
    whole = [k1.bytes[dtype] for dtype in ("bf16", "fp8", "int4")]
    totals = [k1.total, k1.active, k1.active_without_embedding, describe("nano").total]
    modules = [sum(spec.size for spec in mtp if spec.dtype == "BF16")]
    for number in [*k1.parts.values(), *cache, *read, *whole, *totals, *modules]:
        assert f"{number:,}" in page, number


def test_the_nano_table_is_the_preset():
    from axk1.config import AXK1Config

    section = text("architecture.md").split("The nano beside it")[1]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    table = {name: (k1, nano) for name, k1, nano in rows}
    for column, preset in enumerate(("k1", "nano")):
        c = AXK1Config.preset(preset)
        dense = c.first_k_dense_replace or 0
        expected = {
            "hidden size": f"{c.hidden_size:,}",
            "layers (dense + MoE)": f"{dense} + {c.num_hidden_layers - dense}",
            "heads": f"{c.num_attention_heads}",
            "query latent": f"{c.q_lora_rank:,}",
            "key/value latent + rotary key": f"{c.kv_lora_rank} + {c.qk_rope_head_dim}",
            "head: nope, rope, value": f"{c.qk_nope_head_dim}, {c.qk_rope_head_dim}, {c.v_head_dim}",
            "dense / expert width": f"{c.intermediate_size:,} / {c.moe_intermediate_size:,}",
            "experts, chosen": f"{c.n_routed_experts}, {c.num_experts_per_tok}",
            "groups, kept": f"{c.n_group}, {c.topk_group}",
            "MTP modules": f"{c.num_nextn_predict_layers}",
            "vocabulary": f"{c.vocab_size:,}",
            "context": f"{c.max_position_embeddings:,}",
        }
        for name, value in expected.items():
            assert table[name][column] == value, (preset, name)


def test_errors_of_the_troubleshooting_page_are_in_the_code():
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    ours = text("troubleshooting.md").split("## Checkpoints")[1]
    titles = "\n".join(re.findall(r"^### (.*)$", ours, re.MULTILINE))
    messages = re.findall(r"`([^`]+)`", titles)
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []
