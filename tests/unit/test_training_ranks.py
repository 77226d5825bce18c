"""Two processes that train together (DDP over gloo): equal replicas, right gradients, nothing that stops."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from tiny import small_model, tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_:FutureWarning"),  # renamed in 5.23
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both processes have run: their results."""
    folder = tmp_path_factory.mktemp("ranks")
    small_model(num_nextn_predict_layers=1).save_pretrained(folder / "checkpoint")
    os.environ["AXK1_TEST_CHECKPOINT"] = str(folder / "checkpoint")
    torch.multiprocessing.spawn(ranks.play, (str(folder),), nprocs=ranks.RANKS)  # pyright: ignore
    return folder


def results(folder: Path, scene: Any) -> list[dict[str, torch.Tensor]]:
    found = [torch.load(folder / f"{scene.__name__}.{rank}", weights_only=True) for rank in range(ranks.RANKS)]
    for rank, result in enumerate(found):
        assert not isinstance(result, str), f"rank {rank}: {result}"
    return found


def test_reentrant_checkpointing_has_the_gradients_of_one_process(folder: Path) -> None:
    """Each parameter's, the embedding's first: it reaches the MTP module too, beside the states."""
    expected: dict[str, torch.Tensor] = {}
    for rank in range(ranks.RANKS):
        model, ids = small_model(num_nextn_predict_layers=1).train(), ranks.rank_tokens(rank)
        model(input_ids=ids, labels=ids).loss.backward()
        for name, gradient in ranks.gradients(model).items():
            expected[name] = expected.get(name, 0) + gradient / ranks.RANKS
    for found in results(folder, ranks.reentrant):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert torch.allclose(gradient, expected[name], atol=1e-6, rtol=1e-4), name


def test_steps_without_labels_go_on_and_leave_equal_replicas(folder: Path) -> None:
    """The MTP modules take no part in such a loss, which must not stop DDP; the experts' choices are counted."""
    one, other = results(folder, ranks.without_labels)
    start = small_model(num_nextn_predict_layers=1).state_dict()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        moved = not torch.equal(tensor, start[name])
        if "layers.3." in name:
            assert not moved, f"{name} has no gradient"
        elif name.endswith(("self_attn.o_proj.weight", "e_score_correction_bias")):
            assert moved, name


def test_a_head_over_the_trunk_goes_on(folder: Path) -> None:
    one, other = results(folder, ranks.trunk_alone)
    assert one["score.weight"].abs().sum() > 0
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name]), name


def test_balance_counts_are_summed_over_ranks(folder: Path) -> None:
    """Every rank moves its biases by the counts of all, which neither had alone."""
    one, other = results(folder, ranks.biases)
    start = small_model().state_dict()
    routers = [name for name in one if not name.endswith(".counted")]
    assert len(routers) == 2
    for name in routers:
        assert torch.equal(one[name], other[name]), name
        counts = one[f"{name}.counted"] + other[f"{name}.counted"]
        assert not torch.equal(one[f"{name}.counted"], other[f"{name}.counted"])
        before = start[f"{name}.e_score_correction_bias"]
        assert torch.allclose(one[name] - before, 1e-2 * torch.sign(counts.float().mean() - counts), atol=1e-6)


def test_a_step_is_the_same_however_it_is_split(folder: Path) -> None:
    """Five steps with MTP and balance losses and moving biases: at once, in micro-batches, over ranks, or both."""
    whole = ranks.train_in_parts([slice(0, 4)])
    start = small_model(num_nextn_predict_layers=1).state_dict()
    assert all(not torch.equal(start[name], whole[name]) for name in whole if name.endswith("e_score_correction_bias"))
    splits = [ranks.train_in_parts([slice(i, i + size) for i in range(0, 4, size)]) for size in (2, 1)]
    for found in (*splits, *results(folder, ranks.split), *results(folder, ranks.split_twice)):
        for name, tensor in whole.items():
            if name.endswith("e_score_correction_bias"):
                assert torch.equal(tensor, found[name]), name
            else:
                assert torch.allclose(tensor, found[name], atol=1e-5), name


def test_expert_parallelism_shares_the_experts_out(folder: Path) -> None:
    expected = small_model(num_nextn_predict_layers=1)(tokens(2, 7)).logits
    for found in results(folder, ranks.experts):
        assert found["held"].tolist() == [4, 4], "8 experts on two ranks"
        assert torch.allclose(found["logits"], expected, atol=1e-5)


def test_tensor_parallelism_splits_the_experts(folder: Path) -> None:
    """Each rank has half of a shared expert's width; the norm after the block sees the sum of both."""
    model = small_model(num_nextn_predict_layers=1)
    expected, whole = model(tokens(2, 7)).logits, model.model.layers[1].mlp.shared_experts.down_proj.weight.shape
    for found in results(folder, ranks.tensors):
        assert found["held"].tolist() == [whole[0], whole[1] // 2]
        assert torch.allclose(found["logits"], expected, atol=1e-5)
