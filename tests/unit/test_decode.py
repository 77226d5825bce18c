"""The decode loop: a reply is what it would be alone, prompts in pieces, sequences that leave, memory."""

import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoding import Watched, replies, use_executor
from scripted import make_scripted_model
from tiny import PAD, ROPES, build, random_fields, small_model, tokens
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from transformers import LlamaConfig, LlamaForCausalLM

from axk1.generation.decode import decode
from axk1.generation.executors import executor_for
from axk1.generation.pages import PAGE
from axk1.generation.sampling import GREEDY, Logprobs, Sampling
from axk1.generation.speculate import AUTO, Drafts

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (7, 1, 12, 3)]
SAMPLED = Sampling(temperature=1.0, seed=3, repetition_penalty=1.1)
SEEDS = [11, 12, 13, 14]


def drawn(seed: int, **overrides: Any) -> Any:
    fields = random_fields(seed, rope_parameters=dict(ROPES[seed % 4]), num_nextn_predict_layers=1)
    return build(fields, seed, **overrides)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_do_not_change_a_reply(seed, sampling):
    """Other prompts, longer and shorter, and replies that end early and leave."""
    model = drawn(seed)
    alone = [replies(model, [prompt], sampling, seeds=[own]) for prompt, own in zip(PROMPTS, SEEDS, strict=True)]
    assert [[row] for row in replies(model, PROMPTS, sampling, seeds=SEEDS)] == alone
    stop = {alone[0][0][2], alone[3][0][5]}
    cut = [replies(model, [prompt], sampling, seeds=[own], stop_ids=stop)[0] for prompt, own in zip(PROMPTS, SEEDS)]  # noqa: B905
    assert replies(model, PROMPTS, sampling, seeds=SEEDS, stop_ids=stop) == cut
    backwards = replies(model, PROMPTS[::-1], sampling, seeds=SEEDS[::-1], stop_ids=stop)
    assert backwards[::-1] == cut


def test_replies_of_one_seed_differ_and_the_first_is_the_seeds_own():
    model = drawn(0)
    first, second = replies(model, [PROMPTS[0]] * 2, SAMPLED)
    assert first != second
    assert replies(model, [PROMPTS[0]], SAMPLED) == [first]


@pytest.mark.parametrize("piece", [1, 3, 5, 48])
@pytest.mark.parametrize("drafts", [0, 2])
def test_prompts_in_pieces(piece, drafts):
    """As many tokens of prompts as fit in a step, each prompt cut where it would be cut alone; then the same tokens."""
    model = drawn(1)
    read: list[list[int]] = []

    class Noted(Watched):
        def step(self, batch):
            lengths = [last - first for first, last in pairwise(batch.starts)]
            if batch.prompts:
                read.append(lengths[: batch.prompts])
            assert batch.prompts == 0 or set(lengths[batch.prompts :]) <= {1}, "single tokens beside prompts"
            return super().step(batch)

    options: dict[str, Any] = {"stop_ids": (), "pad_id": PAD, "max_new_tokens": 4, "drafts": Drafts(drafts)}
    with pytest.MonkeyPatch.context() as patch:
        use_executor(patch, lambda *given: Noted(executor_for(*given)))
        steps = list(decode(model, PROMPTS, GREEDY, prefill_tokens=piece, **options))
    assert all(sum(pieces) <= piece for pieces in read)
    sizes = [min(piece, len(prompt) - at) for prompt in PROMPTS for at in range(0, len(prompt), piece)]
    assert [count for pieces in read for count in pieces] == sizes
    waiting = -(-7 // piece) - 1
    assert steps[:waiting] == [[[], [], [], []]] * waiting and steps[waiting][0]
    found = [[token for step in steps for token in step[row]] for row in range(4)]
    assert found == replies(model, PROMPTS, GREEDY, max_new_tokens=4)


def test_ended_replies_leave_the_batch(monkeypatch):
    """At once: each step is of those that still run."""
    scripted = make_scripted_model({token: token + 1 for token in range(2, 90)})
    sizes = []

    class Counted(Watched):
        def step(self, batch):
            sizes.append(len(batch.cached))
            return super().step(batch)

    use_executor(monkeypatch, lambda *given: Counted(executor_for(*given)))
    starts = [50, 80, 85, 86, 87]
    found = replies(scripted, [[start] for start in starts], GREEDY, stop_ids={90}, max_new_tokens=99)
    assert found == [list(range(start + 1, 91)) for start in starts]
    assert sizes == [5] * 3 + [4] + [3] + [2] * 5 + [1] * 30


def test_a_model_of_transformers_is_run_whole():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    llama: Any = LlamaForCausalLM(config).eval()
    expected = [
        llama.generate(torch.tensor([p]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
        for p in PROMPTS
    ]
    assert replies(llama, PROMPTS, GREEDY, prefill_tokens=12, drafts=Drafts(AUTO)) == [
        ids[0, len(prompt) :].tolist() for ids, prompt in zip(expected, PROMPTS, strict=True)
    ]
    with pytest.raises(ValueError, match="no MTP module"):
        replies(llama, PROMPTS, GREEDY, drafts=Drafts(1))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[2], []], {}, "prompt is empty"),
        ([[2]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[2]], {"processors": [[], []]}, "processors has 2 entries"),
        ([[2]], {"seeds": [1, 2]}, "seeds has 2 entries"),
    ],
)
def test_bad_arguments(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        replies(small_model(), prompts, GREEDY, **options)


def test_no_prompts():
    assert replies(small_model(), [], GREEDY) == []


def test_gradients_are_off_inside_and_as_they_were_outside():
    for _ in decode(small_model(), [[2]], GREEDY, max_new_tokens=2, stop_ids=(), pad_id=PAD):
        assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [Drafts(0), Drafts(2)])
def test_memory_does_not_grow_with_the_reply(drafts):
    """4,000 tokens: as many tensors alive at the end as at the start, but for pages; no more bytes than these and the
    tokens take."""
    model = drawn(0, max_position_embeddings=16_384, attention_bias=False)  # such as kernels run
    found: list[tuple[int, int]] = []

    def measure() -> None:
        gc.collect()
        alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        # what other tests' vmap left behind has no storage
        alive = [o for o in alive if not is_batchedtensor(o)]
        found.append((len(alive), sum(o.untyped_storage().nbytes() for o in {id(o): o for o in alive}.values())))

    steps = decode(
        model, [[2, 3, 4]], SAMPLED, max_new_tokens=4_000, stop_ids=(), pad_id=PAD, drafts=drafts, prefill_tokens=2
    )
    tokens_seen, marks = 0, [500, 3_000, 3_900]
    for step in steps:
        tokens_seen += len(step[0])
        if marks and tokens_seen >= marks[0]:
            marks.pop(0)
            measure()
    assert tokens_seen == 4_000
    pages = 4_000 // PAGE + 1
    assert max(count for count, _ in found) - min(count for count, _ in found) < 60 + pages
    layers = model.config.num_hidden_layers + 1
    latents = pages * PAGE * 4 * (model.config.kv_lora_rank + model.config.qk_rope_head_dim) * layers
    assert found[-1][1] - found[0][1] < latents + 16_384 * 8 * 4


def test_logprobs_of_replies_that_end_stay_with_their_prompt():
    model = drawn(3)
    stop = {replies(model, PROMPTS, GREEDY)[1][1]}
    recorded = Logprobs()
    found = replies(model, PROMPTS, GREEDY, stop_ids=stop, logprobs=recorded)
    assert [[token.id for token in row] for row in recorded.rows] == found
