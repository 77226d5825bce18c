"""Sampling options, the decode loop, MTP acceptance."""

import pytest
import torch
from decoding import Watched, use_executor
from scripted import make_model, make_scripted_model, make_tokenizer

from axk1.evaluation.acceptance import mtp_acceptance
from axk1.generation.decode import decode
from axk1.generation.executors import executor_for
from axk1.generation.sampling import GREEDY, Sampling

TOKENIZER = make_tokenizer()
CLOSE = 256 + 15
STOP = {256, 269}


def test_official_defaults():
    assert (Sampling().temperature, Sampling().top_p) == (0.6, 0.95)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        Sampling(**options)


@pytest.fixture(scope="module")
def model():
    return make_model()


def test_decode_equals_plain_greedy_search(model):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    steps = list(decode(model, prompts, GREEDY, max_new_tokens=6, stop_ids=STOP, pad_id=257))
    assert all(len(tokens) == 1 for step in steps for tokens in step)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert [token for step in steps for token in step[row]] == ids[len(prompt) :]


def test_rows_end_on_any_stop_id_and_yield_nothing_after():
    scripted = make_scripted_model({1: 2, 2: 269, 11: 12, 12: 13, 13: 256})
    steps = list(decode(scripted, [[1], [11]], GREEDY, max_new_tokens=9, stop_ids=STOP, pad_id=257))
    assert steps == [[[2], [12]], [[269], [13]], [[], [256]]]


def test_checkpoint_defaults_do_not_leak_in(model, monkeypatch):
    from transformers import GenerationConfig

    plain = list(decode(model, [[1, 2]], GREEDY, max_new_tokens=5, stop_ids=STOP, pad_id=257))
    monkeypatch.setattr(
        model, "generation_config", GenerationConfig(do_sample=True, temperature=9.0, top_k=3, eos_token_id=plain[1][0])
    )
    assert list(decode(model, [[1, 2]], GREEDY, max_new_tokens=5, stop_ids=STOP, pad_id=257)) == plain


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrowest_sampling_is_greedy(model, options):
    sampling = Sampling(temperature=1.0, seed=0, **options)
    arguments = {"max_new_tokens": 5, "stop_ids": STOP, "pad_id": 257}
    assert list(decode(model, [[1, 2]], sampling, **arguments)) == list(decode(model, [[1, 2]], GREEDY, **arguments))


def test_repetition_penalty_breaks_a_loop():
    looping = make_scripted_model({1: 1})
    arguments = {"max_new_tokens": 3, "stop_ids": STOP, "pad_id": 257}
    assert list(decode(looping, [[1]], GREEDY, **arguments)) == [[[1]]] * 3
    penalised = Sampling(temperature=1.0, seed=0, repetition_penalty=1e6)
    assert [[1]] not in list(decode(looping, [[1]], penalised, **arguments))


def test_closing_stops_the_model(model, monkeypatch):
    """The model runs only while a step is waited for, so nothing is left to stop."""
    calls = []

    class Counted(Watched):
        def step(self, batch):
            calls.append(1)
            return super().step(batch)

    use_executor(monkeypatch, lambda *given: Counted(executor_for(*given)))
    steps = decode(model, [[1, 2]], Sampling(seed=0), max_new_tokens=4000, stop_ids=STOP, pad_id=257)
    next(steps)
    assert len(calls) == 1
    steps.close()
    assert len(calls) == 1 and list(steps) == []


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[257] * gap + row if left else row + [257] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [[0] * g + [1] * len(r) if left else [1] * len(r) + [0] * g for r, g in zip(rows, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("left", [True, False])
def test_mtp_acceptance_counts_second_tokens_of_the_generated_part(left):
    """The scripted module drafts the successor of the token ahead, so a jump in the chain makes one draft fail.
    Prompt positions do not count."""
    scripted = make_scripted_model({token: token + 1 for token in range(100)})
    right = [50, 3, 10, 11, 12, 13, 14]  # prompt 50 3 10, generated 11 12 13 14: three drafts, all right
    wrong = [10, 11, 12, 77, 78]  # prompt 10, generated 11 12 77 78: drafts for 12, 77 and 78, one wrong
    ids, mask = padded([right, wrong], left)
    assert mtp_acceptance(scripted, ids, mask, torch.tensor([3, 1])) == pytest.approx(5 / 6)
    assert mtp_acceptance(scripted, ids, mask, torch.tensor([3, 2])) == pytest.approx(4 / 5)


def test_mtp_acceptance_of_a_module_that_only_repeats_the_trunk():
    """Reading the hidden state instead of the embedding, the module predicts token i+1 in place of i+2."""
    scripted = make_scripted_model({token: token + 1 for token in range(100)})
    eh_proj = scripted.model.mtp_layers[0].eh_proj.weight
    with torch.no_grad():
        eh_proj.copy_(eh_proj.roll(eh_proj.shape[0], dims=1))
    ids = torch.arange(10, 20)[None]
    assert mtp_acceptance(scripted, ids, torch.ones_like(ids), torch.tensor([2])) == 0.0


def test_mtp_acceptance_needs_a_module_and_two_tokens(model):
    ids = torch.arange(5)[None]
    with pytest.raises(ValueError, match="two generated tokens"):
        mtp_acceptance(model, ids, torch.ones_like(ids), torch.tensor([4]))
    with pytest.raises(ValueError, match="num_nextn_predict_layers"):
        mtp_acceptance(make_model(num_nextn_predict_layers=0), ids, torch.ones_like(ids), torch.tensor([1]))
