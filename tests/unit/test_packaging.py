"""What is installed: the demo needs less than the tests do, and the wheel holds what the commands name."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from axk1.cli.train import shipped
from axk1.kernels.instructions import of_this_machine, usable

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def targets() -> dict[str, str]:
    """Each target and what it needs, and the commands below it."""
    rules = re.findall(r"^([^\s#:=]+):([^\n]*)\n((?:\t[^\n]*\n)*)", MAKEFILE, re.MULTILINE)
    return {name: needs + "\n" + commands for name, needs, commands in rules}


def test_the_demo_needs_no_tools_of_developers():
    rules = targets()
    assert ".venv/.ready" in rules["demo"] and ".dev" not in rules["demo"]
    assert "[dev]" not in rules[".venv/.ready"] and "'.[train]'" in rules[".venv/.ready"]
    assert "'.[dev]'" in rules[".venv/.dev"]
    for target in ("lint", "docs", "setup", "readme-demo", "ray"):
        assert ".venv/.dev" in rules[target], target
    names = {re.split(r"[\[<>=;]", need)[0] for need in PROJECT["project"]["dependencies"]}
    names |= {re.split(r"[\[<>=;]", need)[0] for need in PROJECT["project"]["optional-dependencies"]["train"]}
    assert not names & {"pyright", "mkdocs", "pytest", "ruff", "hypothesis", "matplotlib"}


def test_every_dependency_is_bounded_and_pinned():
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    for need in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+,<[\d.]+", need), need
        assert re.split(r"[\[<>=]", need)[0].lower().replace("_", "-") in pinned, need


def test_every_pinned_package_but_torch_has_its_hashes():
    """Of every file that its release has, so that other platforms find theirs."""
    lines = (ROOT / "hashes.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    hashed = {line.split()[0].lower().replace("_", "-"): line.count("--hash=sha256:") for line in lines if "==" in line}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").split()
    assert set(hashed) == {pin for pin in pins if "==" in pin and not pin.startswith("torch==")}, "run make hashes"
    assert all(hashed.values()) and hashed["numpy==2.4.6"] > 20


def test_the_wheel_holds_models_and_recipes():
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"models/nano": "axk1/models/nano", "recipes": "axk1/recipes"}
    assert all((ROOT / source).is_dir() for source in included)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_images_hold_what_the_package_is_built_from_and_needs(engine):
    text = (ROOT / "deploy" / f"Dockerfile.{engine}").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied >= {"pyproject.toml", "hatch_build.py", "src", project["readme"], *project["license-files"]}
    assert copied >= set(wheel["force-include"]) and all((ROOT / name).exists() for name in copied)
    brought = {"torch", "transformers", "safetensors", "huggingface-hub", "tokenizers", "jinja2"}  # by the engines
    needed = [need for need in project["dependencies"] if re.split(r"[<>=]", need)[0] not in brought]
    assert all(f"'{need}'" in text for need in needed), needed
    assert re.search(rf"^ARG ENGINE=\S*{engine}\S*:v[\d.]+\nFROM \$\{{ENGINE\}}$", text, re.MULTILINE)


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped(Path("nano"), Path("recipes/nano.toml")).samefile(ROOT / "recipes" / "nano.toml")
    assert shipped(Path("models/nano"), Path("models/nano")).samefile(ROOT / "models" / "nano")
    (tmp_path / "own.toml").touch()
    assert shipped(Path("own.toml"), Path("recipes/own.toml.toml")) == Path("own.toml")
    assert shipped(Path("none"), Path("recipes/none.toml")) == Path("none")


@pytest.mark.parametrize("name", ["none", "none.toml"])
def test_a_recipe_that_does_not_exist(name):
    from axk1.train.stages import Recipe

    with pytest.raises(ValueError, match="does not exist"):
        Recipe.load(shipped(Path(name), Path(name)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_a_wheel_can_bring_the_kernels_built(tmp_path):
    """For machines without a compiler: a library for each instruction set that is named, which loads and says its
    name; here the quickest two to compile. What this machine takes, all other tests compile."""
    names = [each.name for each in of_this_machine()][-2:]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"AXK1_BUILD_KERNELS": ",".join(names)})
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-any.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    page = ROOT / "src/axk1/serve/page"
    files = [path.relative_to(page) for path in page.rglob("*") if path.is_file()]
    assert len(files) > 40 and all((tmp_path / "axk1/serve/page" / name).is_file() for name in files)
    built = tmp_path / "axk1/kernels/built"
    assert sorted(path.name for path in built.iterdir()) == sorted(f"axk1_{name}.so" for name in names)
    for name in names:
        library = ctypes.CDLL(str(built / f"axk1_{name}.so"))
        library.axk1_instructions.restype = ctypes.c_char_p
        if name in [each.name for each in usable()]:
            assert library.axk1_instructions().decode() == name
