"""The memory arithmetic, against sums over real tensors and against numbers worked out by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import small_model

from axk1 import AXK1Config
from axk1.plan.describe import describe
from axk1.plan.memory import (
    GB,
    RESERVE,
    Parallel,
    Step,
    activation_bytes,
    gpu_memory,
    latents_per_token,
    share,
    stage_layers,
    weight_bytes,
)
from axk1.plan.weights import read_weights, released_weights, without_mtp

ONE = Parallel()


@pytest.fixture(scope="module")
def k1():
    return released_weights("bf16")


def test_one_gpu_holds_everything(k1):
    assert weight_bytes(k1, ONE) == [(1_037_966_118_912, 0)]
    assert latents_per_token(k1.config, ONE) == 70_272


@pytest.mark.parametrize(
    ("stored", "size"), [("bf16", 1037.97), ("fp8", 522.19), ("int8", 521.68), ("int4", 271.46), ("int3", 215.02)]
)
def test_stored_formats_are_those_of_axk1_quantize(stored, size):
    """The published sizes of docs/quantization.md."""
    ((total, _),) = weight_bytes(released_weights(stored), ONE)
    assert round(total / GB, 2) == size


def test_sixty_one_layers_on_32_gpus_by_hand(k1):
    """Eight GPUs a stage: an eighth of experts, heads and dense MLP; latents' projections, router and norms whole."""
    stages = weight_bytes(k1, Parallel(tensor=8, pipeline=4))
    experts, shared = 192 * 3 * 7168 * 2048, 3 * 7168 * 2048
    heads = 1536 * 64 * 192 + 512 * 64 * 256 + 64 * 128 * 7168
    whole = 7168 * 1536 + 7168 * 576 + 1536 + 512 + 3 * 7168
    moe = 2 * ((experts + shared + heads) // 8 + whole + 192 * 7168)
    dense = 2 * ((3 * 7168 * 18432 + heads) // 8 + whole)
    table = 2 * 163840 * 7168 // 8
    layers = [15, 15, 16, 15]
    assert [len(stage) for stage in stage_layers(k1.config, 4)] == layers
    assert [total for total, _ in stages] == [14 * moe + dense + table, 15 * moe, 16 * moe, 15 * moe + table + 2 * 7168]


def test_mtp_lies_on_the_last_stage_with_an_embedding_of_its_own():
    plain, mtp = released_weights("bf16"), released_weights("bf16", mtp=True)
    parallel = Parallel(tensor=8, pipeline=2)
    before, after = weight_bytes(plain, parallel), weight_bytes(mtp, parallel)
    assert before[0] == after[0]
    table = 2 * 163840 * 7168 // 8
    assert after[1][0] - before[1][0] == after[1][1] + table
    assert weight_bytes(mtp, ONE)[0][1] == 2 * 8_705_060_864
    assert without_mtp(mtp).tensors == plain.tensors
    assert latents_per_token(mtp.config, ONE) == 62 * 576 * 2


@given(tensor=st.sampled_from([1, 2, 4, 8]), data=st.sampled_from([1, 2, 4]), expert=st.booleans())
def test_shares_add_up(tensor, data, expert):
    parallel = Parallel(tensor, 1, data, expert)
    assert share("model.layers.3.mlp.experts.7.up_proj.weight", parallel) * parallel.gpus == 1
    assert share("model.layers.3.self_attn.o_proj.weight", parallel) * tensor == 1
    assert share("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", parallel) == 1
    assert share("model.layers.3.mlp.gate.weight", parallel) == 1
    assert share("model.layers.3.mlp.gate_proj.weight", parallel) == Fraction(1, tensor)


@given(layers=st.integers(1, 80), stages=st.integers(1, 12), spare=st.sampled_from(["middle", "last"]))
def test_stages_are_consecutive_and_even(layers, stages, spare):
    config = AXK1Config(num_hidden_layers=layers)
    if stages > layers:
        with pytest.raises(ValueError, match=f"{stages} pipeline stages"):
            stage_layers(config, stages, spare)
        return
    found = stage_layers(config, stages, spare)
    assert [layer for stage in found for layer in stage] == list(range(layers))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    left = layers % stages
    if left and spare == "last":
        assert all(len(stage) == layers // stages + 1 for stage in found[-left:])
    elif left:
        assert len(found[-1]) == layers // stages


@pytest.mark.parametrize("layout", ["released", "per_expert"])
def test_a_checkpoint_is_counted_as_its_files_are(tmp_path, layout):
    model = small_model(num_nextn_predict_layers=1)
    model.save_pretrained(tmp_path, layout=layout)
    weights = read_weights(tmp_path)
    assert weights.stored == "fp32" and weights.group_size is None
    assert weight_bytes(weights, ONE)[0][0] == describe(str(tmp_path)).bytes["stored"]
    trunk = without_mtp(weights)
    assert trunk.config.num_nextn_predict_layers == 0
    assert weight_bytes(trunk, ONE)[0][0] < weight_bytes(weights, ONE)[0][0]


def test_memory_of_a_gpu(k1):
    step, parallel = Step(8192, 64), Parallel(8, 4)
    memory = gpu_memory(k1, parallel, step, 80 * GB)
    assert memory.usable == 72 * GB and memory.weights == max(weight_bytes(k1, parallel))[0]
    assert memory.cache == memory.usable - memory.weights - memory.activations - RESERVE
    assert memory.tokens == memory.cache // (16 * 576 * 2)
    assert gpu_memory(k1, Parallel(8), step, 80 * GB).tokens == 0  # 130 GB of weights each
    assert gpu_memory(k1, Parallel(8), step, 80 * GB).cache < 0


def test_activations_grow_with_the_step_and_with_collected_tokens(k1):
    small, large = (activation_bytes(k1.config, Parallel(8), Step(tokens, 64)) for tokens in (1024, 8192))
    assert small < large < 4 * GB
    one, four = (activation_bytes(k1.config, Parallel(2, 1, data), Step(1024, 64)) for data in (1, 4))
    assert one < four


def test_unknown_format():
    with pytest.raises(ValueError, match="--weights is 'fp4'; use bf16, int8, int4, int3, fp8"):
        released_weights("fp4")
