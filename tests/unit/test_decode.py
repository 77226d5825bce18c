"""The decode loop: a row is what it would be alone, prompts in pieces, rows that leave, memory."""

import gc
from typing import Any

import pytest
import torch
from decoding import replies
from scripted import make_scripted_model
from tiny import PAD, ROPES, build, random_fields, small_model, tokens
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from transformers import LlamaConfig, LlamaForCausalLM

from axk1.generation import rows as rows_module
from axk1.generation.decode import decode
from axk1.generation.rows import Rows
from axk1.generation.sampling import GREEDY, Logprobs, Sampling
from axk1.generation.speculate import AUTO, Drafts
from axk1.modeling.cache import LatentCache

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (7, 1, 12, 3)]
SAMPLED = Sampling(temperature=1.0, seed=3, repetition_penalty=1.1)
SEEDS = [11, 12, 13, 14]


def drawn(seed: int, **overrides: Any) -> Any:
    fields = random_fields(seed, rope_parameters=dict(ROPES[seed % 4]), num_nextn_predict_layers=1)
    return build(fields, seed, **overrides)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_do_not_change_a_row(seed, sampling):
    """Other prompts, longer and shorter, and rows that end early and leave."""
    model = drawn(seed)
    alone = [replies(model, [prompt], sampling, seeds=[own]) for prompt, own in zip(PROMPTS, SEEDS, strict=True)]
    assert [[row] for row in replies(model, PROMPTS, sampling, seeds=SEEDS)] == alone
    stop = {alone[0][0][2], alone[3][0][5]}
    cut = [replies(model, [prompt], sampling, seeds=[own], stop_ids=stop)[0] for prompt, own in zip(PROMPTS, SEEDS)]  # noqa: B905
    assert replies(model, PROMPTS, sampling, seeds=SEEDS, stop_ids=stop) == cut
    backwards = replies(model, PROMPTS[::-1], sampling, seeds=SEEDS[::-1], stop_ids=stop)
    assert backwards[::-1] == cut


def test_rows_of_one_seed_differ_and_the_first_is_the_seeds_own():
    model = drawn(0)
    first, second = replies(model, [PROMPTS[0]] * 2, SAMPLED)
    assert first != second
    assert replies(model, [PROMPTS[0]], SAMPLED) == [first]


@pytest.mark.parametrize("piece", [1, 3, 5, 48])
@pytest.mark.parametrize("drafts", [0, 2])
def test_prompts_in_pieces(piece, drafts):
    """Steps without tokens come first, one for each piece but the last; then the same tokens."""
    model = drawn(1)
    options: dict[str, Any] = {"stop_ids": (), "pad_id": PAD, "max_new_tokens": 4, "drafts": Drafts(drafts)}
    columns = max(1, piece // len(PROMPTS))
    steps = list(decode(model, PROMPTS, GREEDY, prefill_tokens=piece, **options))
    waiting = -(-12 // columns) - 1
    assert steps[:waiting] == [[[], [], [], []]] * waiting and all(steps[waiting])
    found = [[token for step in steps for token in step[row]] for row in range(4)]
    assert found == replies(model, PROMPTS, GREEDY, max_new_tokens=4)


def test_ended_rows_leave_the_batch(monkeypatch):
    scripted = make_scripted_model({token: token + 1 for token in range(2, 90)})
    sizes = []
    extend = Rows.extend
    monkeypatch.setattr(Rows, "extend", lambda self, ids, *more: sizes.append(len(ids)) or extend(self, ids, *more))
    starts = [50, 80, 85, 86, 87]
    found = replies(scripted, [[start] for start in starts], GREEDY, stop_ids={90}, max_new_tokens=99)
    assert found == [list(range(start + 1, 91)) for start in starts]
    assert sizes[:4] == [5, 5, 5, 5] and sizes[-1] == 1 and sorted(sizes, reverse=True) == sizes
    assert sizes.count(4) == 0 and sizes.count(3) == 1  # 4 of 5 still running: not worth a copy


def test_padding_is_closed_up_when_the_longest_prompt_leaves(monkeypatch):
    monkeypatch.setattr(rows_module, "SPARE_COLUMNS", 2)
    model = drawn(2)
    prompts = [tokens(1, length, seed=length)[0].tolist() for length in (30, 4, 3)]
    alone = [replies(model, [prompt], GREEDY)[0] for prompt in prompts]
    stop = {alone[0][1]}
    cut = [replies(model, [prompt], GREEDY, stop_ids=stop)[0] for prompt in prompts]
    columns = []
    close_up = Rows.close_up

    def watched(self, also=()):
        close_up(self, also)
        columns.append((self.columns, self.cache.get_seq_length()))

    monkeypatch.setattr(Rows, "close_up", watched)
    assert replies(model, prompts, GREEDY, stop_ids=stop) == cut
    assert columns[0][0] == columns[0][1] < 10


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


def test_the_cache_is_reserved_up_to_a_limit():
    model = small_model()
    assert cast_cache(Rows(model, [[2]], PAD, 100)).layers[0].capacity == 100
    assert cast_cache(Rows(model, [[2]], PAD, 10**9)).layers[0].capacity == rows_module.RESERVED_COLUMNS


def cast_cache(rows: Rows) -> LatentCache:
    assert isinstance(rows.cache, LatentCache)
    return rows.cache


def test_gradients_are_off_inside_and_as_they_were_outside():
    for _ in decode(small_model(), [[2]], GREEDY, max_new_tokens=2, stop_ids=(), pad_id=PAD):
        assert torch.is_grad_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [Drafts(0), Drafts(2)])
def test_memory_does_not_grow_with_the_reply(drafts):
    """10,000 tokens: as many tensors alive at the end as at the start, not more bytes than cache and tokens take."""
    model = drawn(0, max_position_embeddings=16_384)
    found: list[tuple[int, int]] = []

    def measure() -> None:
        gc.collect()
        alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        # what other tests' vmap left behind has no storage
        alive = [o for o in alive if not is_batchedtensor(o)]
        found.append((len(alive), sum(o.untyped_storage().nbytes() for o in {id(o): o for o in alive}.values())))

    steps = decode(
        model, [[2, 3, 4]], SAMPLED, max_new_tokens=10_000, stop_ids=(), pad_id=PAD, drafts=drafts, prefill_tokens=2
    )
    tokens_seen, marks = 0, [500, 7_000, 9_900]
    for step in steps:
        tokens_seen += len(step[0])
        if marks and tokens_seen >= marks[0]:
            marks.pop(0)
            measure()
    assert tokens_seen == 10_000
    assert max(count for count, _ in found) - min(count for count, _ in found) < 60
    columns = 16_384 * 4 * (model.config.kv_lora_rank + model.config.qk_rope_head_dim) * 5
    assert found[-1][1] - found[0][1] < columns + 16_384 * 8 * 4


def test_logprobs_of_rows_that_leave_stay_with_their_prompt():
    model = drawn(3)
    stop = {replies(model, PROMPTS, GREEDY)[1][1]}
    recorded = Logprobs()
    found = replies(model, PROMPTS, GREEDY, stop_ids=stop, logprobs=recorded)
    assert [[token.id for token in row] for row in recorded.rows] == found
