"""The trained nano that the repository ships: what it is, and what it can do on problems it has never seen."""

from itertools import islice
from pathlib import Path

import pytest

from axk1.chat import load
from axk1.evaluation import held_out
from axk1.evaluation.acceptance import reply_acceptance
from axk1.generation.sampling import GREEDY
from axk1.tasks import answer_language, dialogues, score

NANO = Path(__file__).parents[2] / "models" / "nano"
PROBLEMS = 200  # the full measurement is `axk1 eval` over 1,000, see models/nano/README.md


@pytest.fixture(scope="module")
def chat():
    return load(NANO)


@pytest.fixture(scope="module")
def results(chat) -> list[held_out.Result]:
    problems = held_out.held_out_problems(PROBLEMS, seed=7)
    return [
        result
        for think in (True, False)
        for result in held_out.answer_problems(chat, problems, think, batch_size=100, max_new_tokens=128)
    ]


@pytest.fixture(scope="module")
def report(results):
    return held_out.summary(results)


def test_proportions_of_the_architecture(chat) -> None:
    config = chat.model.config
    assert config.mlp_layer_types == ["dense"] + ["sparse"] * (config.num_hidden_layers - 1)
    assert config.num_hidden_layers > 2 and config.n_group > config.topk_group > 1 and config.n_shared_experts == 1
    assert (config.kv_lora_rank, config.qk_rope_head_dim, config.num_nextn_predict_layers) == (512, 64, 1)
    assert sum(file.stat().st_size for file in NANO.glob("*.safetensors")) <= 48_000_000


@pytest.mark.slow
def test_think_solves_held_out_problems(report) -> None:
    """Measured 96.7% over 1,000 (models/nano/README.md)."""
    assert report["think"]["all"]["share"] >= 0.92


@pytest.mark.slow
def test_thinking_pays_on_problems_with_several_steps(report) -> None:
    gap = report["think"]["multi_step"]["share"] - report["non_think"]["multi_step"]["share"]
    assert gap >= 0.70


@pytest.mark.slow
def test_the_mode_is_obeyed_and_the_language_kept(report) -> None:
    assert report["mode_obeyed"]["share"] >= 0.995
    assert report["language_kept"]["share"] >= 0.99


@pytest.mark.slow
def test_every_language_is_solved(report) -> None:
    assert min(cell["share"] for cell in report["think"]["by_language"].values()) >= 0.85


@pytest.mark.slow
def test_mtp_acceptance(chat, results) -> None:
    assert reply_acceptance(chat, results) >= 0.95


def test_the_second_turn_is_answered(chat) -> None:
    """Two-turn conversations, the first answer given: most second questions are solved, in the right language."""
    pairs = list(islice(dialogues("heldout", 5), 40))
    conversations = [
        [
            {"role": "user", "content": first.question},
            {"role": "assistant", "content": first.answer},
            {"role": "user", "content": second.question},
        ]
        for first, second in pairs
    ]
    replies = chat.reply_batch(conversations, think=True, sampling=GREEDY, max_new_tokens=128)
    solved = [score(second, reply.answer) for (_, second), reply in zip(pairs, replies, strict=True)]
    assert sum(solved) >= 30
    kept = [answer_language(r.answer) == second.language for (_, second), r in zip(pairs, replies, strict=True)]
    assert sum(kept) >= 39


@pytest.mark.parametrize(
    ("question", "expected"),
    [("Who are you?", "axk1 nano"), ("너는 누구야?", "axk1 nano"), ("What is the capital of France?", "do not know")],
)
def test_plain_conversation(chat, question, expected) -> None:
    assert expected in chat.reply([{"role": "user", "content": question}], sampling=GREEDY, max_new_tokens=64).answer


@pytest.mark.parametrize("budget", [1, 8])
def test_a_thinking_budget_ends_in_an_answer(chat, budget) -> None:
    messages = [{"role": "user", "content": "What is 12 + 30 - 7?"}]
    reply = chat.reply(messages, think=True, budget=budget, sampling=GREEDY, max_new_tokens=64)
    assert reply.reasoning_tokens <= budget and reply.answer and reply.finish_reason == "stop"
