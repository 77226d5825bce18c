"""Experts read from files as they are asked for: the bits of a model that has all of them in memory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import replies

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.checkpoint.compressed import Wanted
from axk1.checkpoint.convert import convert_checkpoint
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.recipe import Recipe, Rule
from axk1.experts.simulate import LRU, Belady, Decayed, asked, read_trace, simulate
from axk1.experts.store import DECAY, RESERVE, ExpertStore, store_of
from axk1.generation.batch import Assembler
from axk1.generation.pages import Pool
from axk1.generation.sampling import GREEDY
from axk1.kernels.dispatch import executor
from axk1.kernels.native import Place, Stream
from axk1.kernels.weights import read_model
from axk1.load import load_model, parse_size
from axk1.modeling.moe import AXK1Router
from axk1.quantized.plan import FP8, Kind

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
FORMATS = ("bfloat16", "float32", "per_expert", "int8", "int4", "int3", "mixed")


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
    quantize_checkpoint(found["bfloat16"], root / "int3", "int3", max_shard_size="300KB")
    recipe = Recipe((Rule(Wanted("int4", 32)), Rule(Wanted("int3"), frozenset({1}), frozenset({"experts"}))))
    quantize_checkpoint(found["bfloat16"], root / "mixed", recipe)
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


@pytest.mark.parametrize("name", ["bfloat16", "int4", "int3"])
def test_other_paths_have_the_same_bits(checkpoints: dict[str, Path], name: str) -> None:
    """The decode loop, transformers' generate on compiled steps, and modules in plain PyTorch."""
    resident: Any = load_model(checkpoints[name], device="cpu").eval()
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


@pytest.mark.parametrize("experts", [4, 7, 20])
def test_the_simulator_counts_the_hits_of_the_store(checkpoints: dict[str, Path], experts: int) -> None:
    """Replies, and prompts that ask for more experts than there is room for; and Belady's rule is beaten by none."""
    model, store = streamed(checkpoints["int4"], experts)
    store.stream.trace()
    mixed_steps(model)
    replies(model, [ids(9, 4), ids(30, 5)], GREEDY, max_new_tokens=30)
    counted, trace = store.counters(), read_trace(store.stream.trace())
    assert asked(trace) == counted.asked and max(len(listed) for _, listed in trace) == 16
    assert simulate(trace, experts, Decayed(DECAY)) == counted.hits
    single = [entry for entry in trace if len(entry[1]) == 4]
    best = simulate(single, experts, Belady(single))
    assert best >= max(simulate(single, experts, policy) for policy in (Decayed(DECAY), Decayed(1.0), LRU()))
    assert simulate(single, 32, LRU()) == asked(single) - len({(layer, e) for layer, listed in single for e in listed})


def test_rules_of_caches_by_hand() -> None:
    """Two layers of one expert a step, room for two: the last use of all layers together, and steps of a layer."""
    trace = [(1, (0,)), (2, (0,)), (1, (0,)), (2, (1,)), (1, (0,)), (2, (0,))]
    assert simulate(trace, 2, LRU()) == 2
    assert simulate(trace, 2, Belady(trace)) == 3 - 1
    assert simulate(trace, 3, LRU()) == 3
    assert simulate([(1, (0, 1, 2))] * 2, 2, LRU()) == 1, "of a list too long, what is held at its end"
    assert simulate([(1, (0, 1))] * 5, 2, Decayed(0.5)) == 8


def test_what_cannot_be_streamed_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bfloat16 = checkpoints["bfloat16"]

    def refuses(sentence: str, folder: Path = bfloat16, **how: Any) -> None:
        with pytest.raises(ValueError, match=sentence):
            load_model(folder, **{"device": "cpu", "expert_cache": "64MiB", **how})

    refuses("holds 3 experts of [0-9,]+ bytes, and a token needs 4", expert_cache=3 * slot_bytes(bfloat16) + 1)
    refuses("as they are stored", dtype="float32")
    refuses("leave out --dtype packed", dtype="packed")
    refuses("add --device cpu", device="meta")
    refuses("give a size such as", expert_cache="much")
    for kind in FP8:
        quantize_checkpoint(bfloat16, tmp_path / kind, kind)
        refuses(f"holds experts in {kind}; streamed are", tmp_path / kind)
    dense = AXK1ForCausalLM(AXK1Config.preset("nano", num_hidden_layers=1, num_nextn_predict_layers=0))
    dense.save_pretrained(tmp_path / "dense")
    refuses("this one has none", tmp_path / "dense")


def test_a_cache_beyond_free_memory_is_refused(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, which says what would fit."""
    monkeypatch.setattr("axk1.experts.store.free_memory", lambda: RESERVE + 2**20)
    with pytest.raises(ValueError, match=r"does not fit: 513MiB are free .* give at most 1MiB"):
        load_model(checkpoints["bfloat16"], device="cpu", expert_cache="64MiB")


def test_a_model_without_its_experts_says_so(checkpoints: dict[str, Path]) -> None:
    model: Any = AXK1ForCausalLM.from_pretrained(checkpoints["bfloat16"], without_experts=True)
    assert model.config.num_nextn_predict_layers == 0
    with pytest.raises(ValueError, match="without its routed experts"):
        model(torch.tensor([ids(3, 1)]), use_cache=False)
    with pytest.raises(ValueError, match="without its routed experts"), torch.no_grad():
        executor(model, torch.bfloat16)


@pytest.mark.parametrize(("kind", "bits", "group"), [("int4", 4, 32), ("int3", 3, 64)])
def test_an_aligned_expert_is_one_read(
    checkpoints: dict[str, Path], tmp_path: Path, kind: Kind, bits: int, group: int
) -> None:
    """Of whole pages, as `axk1 quantize` writes K1's int4 and int3; elsewhere neighbours share their pages."""
    store = streamed(checkpoints["int4"], 5)[1]
    assert store.layout.pieces == 1
    wide = make_checkpoint(tmp_path / "wide", hidden_size=512, moe_intermediate_size=256, num_hidden_layers=2)
    quantize_checkpoint(wide, tmp_path / kind, kind, group)
    store = streamed(tmp_path / kind, 5)[1]
    size = int(3 * 512 * 256 * (bits / 8 + 2 / group))  # two bytes for a group
    assert size % 4096 == 0 and store.layout.read_bytes == size and store.layout.pieces == 1
    for place in store.layout.experts.values():
        extent = place.extent[0]
        assert extent.offset % 4096 == 0 and extent.bytes == extent.needed == size


def test_places_are_checked(checkpoints: dict[str, Path]) -> None:
    """Nothing is read or written outside of what belongs to an expert, whatever the kernels are told."""
    model, store = streamed(checkpoints["int4"], 5)
    good = store.layout.experts[1, 0]

    def refuses(words: str, change: Callable[[Place], None]) -> None:
        place = Place.from_buffer_copy(good)
        change(place)
        with pytest.raises(ValueError, match=words):
            store.stream.add(1, 0, place)

    refuses("too many pieces", lambda place: setattr(place, "extents", 9))
    refuses("in no file", lambda place: setattr(place.extent[0], "file", 7))
    refuses("no whole pages", lambda place: setattr(place.extent[0], "offset", 4095))
    refuses("after the end of", lambda place: setattr(place.extent[0], "offset", 2**40))
    refuses("do not follow", lambda place: setattr(place.extent[0], "place", 4096))
    refuses("larger than its place", lambda place: setattr(place.extent[0], "bytes", 2**30))
    refuses("outside of its expert", lambda place: setattr(place.down, "data", store.layout.slot_bytes - 4096))
    refuses("outside of their expert", lambda place: setattr(place.gate, "scales", -8))
    refuses("no room for scales", lambda place: setattr(place.up, "side", 0))
    refuses("neither bfloat16 nor float32", lambda place: setattr(place.up, "scale_bytes", 8))
    with pytest.raises(ValueError, match="another number of experts"):
        read_model(model).set_store(1, store.stream, 9)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(ValueError, match="a cache of no experts"):
        Stream(0, 4096, 1, 0.5)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        store.stream.add_file("/nowhere/at/all")
