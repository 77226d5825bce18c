"""Sequences that join and leave as they please: each is what it is alone, and its pages are its own."""

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import Forbid, OneByOne, Watched, is_compiled, replies, use_executor, use_modules
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import VOCAB, build, draw_fields, small_model, tokens
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicCache

from axk1.generation.batch import Assembler, Sequence
from axk1.generation.executors import ModuleExecutor, executor_for
from axk1.generation.loop import Loop
from axk1.generation.pages import PAGE, Pool, PoolFull, pages_of
from axk1.generation.sampling import GREEDY, Sampling
from axk1.generation.speculate import AUTO, Drafts

SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4),
    Sampling(temperature=1.0, top_p=1.0),
    Sampling(temperature=0.8, top_p=0.9, presence_penalty=0.5),
    Sampling(temperature=1.3, top_k=20, min_p=0.02, logit_bias={7: 2.0}),
]
EXECUTORS = ["modules", "one by one", "compiled"]


@dataclass
class Request:
    """A sequence to be made, when it joins, and when it is cancelled if at all."""

    joins: int
    leaves: int | None
    make: Callable[[], Sequence]


def request(chance: random.Random, longest: int) -> Request:
    prompt = tokens(1, chance.choice([1, 2, 9, PAGE - 1, PAGE, PAGE + 1, longest]), chance.randrange(99))[0].tolist()
    sampling, seed, new = chance.choice(SAMPLINGS), chance.randrange(10**6), chance.choice([1, 2, 7, 20, PAGE + 3])
    stops = set(chance.sample(range(VOCAB), chance.choice([0, 0, 2])))
    distances = [chance.randrange(1, 5)] if chance.random() < 0.2 else []

    def make() -> Sequence:
        return Sequence(
            prompt, sampling, max_new_tokens=new, stop_ids=stops, seed=seed, top_logprobs=3,
            processors=[Forbid(distance) for distance in distances],
        )  # fmt: skip

    return Request(chance.randrange(12), chance.choice([None, None, None, chance.randrange(25)]), make)


def alone(model: Any, request: Request, drafts: Drafts, piece: int) -> Sequence:
    """What the sequence is without neighbours."""
    loop, sequence = Loop(model, drafts, prefill_tokens=piece), request.make()
    loop.add(sequence)
    while len(loop):
        loop.step()
    return sequence


def together(model: Any, requests: list[Request], drafts: Drafts, piece: int, **how: Any) -> list[Sequence]:
    """All of them in one loop. Their pages are counted at every step."""
    loop, sequences = Loop(model, drafts, prefill_tokens=piece, **how), [r.make() for r in requests]
    assert loop.pool is not None
    step, limit = 0, loop.pool.limit
    while len(loop) or step < 12:
        for r, sequence in zip(requests, sequences, strict=True):
            if r.joins == step:
                loop.add(sequence)
            if r.leaves == step and r.joins <= step:
                loop.cancel(sequence)
                assert sequence.table is None
        replies = [len(s.reply) for s in sequences]
        found = loop.step()
        assert {s: new for s, new in found.items() if new} == {
            s: s.reply[before:] for s, before in zip(sequences, replies, strict=True) if len(s.reply) > before
        }
        tables = [s.table for s in sequences if s.table is not None]
        held = sum(len(table.pages) for table in tables)
        assert loop.pool.in_use == held and loop.pool.reserved == sum(table.reserved for table in tables)
        assert limit is None or held + loop.pool.reserved <= limit
        assert all(s.table is None for s in sequences if not s.running)
        drafted = max(drafts.count, 4) if drafts.count else 0
        assert held <= sum(pages_of(s.cached + 1 + drafted) for s in sequences if s.table is not None)
        step += 1
    assert loop.pool.nbytes == loop.pool.reserved == 0
    return sequences


def cut(request: Request, whole: Sequence, found: Sequence) -> int:
    """How many tokens of the reply are to be compared: all, or those before it was cancelled."""
    return len(found.reply) if request.leaves is not None else len(whole.reply)


@pytest.mark.parametrize("executor", EXECUTORS)
@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 5),
    drafts=st.sampled_from([0, 2, AUTO]),
    piece=st.sampled_from([1, 5, 16, 64, 4_096]),
    limited=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_sequences_that_join_and_leave_are_what_they_are_alone(executor, seed, count, drafts, piece, limited, dtype):
    """Tokens and log-probabilities, to the bit where the executor is exact. Where it is not, in fp32 only, up to the
    first token that another was near to."""
    chance = random.Random(seed)
    model = build({**draw_fields(chance.choice), "num_nextn_predict_layers": 1}, seed).to(dtype)
    requests = [request(chance, 150) for _ in range(count)]
    how: dict[str, Any] = {"pages": max(pages_of(r.make().end) for r in requests) + 1} if limited else {}
    with pytest.MonkeyPatch.context() as patch:
        if executor == "modules":
            use_modules(patch)
            model = model.float()
        elif executor == "one by one":
            use_executor(patch, lambda model, pool: OneByOne(model))
        else:
            if not is_compiled(small_model(num_nextn_predict_layers=1)):
                pytest.skip("no exact kernels here")
            assume(is_compiled(model))
        whole = [alone(model, r, Drafts(0), piece) for r in requests]
        found = together(model, requests, Drafts(drafts), piece, **how)
    for r, expected, sequence in zip(requests, whole, found, strict=True):
        length = cut(r, expected, sequence)
        if executor != "modules":
            assert sequence.reply == expected.reply[:length]
            assert sequence.logprobs == expected.logprobs[:length]
        else:
            assert_close(sequence, expected, length)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixteen_sequences_of_a_hundred_to_two_thousand_tokens(dtype):
    """Different sampling, joining and leaving at random: every token and log-probability to the bit."""
    chance, model = random.Random(0), small_model(num_nextn_predict_layers=1, max_position_embeddings=4_096).to(dtype)
    if not is_compiled(model):
        pytest.skip("no exact kernels here")

    def one(number: int) -> Request:
        prompt = tokens(1, chance.randrange(100, 2_000), number)[0].tolist()
        sampling, new = SAMPLINGS[number % len(SAMPLINGS)], chance.randrange(1, 200)
        made = lambda: Sequence(prompt, sampling, max_new_tokens=new, seed=number, top_logprobs=2)  # noqa: E731
        return Request(chance.randrange(60), chance.choice([None, None, chance.randrange(60, 200)]), made)

    requests = [one(number) for number in range(16)]
    for drafts in (Drafts(0), Drafts(2)):
        found = together(model, requests, drafts, 512)
        for r, sequence in zip(requests, found, strict=True):
            expected = alone(model, r, Drafts(0), 512)
            length = cut(r, expected, sequence)
            assert sequence.reply == expected.reply[:length] and sequence.logprobs == expected.logprobs[:length]


def assert_close(found: Sequence, expected: Sequence, length: int) -> None:
    for at, (one, other) in enumerate(zip(found.logprobs, expected.logprobs[:length], strict=False)):
        assert [value for _, value in one.top] == pytest.approx([value for _, value in other.top], abs=2e-4)
        if one.id != other.id:  # another was near: from here on it is another text
            assert at >= 0 and one.logprob == pytest.approx(dict(other.top).get(one.id, one.logprob), abs=2e-4)
            return
        assert one.logprob == pytest.approx(other.logprob, abs=2e-4)
    assert len(found.reply) == length


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.sampled_from([1, 3, 40, PAGE - 1, PAGE, PAGE + 5, 150]), min_size=1, max_size=4),
    width=st.integers(1, 3),
    prompts=st.integers(0, 2),
)
@torch.no_grad()
def test_a_step_of_pages_is_that_of_a_cache(seed, lengths, width, prompts):
    """States, logits, drafts and what is cached, of sequences with different numbers of tokens and of pieces of prompts
    beside them, against the model with transformers' own cache for each."""
    model = build({**draw_fields(random.Random(seed).choice), "num_nextn_predict_layers": 1}, seed)
    pool, executor = Pool(model.config, torch.float32, torch.device("cpu")), ModuleExecutor(model)
    assembler, tables, caches = Assembler(torch.device("cpu")), [], []
    for number, length in enumerate(lengths):
        table, ids = pool.open(), tokens(1, length, number)
        pool.grow(table, length + 10)
        first = assembler.batch([table], [ids[0].tolist()], [0], [0], [length], prompts=1)
        hidden = executor.step(first).states
        executor.draft(first, hidden)
        tables.append(table)
        caches.append(DynamicCache())
        states = model.model(ids, past_key_values=caches[-1]).last_hidden_state
        model.model.draft(states, ids, caches[-1])
        assert torch.equal(hidden, states[0]), "prompts have the bits of transformers"
    prompts = min(prompts, len(lengths))
    new = [tokens(1, 7 if b < prompts else width, 50 + b)[0].tolist() for b in range(len(lengths))]
    counts = [len(ids) for ids in new]
    batch = assembler.batch(tables, new, lengths, [min(2, n) for n in counts], counts, prompts)
    step = executor.step(batch)
    drafted = executor.draft(batch, step.states)
    states, logits, own = [], [], []
    for ids, cache, length in zip(new, caches, lengths, strict=True):
        made = model.model(torch.tensor([ids]), past_key_values=cache).last_hidden_state
        states.append(made[0])
        logits.append(model.lm_head(made[0, -2:]))
        own.append(model.model.draft(made, torch.tensor([ids]), cache)[0])
        assert cache.get_seq_length() == length + len(ids)
    assert torch.allclose(step.states, torch.cat(states), atol=1e-4)
    assert torch.allclose(step.logits, torch.cat(logits), atol=1e-4)
    assert torch.equal(step.best, step.logits.argmax(-1))
    assert torch.allclose(drafted.states, torch.cat(own), atol=1e-4)
    for table, cache, length, count in zip(tables, caches, lengths, counts, strict=True):
        held = torch.cat(table.pages, dim=1)[:, : length + count]
        for layer, expected in zip(held, cache.layers, strict=True):
            assert torch.allclose(layer, torch.cat([expected.keys, expected.values], -1)[0, 0], atol=1e-4)


def test_what_is_computed_follows_from_the_role_alone() -> None:
    """A piece of one token is a prompt's beside replies of one token."""
    model, roles = small_model(num_nextn_predict_layers=1), []

    class Noted(Watched):
        def step(self, batch):
            roles.append((batch.prompts, [batch.starts[b + 1] - batch.starts[b] for b in range(len(batch.cached))]))
            return super().step(batch)

    with pytest.MonkeyPatch.context() as patch:
        use_executor(patch, lambda *given: Noted(executor_for(*given)))
        loop = Loop(model)
        for prompt in ([3, 4, 5], [6]):
            loop.add(Sequence(prompt, GREEDY, max_new_tokens=4))
        loop.step()
        loop.step()
        loop.add(Sequence([7], GREEDY, max_new_tokens=4))
        loop.step()
        loop.step()
    assert roles == [(2, [3, 1]), (0, [1, 1]), (1, [1, 1, 1]), (0, [1, 1, 1])]


def page_tensors(shape: tuple[int, ...]) -> list[torch.Tensor]:
    gc.collect()
    return [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == shape]


def test_memory_is_the_pages_in_use() -> None:
    """Within 2% of what the tokens in them take, but for the ends of last pages; gone once a sequence is cancelled."""
    model = small_model(num_nextn_predict_layers=1)
    loop = Loop(model)
    assert loop.pool is not None
    sequences = [Sequence(tokens(1, n, n)[0].tolist(), GREEDY, max_new_tokens=9) for n in (1, PAGE, 130, 500)]
    for sequence in sequences:
        loop.add(sequence)
    for _ in range(3):
        loop.step()
    pages = page_tensors(loop.pool.shape)
    assert len(pages) == loop.pool.in_use == sum(pages_of(s.cached) for s in sequences)
    assert all(page.data_ptr() % 64 == 0 and page.is_contiguous() for page in pages)
    held = sum(page.untyped_storage().nbytes() for page in pages)
    assert held == loop.pool.nbytes == loop.pool.page_bytes * len(pages)
    del pages
    loop.cancel(sequences[3])
    assert len(page_tensors(loop.pool.shape)) == loop.pool.in_use == sum(pages_of(s.cached) for s in sequences[:3])
    loop.cancel(sequences[3])  # nothing more happens
    assert len(loop) == 3


def test_nothing_is_copied_when_a_sequence_leaves() -> None:
    loop = Loop(small_model())
    sequences = [Sequence(tokens(1, n, n)[0].tolist(), GREEDY, max_new_tokens=9) for n in (70, 5, 200)]
    for sequence in sequences:
        loop.add(sequence)
    loop.step()
    tables = [s.table for s in sequences]
    before = [list(table.addresses) for table in tables if table is not None]
    loop.cancel(sequences[1])
    loop.step()
    assert tables[0] is not None and tables[0].addresses == before[0]
    assert tables[2] is not None and tables[2].addresses == before[2]
    assert tables[2].tensor.tolist() == [before[2]] == [[page.data_ptr() for page in tables[2].pages]]


def test_sequences_wait_for_pages() -> None:
    """One after the other where two do not fit; what could never fit is refused."""
    model = small_model()
    loop = Loop(model, pages=3)
    made = [Sequence(tokens(1, 100, n)[0].tolist(), GREEDY, max_new_tokens=30) for n in range(2)]
    for sequence in made:
        loop.add(sequence)
    loop.step()
    assert made[0].reply and made[1].table is None
    while made[0].running:
        loop.step()
    loop.step()
    assert made[1].reply
    with pytest.raises(ValueError, match="need 4 pages, and the pool has 3"):
        loop.add(Sequence([2] * 200, GREEDY, max_new_tokens=10))


def test_a_pool_with_a_limit() -> None:
    config = small_model().config
    pool = Pool(config, torch.bfloat16, torch.device("cpu"), limit=3)
    assert pool.shape == (3, PAGE, config.kv_lora_rank + config.qk_rope_head_dim)
    table = pool.open(PAGE + 1)
    assert pool.can_allocate(1) and not pool.can_allocate(2)
    one = [pool.allocate()]
    with pytest.raises(PoolFull, match="All 3 pages"):
        pool.allocate()
    pool.grow(table, PAGE + 1)
    assert (pool.in_use, pool.reserved) == (3, 0)
    with pytest.raises(PoolFull):
        pool.grow(table, 2 * PAGE + 1)
    pool.free(one)
    pool.close(table)
    assert (pool.in_use, pool.reserved, pool.nbytes, one, table.pages) == (0, 0, 0, [], [])


def test_a_parked_sequence_goes_on_where_it_was() -> None:
    """While its prompt is read and while it replies; its pages stay meanwhile."""
    model, prompt = small_model(num_nextn_predict_layers=1), tokens(1, 100)[0].tolist()
    whole = alone(model, Request(0, None, lambda: Sequence(prompt, GREEDY, max_new_tokens=9)), Drafts(0), 16)
    loop = Loop(model, Drafts(2), prefill_tokens=16)
    parked, other = (Sequence(prompt, GREEDY, max_new_tokens=9) for _ in range(2))
    loop.add(parked)
    loop.step()
    loop.park(parked)
    loop.add(other)
    loop.step()
    assert loop.pool is not None and parked.cached == 16 and loop.pool.in_use == 2
    loop.resume(parked)
    while len(parked.reply) < 3:
        loop.step()
    loop.park(parked)
    while len(loop):
        loop.step()
    assert loop.pool.in_use == len(parked.table.pages if parked.table else ()) > 0
    loop.resume(parked)
    while len(loop):
        loop.step()
    assert parked.reply == other.reply == whole.reply and loop.pool.in_use == 0


class Fails(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise KeyError("no such state")


@pytest.mark.parametrize("drafts", [0, 2])
def test_an_error_of_one_sequence_is_its_own(drafts) -> None:
    """The others go on; ``decode`` raises it."""
    model = small_model(num_nextn_predict_layers=1)
    loop, good = Loop(model, Drafts(drafts)), Sequence([3, 4], GREEDY, max_new_tokens=9)
    bad = Sequence([5], GREEDY, max_new_tokens=9, processors=[Fails()])
    for sequence in (bad, good):
        loop.add(sequence)
    found = loop.step()
    assert found[bad] == [] and isinstance(bad.error, KeyError) and not bad.running and len(loop) == 1
    while len(loop):
        loop.step()
    assert good.reply == replies(model, [[3, 4]], GREEDY, max_new_tokens=9)[0] and good.error is None
    assert loop.pool is not None and loop.pool.nbytes == 0
    with pytest.raises(KeyError, match="no such state"):
        replies(model, [[3, 4], [5]], GREEDY, processors=[[], [Fails()]], drafts=Drafts(drafts))


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_step_that_failed_can_be_tried_again(monkeypatch, drafts) -> None:
    model, prompts = small_model(num_nextn_predict_layers=1), [[3, 4, 5], [6]]
    expected = replies(model, prompts, GREEDY, max_new_tokens=9)
    calls = []

    class Interrupted(Watched):
        def step(self, batch):
            calls.append(1)
            if len(calls) in (1, 3, 4):
                raise RuntimeError("out of memory")
            return super().step(batch)

    use_executor(monkeypatch, lambda model, pool: Interrupted(ModuleExecutor(model)))
    loop, sequences = Loop(model, Drafts(drafts)), [Sequence(p, GREEDY, max_new_tokens=9) for p in prompts]
    for sequence in sequences:
        loop.add(sequence)
    failed = 0
    while len(loop):
        try:
            loop.step()
        except RuntimeError:
            failed += 1
    assert failed == 3 and [s.reply for s in sequences] == expected


def test_the_documentations_example(capsys) -> None:
    text = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")
    example = text[text.index("```python\nfrom axk1.generation.batch") :].split("```")[1].removeprefix("python\n")
    exec(example, {"model": small_model()})
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("False [")
        and lines[1].startswith("True [")
        and lines[-1].endswith("False")
        and len(lines) >= 19
    )


@pytest.mark.parametrize("sampling", SAMPLINGS[:3])
def test_scores_that_are_not_finite_end_a_reply(sampling) -> None:
    model = small_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    loop, sequences = Loop(model), [Sequence(prompt, sampling, max_new_tokens=3) for prompt in ([3, 7, 4], [3, 4])]
    for sequence in sequences:
        loop.add(sequence)
    loop.step()
    assert "not finite" in str(sequences[0].error) and sequences[1].error is None and len(sequences[1].reply) == 1


def test_a_model_without_a_module_makes_no_drafts() -> None:
    with pytest.raises(ValueError, match="no MTP module"):
        Loop(small_model(), Drafts(1))


def test_an_empty_loop() -> None:
    assert Loop(small_model()).step() == {}
