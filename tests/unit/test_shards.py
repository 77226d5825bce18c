"""The layout of files: experts as contiguous, aligned reads; what shards hold; ordinary safetensors all the same."""

import io
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from tiny import small_model

from axk1 import AXK1Config
from axk1.checkpoint import CheckpointError
from axk1.checkpoint.names import expert_part
from axk1.checkpoint.quantize import quantize_checkpoint
from axk1.checkpoint.shards import (
    DTYPES,
    PAGE,
    Output,
    arranged,
    parse_header,
    read_places,
    split_shards,
    write_header,
)
from axk1.quantized.plan import Scheme

EXPERT = {
    Scheme("int4", 128): 5544 * PAGE,
    Scheme("int4", 64): 5712 * PAGE,
    Scheme("int4", 32): 6048 * PAGE,
    Scheme("int3", 64): 4368 * PAGE,
    Scheme("int8"): 10757 * PAGE + PAGE // 2,
    Scheme("fp8"): 10757 * PAGE + PAGE // 2,
}
"""Bytes of an expert of K1's width."""


def outputs(scheme: Scheme, experts: int = 12) -> list[Output]:
    """An MoE layer of K1's width as it is quantised, shapes and a norm included, in the order of the table."""
    config = AXK1Config.preset("k1")
    wide, narrow = config.hidden_size, config.moe_intermediate_size
    shapes = {"gate_proj": (narrow, wide), "up_proj": (narrow, wide), "down_proj": (wide, narrow)}
    found = [Output("model.layers.7.input_layernorm.weight", "BF16", (wide,))]
    for expert in range(experts):
        for part, shape in shapes.items():
            for suffix, (word, size) in scheme.tensors(*shape).items():
                found.append(Output(f"model.layers.7.mlp.experts.{expert}.{part}.{suffix}", word, size))
    return found


@pytest.mark.parametrize("scheme", EXPERT, ids=str)
def test_an_expert_of_k1_is_one_read_that_begins_on_a_page(scheme):
    """Half a page off in eight bits, where a read takes one page more."""
    given = outputs(scheme)
    stream = io.BytesIO()
    places = write_header(stream, given)
    assert stream.tell() % PAGE == 0 and stream.tell() == min(places.values())
    size = {output.name: output.nbytes for output in given}
    for expert in range(12):
        base = f"model.layers.7.mlp.experts.{expert}."
        held = sorted((places[name], name) for name in size if name.startswith(base) and not name.endswith("_shape"))
        start = held[0][0]
        assert start == stream.tell() + expert * EXPERT[scheme] and start % (PAGE // 2) == 0
        assert all(one + size[name] == other for (one, name), (other, _) in pairwise(held))
        assert sum(size[name] for _, name in held) == EXPERT[scheme]
        values = "weight_packed" if scheme.packed else "weight"
        assert [name.removeprefix(base) for _, name in held] == [
            f"{part}_proj.{suffix}" for suffix in (values, "weight_scale") for part in ("gate", "up", "down")
        ]
        if scheme.packed:
            assert all(place % PAGE == 0 for place, _ in held)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(sorted(DTYPES)), st.integers(0, 5), st.booleans())))
def test_any_tensors_start_at_multiples_of_their_item_size_and_are_read_by_safetensors(parts):
    given = []
    for i, (size, word, expert, routed) in enumerate(parts):
        name = f"model.layers.{i}.mlp.experts.{expert}.up_proj.weight" if routed else f"model.x{i}.weight"
        given.append(Output(name, word, (size,)))
    assert sorted(output.name for output in arranged(given)) == sorted(output.name for output in given)
    stream = io.BytesIO()
    places = write_header(stream, given)
    total = sum(output.nbytes for output in given)
    data = bytes(range(1, 252)) * (total // 251 + 1)
    stream.write(data[:total])
    for output in given:
        assert places[output.name] % DTYPES[output.dtype].itemsize == 0
    content = stream.getvalue()
    length = int.from_bytes(content[:8], "little")
    found = parse_header(content[8 : 8 + length], 8 + length, "file")
    for name, tensor in load(content).items():
        place = found[name]
        assert (tensor.dtype, tensor.shape) == (DTYPES[place.dtype], place.shape) and place.start == places[name]
        assert tensor.flatten().view(torch.uint8).numpy().tobytes() == content[place.start : place.stop]


def test_a_quantised_checkpoint_has_its_experts_in_order(tmp_path):
    small_model(hidden_size=64, moe_intermediate_size=32, num_nextn_predict_layers=1).bfloat16().save_pretrained(
        tmp_path / "source"
    )
    for layer_bytes, files in (("50GB", 1), ("40KB", 2)):
        target = tmp_path / layer_bytes
        written = quantize_checkpoint(tmp_path / "source", target, "int4", 32, max_shard_size=layer_bytes)
        assert len(written) >= files
        for file in written:
            places = read_places(file)
            routed = [part for name in places if (part := expert_part(name)) and part.suffix != "_shape"]
            blocks = list(dict.fromkeys((part.base, part.expert) for part in routed))
            assert len(routed) == 6 * len(blocks)  # all six tensors of an expert are here
            order = [(int(base.split(".")[2]), expert) for base, expert in blocks]
            assert order == sorted(order) and [(part.base, part.expert) for part in routed] == [
                block for block in blocks for _ in range(6)
            ]
            names = list(places)
            assert all(expert_part(name) for name in names[: len(routed)])
            assert places[names[0]].start % PAGE == 0


def test_layers_and_experts_are_not_split():
    names = [f"model.layers.{layer}.mlp.experts.{e}.{p}_proj.weight" for layer in (1, 2) for e in (0, 1) for p in "ab"]
    names = [name.replace(".a_", ".gate_").replace(".b_", ".up_") for name in names]
    size = dict.fromkeys(range(8), 10)
    for largest, expected in ((80, [8]), (79, [4, 4]), (40, [4, 4]), (39, [2] * 4), (20, [2] * 4), (19, [1] * 8)):
        shards = split_shards(names, size, names, largest)
        assert [len(shard) for shard in shards] == expected
        assert [name for shard in shards for name in shard] == names


def test_headers_that_are_none(tmp_path):
    def refused(text: bytes) -> str:
        with pytest.raises(CheckpointError) as error:
            parse_header(text, 8 + len(text), "x.safetensors")
        return str(error.value)

    for text in (b"", b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"\xff"):
        assert "damaged header" in refused(text)
    hole = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'
    assert "does not follow" in refused(hole)
    save_file({"b": torch.ones(3), "a": torch.ones(2)}, tmp_path / "m.safetensors")
    places = read_places(Path(tmp_path / "m.safetensors"))
    assert {name: place.stop - place.start for name, place in places.items()} == {"a": 8, "b": 12}
