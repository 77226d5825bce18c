"""What importing costs and does: laziness, registration in either order, and the arrows of the design."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import axk1

SOURCE = Path(axk1.__file__).parent


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


def our_imports(path: Path) -> set[str]:
    """Rooms of ours that a file imports anywhere, functions included: ``config``, ``modeling``, ``chat`` ..."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("axk1.")}


EXPORTED = {"AXK1Config": "config"} | {name: "pretrained" for name in axk1.__all__ if name not in ("AXK1Config",)}
# Arrows point down. A room may import the rooms in its own set; the package's exports count as the room they are from.
MAY_IMPORT = {
    "config": set(),
    "modeling": {"config"},
    "quantized": {"config", "modeling"},
    "checkpoint": {"config", "modeling", "quantized"},
    "tokenizer": {"config"},
}
NEVER = {
    "generation": {"engine", "serve", "train", "cli", "integrations", "plan"},
    "chat": {"engine", "serve", "train", "cli", "integrations", "plan"},
    "train": {"engine", "serve", "cli", "integrations", "plan"},
    "plan": {"engine", "serve", "cli", "integrations", "train"},
    "integrations": {"engine", "serve", "cli"},
    "engine": {"serve", "cli", "train", "plan", "integrations"},
    "serve": {"cli", "train", "plan", "integrations"},
}


def files_by_room() -> dict[str, list[Path]]:
    rooms: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE)
        rooms.setdefault(relative.parts[0].removesuffix(".py"), []).append(path)
    return rooms


def test_arrows_point_down() -> None:
    rooms = files_by_room()
    assert {"config", "modeling"} <= set(rooms) and len(rooms["modeling"]) > 5
    for room, paths in rooms.items():
        for path in paths:
            used = {EXPORTED.get(name, name) for name in our_imports(path)} - {room}
            if room in MAY_IMPORT:
                assert used <= MAY_IMPORT[room], f"{path.relative_to(SOURCE)} imports {sorted(used)}"
            assert not used & NEVER.get(room, set()), f"{path.relative_to(SOURCE)} imports {sorted(used)}"


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


def test_no_remote_code_and_no_pickle_anywhere() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.Import):
                assert not {a.name for a in node.names} & {"pickle", "dill", "cloudpickle", "joblib"}, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), path
