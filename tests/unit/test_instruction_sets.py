"""Which instruction set the kernels take; that all that this processor has compute the same, under sanitizers too."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from axk1.kernels import instructions, native
from axk1.kernels.build import SOURCES
from axk1.kernels.dispatch import describe

UNIT = Path(__file__).parent
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
ZEN4 = instructions.AVX512 | set(instructions.NARROW)


@pytest.mark.parametrize(
    ("machine", "has", "expected"),
    [
        ("x86_64", set(), ["plain"]),
        ("x86_64", {"avx2"}, ["plain"]),
        ("x86_64", instructions.AVX2, ["avx2", "plain"]),
        ("x86_64", instructions.AVX512, ["avx512", "avx2", "plain"]),
        ("AMD64", ZEN4, ["avx512_bf16", "avx512", "avx2", "plain"]),
        ("x86_64", ZEN4 | {"amx_tile", "amx_bf16"}, ["amx", "avx512_bf16", "avx512", "avx2", "plain"]),
        ("aarch64", {"asimd", "bf16"}, ["neon", "plain"]),
        ("arm64", set(), ["neon", "plain"]),
        ("riscv64", set(), ["plain"]),
    ],
)
def test_what_runs_where(monkeypatch, machine, has, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(instructions, "features", lambda: frozenset(has))
    monkeypatch.setattr(instructions, "permits_tiles", lambda: True)
    assert [each.name for each in instructions.usable()] == expected
    monkeypatch.setenv("AXK1_KERNELS", "1")
    chosen = instructions.chosen()
    assert chosen is not None and chosen.name == expected[0]
    monkeypatch.setenv("AXK1_KERNELS", "0")
    assert instructions.chosen() is None
    monkeypatch.setenv("AXK1_KERNELS", expected[-1])
    chosen = instructions.chosen()
    assert chosen is not None and chosen.name == expected[-1]
    monkeypatch.setenv("AXK1_KERNELS", "avx1024")
    with pytest.raises(ValueError, match=f"AXK1_KERNELS=avx1024: this processor has {', '.join(expected)};"):
        instructions.chosen()


@compiler
def test_the_path_is_named_with_its_reason(monkeypatch):
    assert native.instructions() == (instructions.chosen() or instructions.usable()[0]).name
    described = describe()
    assert str(native.instructions()) in described["replies"] and "instruction set" in described
    monkeypatch.setattr(native, "instructions", lambda: None)
    monkeypatch.setenv("AXK1_KERNELS", "0")
    assert describe() == {"all": "PyTorch's operators (AXK1_KERNELS=0)"}


def run(tests: list[str], **environment: str) -> None:
    """Selected tests in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=UNIT.parent.parent, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "100%" in done.stdout


EQUAL = [
    "test_kernels.py::test_a_step_equals_the_plain_layers",
    "test_kernels.py::test_a_row_has_the_same_bits_alone_and_beside_others",
    "test_kernels.py::test_prompts_with_quantised_weights",
    "test_kernels.py::test_linear_in_every_format",
    "test_kernels_batches.py::test_steps_are_those_of_the_plain_modules",
    "test_kernels_batches.py::test_bits_depend_on_the_sequence_alone",
    "test_lossless.py::test_a_step_has_the_same_bits",
]


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [each.name for each in instructions.usable()[1:]])
def test_every_set_that_this_processor_has(name):
    """The best one is what all other tests run."""
    run([str(UNIT / test) for test in EQUAL], AXK1_KERNELS=name)


def sanitizer() -> str | None:
    """The libraries that have to be loaded first: AddressSanitizer's, and the one whose exceptions it watches; None
    where there are none."""
    if shutil.which("g++") is None or platform.system() != "Linux":
        return None
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    paths = [Path(name) for name in found]
    return " ".join(str(path.resolve()) for path in paths) if all(path.is_absolute() for path in paths) else None


@pytest.mark.slow
@pytest.mark.skipif(sanitizer() is None, reason="no AddressSanitizer here")
def test_nothing_is_read_or_written_elsewhere():
    """Hostile shapes, and each kind of step, under AddressSanitizer and UBSan."""
    tests = ["test_kernels_borders.py", "test_kernels_batches.py::test_steps_are_those_of_the_plain_modules"]
    tests += ["test_kernels_batches.py::test_a_step_with_drafts_is_its_parts"]
    run(
        [str(UNIT / test) for test in tests],
        AXK1_KERNELS_SANITIZE="1",
        LD_PRELOAD=str(sanitizer()),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=0",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )


def test_the_core_needs_no_headers_of_pytorch():
    for path in SOURCES.rglob("*.[hc]*"):
        text = path.read_text()
        assert "torch" not in [line.split("/")[0].split("<")[-1] for line in text.splitlines() if "#include" in line]
        assert "<ATen" not in text and "omp.h" not in text


def steps_of(compilers: list[str], runner: list[str], out: Path) -> list[float]:
    """What ``tests/cross/steps.cpp`` prints, compiled and run so."""
    flags = ["-O2", "-std=c++20", "-pthread", "-static", "-ffp-contract=fast", "-Wno-psabi", f"-I{SOURCES}"]
    sources = [str(SOURCES / "library.cpp"), str(UNIT.parent / "cross" / "steps.cpp")]
    subprocess.run([*compilers, *flags, *sources, "-o", str(out)], check=True)
    done = subprocess.run([*runner, str(out)], check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.splitlines() if not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64"))),
    reason="no cross compiler and emulator: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_neon_computes_the_same_under_emulation(tmp_path):
    """Prompts and replies, every format; sums are made in another order."""
    here = steps_of(["g++", "-march=x86-64"], [], tmp_path / "plain")
    there = steps_of(["aarch64-linux-gnu-g++"], ["qemu-aarch64"], tmp_path / "neon")
    assert len(here) == len(there) > 10_000
    differences = [abs(one - other) for one, other in zip(here, there, strict=True)]
    assert max(differences) < 2e-3 and sum(differences) / len(differences) < 2e-5
