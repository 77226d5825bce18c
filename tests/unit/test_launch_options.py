"""Every option we give an engine is one that its source declares; read, not imported, where an engine is installed."""

import ast
import os
from pathlib import Path

import pytest
from test_launch import CLUSTER, DRAFTING, H100, H200, order

from axk1.bench.engines import environment_python
from axk1.integrations.launch import sglang, vllm
from axk1.integrations.launch.order import Engine
from axk1.plan.placement import Wish


def source(engine: str) -> Path:
    """The engine's package: in the folder AXK1_<ENGINE>_SOURCE, or in the environment that `axk1 serve` would use."""
    name = engine.upper()
    python = environment_python(engine, f"AXK1_{name}_PYTHON")
    folders = [Path(os.environ.get(f"AXK1_{name}_SOURCE") or "nowhere")]
    if python is not None:
        folders += python.parent.parent.glob(f"lib/python3*/site-packages/{engine}")
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        pytest.skip(f"{engine} is not installed here")
    return found


def trees(folder: Path, *names: str) -> list[ast.AST]:
    return [ast.parse(file.read_text(encoding="utf-8")) for name in names for file in sorted(folder.glob(name))]


def declared(found: list[ast.AST]) -> set[str]:
    """Options named in full, and those that the fields of settings classes become."""
    options = set()
    for node in (node for tree in found for node in ast.walk(tree)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--"):
            options.add(node.value)
        elif isinstance(node, ast.AnnAssign) and "no_cli=True" not in ast.unparse(node.annotation):
            options.add("--" + ast.unparse(node.target).replace("_", "-"))
    return options


def emitted(make, engine: Engine) -> set[str]:
    orders = [
        order(CLUSTER, engine=engine),
        order(CLUSTER, engine=engine, drafts=1, weights=DRAFTING, api_key="k", dtype="bfloat16"),
        order(H200, "fp8", engine, Wish(data=8)),
        order(H100, "int4", engine, Wish(expert=True)),
    ]
    return {word for each in orders for word in make(each) if word.startswith("--")}


def test_vllm():
    folder = source("vllm")
    options = declared(trees(folder, "engine/arg_utils.py", "entrypoints/launchers/cli_args.py"))
    wanted = emitted(vllm.arguments, "vllm")
    assert len(wanted) > 12 and wanted - options == set()
    methods = trees(folder, "config/speculative.py")[0]
    assert "mtp" in {node.value for node in ast.walk(methods) if isinstance(node, ast.Constant)}
    assert (folder / "entrypoints/cli/main.py").is_file() and vllm.SERVE[1] == "vllm.entrypoints.cli.main"


def test_sglang():
    folder = source("sglang")
    options = declared(trees(folder, "srt/arg_groups/fields/*.py", "srt/server_args.py"))
    wanted = emitted(sglang.arguments, "sglang")
    assert len(wanted) > 15 and wanted - options == set()
    assert (folder / "cli/main.py").is_file() and sglang.SERVE[1] == "sglang.cli.main"


def test_an_invented_option_would_be_noticed():
    tree = ast.parse("class A:\n    tp_size: int = 1\n    hidden: A[int, Arg(no_cli=True)] = 1\nadd('--host')")
    assert declared([tree]) == {"--tp-size", "--host"}
