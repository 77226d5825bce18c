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
from pages import DOCS, REPOSITORY, ROOT, blocks, examples, make_workplace

from axk1.cli.main import app

PAGES = sorted(DOCS.glob("*.md")) + sorted(ROOT.glob("README*.md"))
LINES = [
    *(page for folder in (ROOT, DOCS, DOCS / "upstream", ROOT / "benchmarks") for page in sorted(folder.glob("*.md"))),
    ROOT / "models" / "nano" / "README.md",
]
MESSAGES = "What is 17 + 25?\n/think\nAnd 3 more?\n"
"""Standard input of the commands, for `axk1 chat`."""


ELSEWHERE = ("modes.md", "python.md", "README.md", "README.ko.md")
"""Pages with tests of their own: test_docs_modes.py, the one below, test_readme.py."""


def name(page: Path) -> str:
    return page.name


def is_run_here(page: Path) -> bool:
    return page.name not in ELSEWHERE and bool(blocks(page, "bash") or blocks(page, "python"))


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


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if is_run_here(page)], ids=name)
def test_examples_run_from_an_empty_folder(page, workplace, monkeypatch):
    """Every command and snippet of the page, in order, in a folder that holds the nano and the READMEs alone."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("AXK1_BENCH_CACHE", str(workplace / "cache"))
    namespace: dict = {}
    for example in examples(page):
        if example.why_not_run or example.language not in ("bash", "python"):
            continue
        if example.language == "python":
            exec(example.code, namespace)
            continue
        script = "source .venv/bin/activate\n" + example.code
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], input=MESSAGES, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{example.code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr


def test_what_is_not_run_says_why():
    pages = [*PAGES, *sorted((DOCS / "upstream").glob("*.md"))]
    reasons = {page.name: [e.why_not_run for e in examples(page) if e.why_not_run] for page in pages}
    assert all(len(reason) > 15 for found in reasons.values() for reason in found)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- not run") == len(reasons[page.name]), f"{page.name}: a comment without its block"
        assert {e.language for e in examples(page)} <= {"bash", "python", "text", "toml", "json", "yaml"}, page.name
    for page in (DOCS / "upstream").glob("*.md"):  # they show faults of engines, in these engines' environments
        assert all(e.why_not_run for e in examples(page) if e.language in ("bash", "python")), page.name


@pytest.mark.parametrize("page", LINES, ids=name)
def test_lines_end_by_120_columns(page):
    """Tables, link definitions, code that is output, and titles of reports excepted: they cannot be wrapped."""
    fence, long = "", []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        free = line.lstrip().startswith(("|", "![")) or re.fullmatch(r"\[[\w-]+\]: \S+|`[^`]+`", line)
        if len(line) > 120 and not free and fence != "```text":
            long.append(line)
    assert not long, "run python docs/wrap.py PAGE"


def test_wrapping_changes_no_more_than_line_breaks():
    wrap = runpy.run_path(str(DOCS / "wrap.py"))["wrap"]
    words = ("several words that go on " * 8).strip()
    page = f"# {words}\n\n{words} `code of {words}`.\n* item {words}\n  {words}\n| {words} |\n```text\n{words}\n```\n"
    wrapped = wrap(page)
    assert wrapped.split() == page.split() and wrap(wrapped) == wrapped
    lines = wrapped.split("\n")
    assert lines[0] == page.split("\n")[0] and f"| {words} |" in lines and words in lines
    assert "  several words" in wrapped.split("* item")[1]  # an item's lines stand below its text
    assert f"`code of {words}`." in lines  # code is not broken


def test_tables_show_their_pipes(tmp_path):
    """GitHub wants them escaped in a table's code, where the site would show the backslash."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    assert build(tmp_path).returncode == 0
    site = tmp_path / "site"
    pages = {
        page: (site / page / "index.html").read_text(encoding="utf-8") for page in ("modes", "tokenizer", "python")
    }
    assert "<code>&lt;|im_start|&gt;assistant\\n&lt;think&gt;</code>" in pages["modes"]
    assert "\\|" not in pages["tokenizer"] and "<code>&lt;|im_start|&gt;</code>" in pages["tokenizer"]
    assert pages["tokenizer"].count('<div class="wide"><table>') == pages["tokenizer"].count("<table>") > 3
    assert '<span class="kn">import</span>' in pages["python"]  # coloured when built, by nobody else's server
    assert ".codehilite .kn" in (site / "highlight.css").read_text()
    assert f'href="{REPOSITORY}"' in pages["python"]
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?://', pages["python"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page):
    """Every `axk1` line of every page is parsed by the command line itself, also of blocks that are not run."""
    for block in (example.code for example in examples(page) if example.language == "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("axk1 "):
                parse(shlex.split(line, comments=True)[1:])


def parse(arguments: list[str]) -> None:
    command, name = typer.main.get_command(app), "axk1"
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        if arguments[0] not in command.commands:  # pyright: ignore[reportAttributeAccessIssue]
            arguments = [getattr(command, "default", arguments[0]), *arguments]  # `axk1 train FILE`
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
    from axk1.checkpoint.names import expected_tensors
    from axk1.config import AXK1Config
    from axk1.plan.describe import describe

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
            "groups, chosen": f"{c.n_group}, {c.topk_group}",
            "MTP modules": f"{c.num_nextn_predict_layers}",
            "vocabulary": f"{c.vocab_size:,}",
            "context": f"{c.max_position_embeddings:,}",
        }
        for name, value in expected.items():
            assert table[name][column] == value, (preset, name)


def test_licences_are_those_of_the_packages():
    """In the environment of `make test`; with another transformers, others may be needed."""
    page = runpy.run_path(str(DOCS / "licences.py"))["licences_page"]()
    assert page == text("licences.md"), "run python docs/licences.py"


def test_errors_of_the_troubleshooting_page_are_in_the_code():
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over several lines
    ours = text("troubleshooting.md").split("## Checkpoints")[1]
    titles = "\n".join(re.findall(r"^### (.*)$", ours, re.MULTILINE))
    messages = re.findall(r"`([^`]+)`", titles)
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []
