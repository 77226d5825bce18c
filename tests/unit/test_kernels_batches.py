"""Paged batches on the compiled kernels: every sequence gets the bits that it has alone, whatever joins and leaves."""

import copy
import random
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.generation.batch import Assembler
from axk1.generation.pages import Pool, Table
from axk1.kernels.batch import Step
from axk1.kernels.dispatch import executor
from axk1.kernels.draft_head import draft_head
from axk1.modeling.moe import AXK1Router

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
DTYPES = [torch.float32, torch.bfloat16]


def make_model(dtype: torch.dtype, **fields: Any) -> AXK1ForCausalLM:
    fields = {"num_hidden_layers": 3, "initializer_range": 0.1, "num_nextn_predict_layers": 1, **fields}
    torch.manual_seed(0)
    model = AXK1ForCausalLM(AXK1Config.preset("nano", **fields)).eval()
    for router in (module for module in model.modules() if isinstance(module, AXK1Router)):
        router.e_score_correction_bias.normal_(std=0.1)
    return model.to(dtype)  # pyright: ignore[reportArgumentType]


MODELS: dict[torch.dtype, Any] = {dtype: make_model(dtype) for dtype in DTYPES}


class Paged:
    """Steps by hand: sequences with pages, one executor."""

    def __init__(self, model: Any) -> None:
        self.pool = Pool(model.config, model.dtype, torch.device("cpu"))
        with torch.no_grad():
            found = executor(model, model.dtype)
        assert found is not None
        self.executor: Any = found
        self.assembler = Assembler(torch.device("cpu"))

    def open(self) -> Table:
        return self.pool.open()

    def batch(self, tables: list[Table], ids: list[list[int]], cached: list[int], **given: Any) -> Any:
        for table, new, before in zip(tables, ids, cached, strict=True):
            self.pool.grow(table, before + len(new) + 8)
        wanted = given.pop("wanted", [len(new) for new in ids])
        return self.assembler.batch(tables, ids, cached, wanted, **given)

    def step(self, *given: Any, **more: Any) -> Step:
        return self.executor.step(self.batch(*given, **more))


def numbers(count: int, seed: int, most: int = 6_000) -> list[int]:
    return [random.Random(seed * 1_000 + i).randrange(most) for i in range(count)]


def rows(table: Table, tokens: int) -> Tensor:
    """Latents of the first ``tokens`` tokens, ``[layers, tokens, W]``."""
    return torch.cat(table.pages, dim=1)[:, :tokens]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_steps_are_those_of_the_plain_modules(dtype: torch.dtype) -> None:
    """A prompt, more of it, single tokens; the MTP module over the states."""
    model, paged = MODELS[dtype], Paged(MODELS[dtype])
    ids, table = numbers(90, 1), paged.open()
    pieces = [(0, 40, 1), (40, 85, 1), (85, 86, 0), (86, 90, 0)]
    steps = [paged.step([table], [ids[a:b]], [a], prompts=prompt) for a, b, prompt in pieces]
    exact = copy.deepcopy(model).float()
    outputs = exact(input_ids=torch.tensor([ids]), use_cache=False, output_mtp_logits=True)
    states = exact.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    found, logits = torch.cat([step.states for step in steps]).float(), torch.cat([step.logits for step in steps])
    median = (found - states).abs().median()
    assert median < (1e-5 if dtype == torch.float32 else 0.05)
    assert (logits - outputs.logits[0]).abs().median() < (1e-5 if dtype == torch.float32 else 0.05)
    hidden = torch.cat([step.states for step in steps])[:-1]
    drafted = paged.executor.draft(paged.batch([table], [ids[1:]], [0], prompts=1), hidden)
    assert (drafted.logits - outputs.mtp_logits[0][0, :-1]).abs().median() < (1e-5 if dtype == torch.float32 else 0.05)
    with pytest.raises(ValueError, match="Token 10000000 is not in the vocabulary"):
        paged.step([table], [[10_000_000]], [90])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    replies=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_bits_depend_on_the_sequence_alone(dtype: Any, lengths: Any, cuts: Any, replies: Any, threads: int, seed: int):
    """Not on neighbours, where a prompt is cut, how many tokens of a reply are checked at once, or threads."""
    paged, before = Paged(MODELS[dtype]), torch.get_num_threads()
    prompts = [numbers(n, seed + i) for i, n in enumerate(lengths)]
    tails = [numbers(n, 50 + seed + i) for i, n in zip(range(len(prompts)), replies, strict=False)]
    alone = []
    for prompt, tail in zip(prompts, tails, strict=True):
        table = paged.open()
        steps = [paged.step([table], [prompt], [0], prompts=1, wanted=[1])]
        steps += [paged.step([table], [[token]], [len(prompt) + i]) for i, token in enumerate(tail)]
        alone.append((torch.cat([s.logits for s in steps]), rows(table, len(prompt) + len(tail))[:3]))
    torch.set_num_threads(threads)
    try:
        tables, done, logits = [paged.open() for _ in prompts], [0] * len(prompts), [[] for _ in prompts]
        order, waiting = 0, list(range(len(prompts)))
        replying: list[int] = []
        while waiting:
            cut = cuts[order % len(cuts)]
            order += 1
            reading = waiting[:2]
            ids = [prompts[b][done[b] : done[b] + cut] for b in reading]
            others = [b for b in replying if done[b] < len(prompts[b]) + len(tails[b])]
            singles = [[tails[b][done[b] - len(prompts[b])]] for b in others]
            everyone = [*reading, *others]
            cached = [done[b] for b in everyone]
            step = paged.step(
                [tables[b] for b in everyone],
                [*ids, *singles],
                cached,
                prompts=len(reading),
                wanted=[1] * len(everyone),
            )
            for at, (b, new) in enumerate(zip(everyone, [*ids, *singles], strict=True)):
                done[b] += len(new)
                if done[b] >= len(prompts[b]):
                    logits[b].append(step.logits[at : at + 1])
            replying += [b for b in reading if done[b] == len(prompts[b])]
            waiting = [b for b in waiting if done[b] < len(prompts[b])]
        rest = [b for b in replying if done[b] < len(prompts[b]) + len(tails[b])]
        if rest:  # all that is left at once, as drafts are checked
            ids = [tails[b][done[b] - len(prompts[b]) :] for b in rest]
            step = paged.step([tables[b] for b in rest], ids, [done[b] for b in rest])
            for b, part in zip(rest, step.logits.split([len(new) for new in ids]), strict=True):
                logits[b].append(part)
    finally:
        torch.set_num_threads(before)
    for (expected, latents), found, table in zip(alone, logits, tables, strict=True):
        assert torch.equal(torch.cat(found), expected)
        assert torch.equal(rows(table, latents.shape[1])[:3], latents)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_states_that_nobody_wants_change_nothing(dtype: torch.dtype) -> None:
    paged = Paged(MODELS[dtype])
    for prompts in (0, 2):
        ids = [numbers(20, 3), numbers(9, 4)]
        every, few = [paged.open() for _ in ids], [paged.open() for _ in ids]
        whole = paged.step(every, ids, [0, 0], prompts=prompts)
        last = paged.step(few, ids, [0, 0], prompts=prompts, wanted=[2, 0])
        assert torch.equal(last.logits, whole.logits[18:20]) and torch.equal(last.states, whole.states[18:20])
        for one, other in zip(every, few, strict=True):
            assert torch.equal(rows(one, 9)[:3], rows(other, 9)[:3])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    waiting=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    count=st.integers(1, 5),
    few=st.booleans(),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_a_step_with_drafts_is_its_parts(dtype: Any, waiting: list[int], count: int, few: bool, seed: int) -> None:
    """The module over what waits, each draft the best token of its logits, the trunk over all: bit for bit."""
    model = MODELS[dtype]
    chosen = torch.randperm(6_000, generator=torch.Generator().manual_seed(seed))[:90].tolist() if few else None
    model.generation_config.draft_token_ids = chosen
    paged = Paged(model)
    ids = [numbers(12 + n + 1, seed + i) for i, n in enumerate(waiting)]

    def prepared() -> tuple[list[Table], Tensor]:
        tables = [paged.open() for _ in ids]
        first = paged.step(tables, [some[:12] for some in ids], [0] * len(ids), prompts=len(ids))
        paged.executor.draft(
            paged.batch(tables, [some[1:13] for some in ids], [0] * len(ids), prompts=len(ids)), first.states
        )
        return tables, paged.step(tables, [some[12:-1] for some in ids], [12] * len(ids)).states

    def module(tables: list[Table], new: list[list[int]], cached: list[int]) -> Any:
        return paged.batch(tables, new, cached, wanted=[1] * len(new), states=[1] * len(new))

    tables, states = prepared()
    lengths = [len(some) - 1 for some in ids]
    ahead = [[some[-1]] + [0] * count for some in ids]
    mine = module(tables, [some[13:] for some in ids], [12] * len(ids))
    found = paged.executor.speculate(mine, states, paged.batch(tables, ahead, lengths), count)
    assert found is not None

    others, again = prepared()
    assert torch.equal(again, states)
    draft = paged.executor.draft(module(others, [some[13:] for some in ids], [12] * len(ids)), states)
    drafts = []
    for made in range(count):
        if chosen is not None:
            assert draft.logits.isfinite().sum() == 90 * len(ids) and draft.logits[..., chosen].isfinite().all()
        assert torch.equal(draft.best, draft.logits.argmax(-1))
        drafts.append(draft.best)
        if made + 1 < count:
            where = [length + made for length in lengths]
            draft = paged.executor.draft(module(others, [[int(t)] for t in drafts[-1]], where), draft.states)
    expected = torch.cat([torch.tensor([[some[-1]] for some in ids]), torch.stack(drafts, 1)], 1)
    step = paged.step(others, expected.tolist(), lengths)
    assert torch.equal(found[0], expected)
    assert torch.equal(step.best, step.logits.argmax(-1))
    assert all(torch.equal(one, other) for one, other in zip(found[1], step, strict=True))


@torch.no_grad()
def test_a_short_head_gives_the_whole_ones_logits() -> None:
    """The first of equal logits is the best, as for PyTorch."""
    model = copy.deepcopy(MODELS[torch.bfloat16])
    model.lm_head.weight[40:50] = model.lm_head.weight[40]
    ids = list(range(30, 42))
    for chosen in (None, [45, 44, 300, 7, 41]):
        model.generation_config.draft_token_ids = chosen
        paged = Paged(model)
        table = paged.open()
        states = paged.step([table], [ids], [0]).states
        draft, head = paged.executor.draft(paged.batch([table], [ids], [0]), states), draft_head(model)
        assert torch.equal(draft.best, draft.logits.argmax(-1))
        tokens = list(range(model.config.vocab_size)) if chosen is None else chosen
        expected = torch.full_like(draft.logits, -torch.inf)
        expected[..., tokens] = model.lm_head(draft.states)[..., tokens].float()
        torch.testing.assert_close(draft.logits, expected, atol=0.02, rtol=0.01)
        if head is not None:
            torch.testing.assert_close(head(draft.states).float(), expected, atol=0.02, rtol=0.01)


@torch.no_grad()
def test_scores_that_are_not_finite_are_named() -> None:
    """As the best one, which whoever chooses looks at."""
    model = copy.deepcopy(MODELS[torch.float32])
    model.lm_head.weight[77, 3] = torch.nan
    paged = Paged(model)
    step = paged.step([paged.open()], [[1, 2, 3]], [0])
    assert step.best.tolist() == [77] * 3 and step.logits[:, 77].isnan().all()


def test_executors_are_made_for_plain_models_only() -> None:
    def made(change: Any) -> Any:
        model = copy.deepcopy(MODELS[torch.float32])
        change(model)
        with torch.no_grad():
            return executor(model, torch.float32)

    assert made(lambda m: None) is not None
    for change in (
        lambda m: m.train(),
        lambda m: m.set_attn_implementation("eager"),
        lambda m: setattr(m.config, "output_hidden_states", True),
        lambda m: m.model.register_forward_hook(lambda module, inputs, output: None),
        lambda m: m.lm_head.register_forward_pre_hook(lambda module, inputs: None),
        lambda m: setattr(m, "lm_head", nn.Linear(m.config.hidden_size, m.config.vocab_size)),
        lambda m: m.lm_head.half(),
    ):
        assert made(change) is None
