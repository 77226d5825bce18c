"""Experts read from files as they are asked for: the bits of a model that has all of them in memory."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import replies

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.experts.store import ExpertStore, store_of
from axk1.generation.batch import Assembler
from axk1.generation.pages import Pool
from axk1.generation.sampling import GREEDY
from axk1.kernels.dispatch import executor
from axk1.load import load_model, parse_size
from axk1.modeling.moe import AXK1Router

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
FORMATS = ("bfloat16", "float32", "per_expert", "int8", "int4")


def make_checkpoint(folder: Path, dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Path:
    """A random model with 16 experts in two layers, four to a token, and one MTP module."""
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 3, "initializer_range": 0.1, "num_nextn_predict_layers": 1, **fields}
    model: Any = AXK1ForCausalLM(AXK1Config.preset("nano", **fields)).eval()
    for router in (module for module in model.modules() if isinstance(module, AXK1Router)):
        router.e_score_correction_bias.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    found = {"bfloat16": make_checkpoint(root / "bfloat16")}
    found["float32"] = make_checkpoint(root / "float32", torch.float32)
    convert_checkpoint(found["bfloat16"], root / "per_expert", "per_expert")
    quantize_checkpoint(found["bfloat16"], root / "int8", "int8", max_shard_size="300KB")
    quantize_checkpoint(found["bfloat16"], root / "int4", "int4", 32)
    return found | {name: root / name for name in FORMATS[2:]}


def streamed(folder: Path, experts: int, **how: Any) -> tuple[Any, ExpertStore]:
    """A model with a cache of so many experts."""
    size = slot_bytes(folder) * experts
    model = load_model(folder, device="cpu", expert_cache=size, **how).eval()
    store = store_of(model)
    assert store is not None and store.slots == experts
    return model, store


def slot_bytes(folder: Path) -> int:
    store = store_of(load_model(folder, device="cpu", expert_cache="64MiB"))
    assert store is not None
    return store.layout.slot_bytes


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(2, 6000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def mixed_steps(model: Any) -> list[torch.Tensor]:
    """Logits of steps in which prompts are read beside replies of several tokens: all that a batch can be."""
    pool, assembler = Pool(model.config, model.dtype, torch.device("cpu")), Assembler(torch.device("cpu"))
    runs, made = executor(model, model.dtype), []
    assert runs is not None
    tables, cached = [pool.open() for _ in range(4)], [0, 0, 0, 0]
    for new, prompts in (((70, 5, 130, 1), 4), ((40, 1, 3, 2), 1), ((1, 1, 1, 1), 0), ((1, 40, 1, 60), 0)):
        for table, more, before in zip(tables, new, cached, strict=True):
            pool.grow(table, before + more + 8)
        given = [ids(more, 10 * k + before) for k, (more, before) in enumerate(zip(new, cached, strict=True))]
        made.append(runs.step(assembler.batch(tables, given, cached, list(new), prompts=prompts)).logits)
        cached = [before + more for before, more in zip(cached, new, strict=True)]
    return made


@pytest.mark.parametrize("name", FORMATS)
def test_bits_are_those_of_all_experts_in_memory(checkpoints: dict[str, Path], name: str) -> None:
    """Prompts, replies and both together, with caches that hold an expert more than a token needs, half, and all."""
    resident = load_model(checkpoints[name], device="cpu").eval()
    expected = mixed_steps(resident)
    for experts in (5, 13, 32):
        model, store = streamed(checkpoints[name], experts)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(mixed_steps(model), expected, strict=True))
        counted = store.counters()
        assert counted.reads == counted.asked - counted.hits and counted.bytes and counted.reads >= 32
        assert (counted.reads == 32) == (experts == 32), "with room for all, each is read once"


@pytest.mark.parametrize("name", ["bfloat16", "int4"])
def test_other_paths_have_the_same_bits(checkpoints: dict[str, Path], name: str) -> None:
    """The decode loop, transformers' generate on compiled steps, and modules in plain PyTorch."""
    resident = load_model(checkpoints[name], device="cpu").eval()
    resident.config.num_nextn_predict_layers = 0
    model, _ = streamed(checkpoints[name], 6)
    prompts = [ids(80, 1), ids(3, 2), ids(17, 3)]
    assert replies(model, prompts, GREEDY) == replies(resident, prompts, GREEDY)
    prompt = torch.tensor([prompts[0]])
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt, **how), resident.generate(prompt, **how))
    with torch.no_grad():
        for length in (1, 4, 80):
            given = {"input_ids": prompt[:, :length], "use_cache": False}
            assert torch.equal(model(**given).logits, resident(**given).logits)


def test_sizes_are_read() -> None:
    assert parse_size("8GiB", "--expert-cache") == 8 * 2**30
    assert parse_size("1.5 GB", "--expert-cache") == 1_500_000_000
    assert parse_size("500mb", "--expert-cache") == parse_size("500M", "--expert-cache") == 500_000_000
    assert parse_size(4096, "--expert-cache") == parse_size("4096B", "--expert-cache") == 4096
    for wrong in ("", "8 giga", "-1GB", "0", "GiB", "1e9"):
        with pytest.raises(ValueError, match="give a size such as 8GiB"):
            parse_size(wrong, "--expert-cache")
