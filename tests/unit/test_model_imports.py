"""What importing costs and does: laziness, registration in either order, and the arrows of the design."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import axk1

SOURCE = Path(axk1.__file__).parent
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_lazy() -> None:
    """``import axk1`` loads neither torch nor transformers; touching a class does."""
    code = """
import sys, axk1
assert not {"torch", "transformers", "tokenizers", "safetensors"} & set(sys.modules), "eager"
assert axk1.__version__ and "AXK1ForCausalLM" in axk1.__all__
axk1.AXK1Config
assert "transformers" in sys.modules and "axk1.pretrained" not in sys.modules
axk1.AXK1ForCausalLM
try:
    axk1.Nothing
except AttributeError as error:
    assert "Nothing" in str(error)
else:
    raise AssertionError("an unknown name must fail")
"""
    python(code)


REGISTERED = """
fields = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=1, intermediate_size=16,
    moe_intermediate_size=8, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=1, q_lora_rank=8,
    kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, max_position_embeddings=32)
config = AutoConfig.for_model("axk1", **fields)
assert type(config) is axk1.AXK1Config, type(config)
assert type(AutoConfig.for_model("AXK1", **fields)) is axk1.AXK1Config
found = {
    auto.__name__: type(auto.from_config(config))
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification)
}
assert found == {
    "AutoModel": axk1.AXK1Model,
    "AutoModelForCausalLM": axk1.AXK1ForCausalLM,
    "AutoModelForSequenceClassification": axk1.AXK1ForSequenceClassification,
    "AutoModelForTokenClassification": axk1.AXK1ForTokenClassification,
}, found
import transformers
names = [name for name in axk1.__all__ if name.startswith("AXK1") and name != "AXK1PreTrainedModel"]
assert all(getattr(transformers, name) is getattr(axk1, name) for name in names), "what `architectures` names"
"""
AUTO = (
    "from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, "
    "AutoModelForTokenClassification)"
)


def in_order(name: str, imports: str, *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(imports, id=name, marks=marks)


@pytest.mark.parametrize(
    "imports",
    [
        in_order("ours-first", f"import axk1\n{AUTO}"),
        in_order("theirs-first", f"{AUTO}\nimport axk1"),
        in_order("package-first", f"import transformers\nimport axk1\n{AUTO}", pytest.mark.slow),
        in_order("config-first", f"import axk1\naxk1.AXK1Config\n{AUTO}", pytest.mark.slow),
        in_order("modeling-first", f"import axk1.modeling\n{AUTO}\nimport axk1", pytest.mark.slow),
        in_order("their-axk1-first", f"import transformers.models.axk1.modeling_axk1\nimport axk1\n{AUTO}"),
    ],
)
def test_registration_in_every_order(imports: str) -> None:
    python(imports + REGISTERED)


EXPORTED = {name: "pretrained" for name in axk1.__all__ if name.startswith("AXK1")} | {"AXK1Config": "config"}
"""What the package hands on counts as the room it is from."""
EXCEPTIONS = {
    ("integrations/launch/run.py", "bench"): "the environments of engines are found by bench/engines.py",
    ("chat/loading.py", "kernels"): "moves to load.py",
    ("chat/loading.py", "quantized"): "moves to load.py",
}
"""Arrows that are there and should not be, each with its reason."""
THEIRS = "integrations/mlx/models/axk1.py"
"""A file of mlx-lm's package, whose neighbours it imports: it may import nothing of ours."""
_TARGET = re.compile(r"axk1\.(\w+)(\.\w+)*")


def rooms_of(node: ast.AST) -> set[str]:
    """Names of ours in one node: what it imports, what it takes from the package, and modules named by a string."""
    names: set[str] = set()
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "axk1":
        names = {f"axk1.{node.attr}"} if node.attr in EXPORTED else set()
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        names = {node.value}
    found = {match[1] for name in names if (match := _TARGET.fullmatch(name))}
    return {EXPORTED.get(name, name) for name in found}


def our_imports(path: Path) -> set[str]:
    """Rooms of ours that a file imports anywhere, functions and types included: ``config``, ``modeling``, ``chat``."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    if path == SOURCE / THEIRS:
        nodes = [node for node in nodes if not (isinstance(node, ast.ImportFrom) and node.level == 1)]
    return {room for node in nodes for room in rooms_of(node)} - {"__version__"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def files_by_room() -> dict[str, list[Path]]:
    rooms: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        rooms.setdefault(room_of(path), []).append(path)
    return rooms


def allowed_arrows() -> dict[str, set[str]]:
    """The map of the rooms in CONTRIBUTING.md: its first column may import its last."""
    table: dict[str, set[str]] = {}
    for line in CONTRIBUTING.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`"):
            rooms, targets = (re.findall(r"`([a-z_]+)(?:/|\.py)?`", cells[index]) for index in (0, 2))
            table |= {room: set(targets) for room in rooms}
            everything = cells[2] == "every room"
            table |= {room: {"*"} for room in rooms if everything}
    return table


def arrows() -> set[tuple[str, str, str]]:
    """All of them, as (file, its room, the room that it imports)."""
    return {
        (str(path.relative_to(SOURCE)), room, target)
        for room, paths in files_by_room().items()
        for path in paths
        for target in our_imports(path) - {room}
    }


def test_every_room_is_on_the_map() -> None:
    table, rooms = allowed_arrows(), files_by_room()
    assert set(rooms) - {"__init__"} <= set(table), "add the room to the map in CONTRIBUTING.md"
    assert {target for targets in table.values() for target in targets} - {"*"} <= set(table)


def test_arrows_are_those_of_the_map() -> None:
    table = allowed_arrows() | {"__init__": {"_auto", "config", "pretrained"}}
    drawn = arrows()
    assert len(drawn) > 50 and ("plan/bounds.py", "plan", "checkpoint") in drawn
    wrong = {(file, to) for file, room, to in drawn if to not in table[room] and "*" not in table[room]}
    assert not wrong - set(EXCEPTIONS), f"not on the map in CONTRIBUTING.md: {sorted(wrong - set(EXCEPTIONS))}"


def test_arrows_point_down() -> None:
    """Following the map from any room never leads back to it."""
    table = {room: set() if "*" in targets else targets for room, targets in allowed_arrows().items()}
    order = tuple(TopologicalSorter(table).static_order())  # raises CycleError
    assert order.index("config") < order.index("modeling") < order.index("generation") < order.index("chat")


def test_every_kind_of_import_is_seen(tmp_path: Path) -> None:
    code = """
import axk1.kernels.step
from axk1 import AXK1Config, plan
from axk1.checkpoint.names import layer_index
axk1.AXK1ForCausalLM, axk1.__version__
HOME = "axk1.tasks"
def late():
    from axk1.generation import decode
if TYPE_CHECKING:
    from axk1.chat import Chat
"""
    file = tmp_path / "a.py"
    file.write_text(code)
    rooms = {"kernels", "config", "plan", "checkpoint", "pretrained", "tasks", "generation", "chat"}
    assert our_imports(file) == rooms


def test_modeling_uses_config_only_and_does_no_input_or_output() -> None:
    """Nothing of ours but ``config``; no parallelism, serialisation or files in the mathematics."""
    forbidden = ("torch.distributed", "safetensors", "accelerate", "pathlib", "os", "json", "pickle", "subprocess")
    for path in files_by_room()["modeling"]:
        assert our_imports(path) <= {"config", "modeling"}, path.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert not any(module == name or module.startswith(name + ".") for name in forbidden), path.name


def devices_named(node: ast.AST) -> Iterator[str]:
    """What one node says of processors or number formats that the mathematics is to be the same on."""
    if isinstance(node, ast.Attribute) and node.attr in (
        "cpu",
        "cuda",
        "is_cpu",
        "is_cuda",
        "bfloat16",
        "float16",
        "half",
    ):
        yield node.attr
    if isinstance(node, ast.Constant) and node.value in ("cpu", "cuda", "mps"):
        yield node.value
    if isinstance(node, ast.Compare):
        sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
        asks = any(re.search(r"\.(device|dtype)\b", side) for side in sides)
        if asks and "torch.bool" not in sides:  # masks are of two kinds: to be added, or of truth values
            yield ast.unparse(node)


def test_modeling_knows_of_no_processor() -> None:
    """No choice by device or number format, which is ``kernels.dispatch``'s. The cache says where its memory lies."""
    for path in files_by_room()["modeling"]:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found = [name for node in nodes for name in devices_named(node)]
        assert not found or path.name == "cache.py", f"{path.name}: {found}"
    seen = "x.device.type == 'cpu' and y.dtype in (torch.half,) and x.dtype == torch.bool"
    assert len([name for node in ast.walk(ast.parse(seen)) for name in devices_named(node)]) == 4


def test_no_remote_code_and_no_pickle_anywhere() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "joblib"}, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), path
