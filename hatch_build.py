"""Builds the CPU kernels into a wheel, one library per instruction set of this machine's kind: AXK1_BUILD_KERNELS=1,
or those that it names: AXK1_BUILD_KERNELS=avx2,plain.

Without the variable the wheel is pure Python, and the kernels are compiled on first use.
"""

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("src/axk1/kernels")


def _instructions() -> Any:
    """``axk1.kernels.instructions``, which needs nothing but Python; the package itself needs torch."""
    spec = importlib.util.spec_from_file_location("instructions", KERNELS / "instructions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["instructions"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class CustomBuildHook(BuildHookInterface):
    """Adds ``axk1/kernels/built/axk1_NAME.so`` to a wheel, and the platform to its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles the libraries, two at a time.

        Raises:
            RuntimeError: the compiler fails, or AXK1_BUILD_KERNELS names another kind of machine's instructions.
        """
        if self.target_name != "wheel" or version == "editable" or not (wanted := os.environ.get("AXK1_BUILD_KERNELS")):
            return
        module = _instructions()
        sets = {each.name: each for each in module.of_this_machine()}
        names = list(sets) if wanted == "1" else wanted.split(",")
        if unknown := [name for name in names if name not in sets]:
            raise RuntimeError(f"AXK1_BUILD_KERNELS={wanted}: {unknown[0]!r} is none of 1, {', '.join(sets)}.")
        compiler, folder = os.environ.get("CXX", "g++"), Path(self.directory) / "kernels"
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(instructions: Any) -> None:
            out = folder / f"axk1_{instructions.name}.so"
            command = [compiler, *module.FLAGS, *instructions.flags, str(KERNELS / "cpu/library.cpp"), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{compiler} did not compile the kernels for {instructions.name}:\n{done.stderr}")
            build_data["force_include"][str(out)] = f"axk1/kernels/built/{out.name}"

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_one, [sets[name] for name in names]))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{self._platform()}"

    def _platform(self) -> str:
        from packaging.tags import sys_tags

        return next(sys_tags()).platform
