"""What this machine is, in the words of Linux and of macOS."""

import platform

import pytest

from axk1.plan.machine import describe, instruction_set, parse_cpuinfo, parse_sysctl

ZEN4 = """processor\t: 0
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx f16c avx2 avx512f avx512_vnni avx512_bf16
bugs\t\t: x

processor\t: 1
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx f16c avx2 avx512f avx512_vnni avx512_bf16
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""
M2 = """machdep.cpu.brand_string: Apple M2
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.memsize: 17179869184
"""
INTEL_MAC = """machdep.cpu.brand_string: Intel(R) Core(TM) i7-8750H
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
hw.optional.f16c: 1
"""


@pytest.mark.parametrize(
    "features,name",
    [
        ("avx2 avx512f avx512_bf16 amx_bf16", "AMX"),
        ("avx2 avx512f avx512_bf16", "AVX-512+bf16"),
        ("avx2 avx512f avx512_vnni", "AVX-512"),
        ("sse2 avx avx2", "AVX2"),
        ("asimd asimddp", "NEON"),
        ("sse2 avx", "plain"),
    ],
)
def test_the_best_instruction_set(features, name):
    assert instruction_set(features.split()) == name


def test_processors_of_linux():
    name, features = parse_cpuinfo(ZEN4)
    assert name == "AMD EPYC 9R14" and instruction_set(features) == "AVX-512+bf16"
    name, features = parse_cpuinfo(GRAVITON)
    assert name == platform.machine() and {"asimddp", "i8mm", "bf16"} <= features
    assert instruction_set(features) == "NEON"


def test_processors_of_macos():
    assert parse_sysctl(M2) == ("Apple M2", {"asimd", "asimddp", "bf16", "i8mm"})
    name, features = parse_sysctl(INTEL_MAC)
    assert name.startswith("Intel") and instruction_set(features) == "AVX2"


def test_this_machine(monkeypatch):
    monkeypatch.delenv("AXK1_KERNELS", raising=False)
    found = describe()
    assert found["instruction_set"] == instruction_set(found["features"]) and found["cores"] >= 1
    assert found["processor"] and found["memory_gib"] > 0


def test_results_of_a_set_that_was_asked_for_are_filed_apart(monkeypatch):
    monkeypatch.setenv("AXK1_KERNELS", "avx2")
    assert describe()["instruction_set"] == "AVX2 (asked for)"
    monkeypatch.setenv("AXK1_KERNELS", "0")
    assert "asked" not in describe()["instruction_set"]
