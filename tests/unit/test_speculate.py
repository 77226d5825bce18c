"""MTP speculation: drafts, right or wrong, change neither tokens nor distributions, nor what the caches hold."""

from typing import Any

import pytest
import torch
from decoding import OneByOne, Watched, chi_square_fits, is_compiled, replies, use_executor, use_modules
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import make_scripted_model
from tiny import PAD, ROPES, VOCAB, build, random_fields, tokens

from axk1.generation import speculate
from axk1.generation.batch import Sequence
from axk1.generation.executors import ModuleExecutor
from axk1.generation.gate import Gate
from axk1.generation.history import History
from axk1.generation.pages import PAGE
from axk1.generation.sampling import GREEDY, Sampling, Scorer
from axk1.generation.speculate import AUTO, Drafter, Drafts, DraftStatistics, accept, agreeing
from axk1.modeling.cache import LatentCache

PROMPTS = [tokens(1, length, seed=length)[0].tolist() for length in (7, 1, 12, 3)]
SAMPLED = Sampling(temperature=1.0, seed=3)
SEEDS = [21, 22, 23, 24]
EVERYTHING = Sampling(
    temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=1, repetition_penalty=1.2,
    presence_penalty=0.4, frequency_penalty=0.2, logit_bias={5: 1.5},
)  # fmt: skip


def drawn(seed: int, **overrides: Any) -> Any:
    fields = random_fields(seed, rope_parameters=dict(ROPES[seed % 4]), num_nextn_predict_layers=1)
    return build(fields, seed, **overrides)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, EVERYTHING])
@pytest.mark.parametrize("count", [1, 2, 5, AUTO])
@pytest.mark.parametrize("seed", range(2))
def test_drafts_change_no_token(seed, count, sampling):
    """One prompt and several, greedy and seeded, with every penalty; replies end by a stop id at different steps."""
    model, drafts = drawn(seed), Drafts(count)
    plain = [
        replies(model, [prompt], sampling, seeds=[own], max_new_tokens=16)[0]
        for prompt, own in zip(PROMPTS, SEEDS, strict=True)
    ]
    stop = {plain[0][4], plain[2][9]}
    cut = [row[: next((at for at, token in enumerate(row, 1) if token in stop), None)] for row in plain]
    options: dict[str, Any] = {"stop_ids": stop, "max_new_tokens": 16}
    for prompt, own, expected in zip(PROMPTS, SEEDS, cut, strict=True):
        assert replies(model, [prompt], sampling, seeds=[own], drafts=drafts, **options) == [expected]
    statistics = DraftStatistics()
    assert replies(model, PROMPTS, sampling, seeds=SEEDS, drafts=drafts, statistics=statistics, **options) == cut
    if sampling is not GREEDY and count > 0:
        assert statistics.accepted > 0  # a random model's greedy drafts are wrong; draws share their noise


class Script:
    """Replaces the module's drafts: right where ``pattern`` says so, counted through all drafts made. Before the first
    draft of a step, both caches are checked against a run from the start."""

    def __init__(self, model: Any, plain: list[list[int]], pattern: list[bool]):
        self.model, self.plain, self.pattern, self.made = model, plain, pattern, 0

    def draw(self, s: Sequence, ahead: int) -> None:
        if not ahead:
            self.check(s)
        number = PROMPTS.index(s.tokens[: s.history.prompt])
        place = len(s.tokens) - s.history.prompt + ahead
        right = self.plain[number][place] if place < len(self.plain[number]) else 2
        self.made += 1
        s.history.drafts.append(right if self.pattern[self.made % len(self.pattern)] else (right + 1) % VOCAB)

    def check(self, s: Sequence) -> None:
        count = self.model.config.num_hidden_layers + 1
        assert s.module == s.cached == len(s.tokens) - 1 and s.table is not None
        assert len(s.table.pages) <= -(-s.end // PAGE)
        ids, fresh = torch.tensor([s.tokens]), LatentCache(self.model.config)
        states = self.model.model(ids[:, :-1], past_key_values=fresh, use_cache=True).last_hidden_state
        self.model.model.draft(states, ids[:, 1:], fresh)
        held = torch.cat(s.table.pages, dim=1)[:, : s.cached]
        for layer, expected in zip(held, fresh.layers[:count], strict=True):
            assert torch.allclose(layer, expected.joint[0], atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    pattern=st.lists(st.booleans(), min_size=1, max_size=40),
    count=st.integers(1, 4),
    batch=st.integers(1, 4),
    new=st.integers(1, 14),
)
def test_any_pattern_of_right_and_wrong_drafts(pattern, count, batch, new):
    """Sequences accept different numbers at a step, each by itself; those that have ended leave."""
    model = drawn(1)
    with pytest.MonkeyPatch.context() as patch:
        plain = replies(model, PROMPTS[:batch], GREEDY, max_new_tokens=new)
        script = Script(model, plain, pattern)
        patch.setattr(Drafter, "_draft", lambda self, s, logits, best, ahead, asked: script.draw(s, ahead) is None)
        patch.setattr(Drafter, "speculate", lambda *_: None)  # compiled steps make their drafts themselves
        stop = {plain[-1][-1]}
        cut = [row[: next((at for at, token in enumerate(row, 1) if token in stop), None)] for row in plain]
        statistics = DraftStatistics()
        found = replies(
            model, PROMPTS[:batch], GREEDY, max_new_tokens=new, stop_ids=stop, drafts=Drafts(count),
            statistics=statistics,
        )  # fmt: skip
    assert found == cut
    assert 1 + sum(statistics.tokens) / batch >= max(map(len, cut)) / batch
    assert statistics.accepted <= statistics.drafted == sum(statistics.drafted_at)


def test_right_drafts_save_steps_and_are_counted():
    scripted = make_scripted_model({token: token + 1 for token in range(2, 90)})
    statistics = DraftStatistics()
    found = replies(scripted, [[10]], GREEDY, max_new_tokens=13, drafts=Drafts(3), statistics=statistics)
    assert found == [list(range(11, 24))]
    assert (statistics.steps, statistics.drafted, statistics.accepted) == (3, 9, 9)
    assert statistics.acceptance == 1.0 and statistics.acceptance_at == [1.0, 1.0, 1.0]
    assert statistics.tokens == [0, 12] and statistics.rates[0] is None and statistics.rates[1]


def test_nothing_behind_a_stop_id_and_no_more_than_asked_for():
    scripted = make_scripted_model({token: token + 1 for token in range(2, 90)})
    assert replies(scripted, [[10], [12]], GREEDY, stop_ids={15}, drafts=Drafts(4)) == [
        [11, 12, 13, 14, 15],
        [13, 14, 15],
    ]
    for new in range(1, 9):
        found = replies(scripted, [[10], [12]], GREEDY, max_new_tokens=new, drafts=Drafts(4))
        assert found == [list(range(11, 11 + new)), list(range(13, 13 + new))]


def test_drafts_are_checked_against_the_models_own_draft_by_draft():
    """``draft`` applied again to its own state and token: what the loop does, written out."""
    model, prompt = drawn(0), PROMPTS[0]
    cache = LatentCache(model.config)
    with torch.no_grad():
        states = model.model(torch.tensor([prompt]), past_key_values=cache, use_cache=True).last_hidden_state
        token = int(model.lm_head(states)[0, -1].argmax())
        following = torch.tensor([[*prompt[1:], token]])
        expected, state = [], model.model.draft(states, following, cache)[:, -1:]
        for _ in range(3):
            expected.append(int(model.lm_head(state).argmax()))
            state = model.model.draft(state, torch.tensor([[expected[-1]]]), cache)
    found, propose = [], Drafter.propose

    def watched(self: Drafter, sequences: list[Sequence], counts: list[int]) -> Any:
        asked = propose(self, sequences, counts)
        found.append((list(sequences[0].history.drafts), asked))
        return asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "propose", watched)
        patch.setattr(Drafter, "speculate", lambda *_: None)
        replies(model, [prompt], GREEDY, max_new_tokens=8, drafts=Drafts(3))
    assert found[0] == (expected, {})


def test_agreeing():
    assert [agreeing(drafts, [1, 2, 3, 4]) for drafts in ([1, 2, 3], [1, 9, 3], [9, 2, 3], [])] == [3, 1, 0, 0]


@pytest.mark.parametrize("executor", ["one by one", "compiled"])
@pytest.mark.parametrize("ids", [None, range(1, VOCAB, 2)])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_whole_steps_draft_what_their_parts_do(monkeypatch, batch, count, ids, executor):
    """A scripted model, half of whose tokens can be drafted or all, and a random one: tokens as without drafts, and as
    many accepted at each place as when the module is run on its own."""
    rises = make_scripted_model({token: token + 1 for token in range(2, 60)} | {60: 2})
    if executor == "one by one":
        use_executor(monkeypatch, lambda model, pool: OneByOne(model))
    elif not is_compiled(rises):
        pytest.skip("no compiled steps here")
    model: Any
    for model, start in ((rises, 10), (drawn(2), 3)):
        if ids is not None:
            model.generation_config.draft_token_ids = list(ids)
        prompts = [list(range(start + row, start + row + 4)) for row in range(batch)]
        plain = replies(model, prompts, GREEDY, max_new_tokens=20)
        whole, parts = DraftStatistics(), DraftStatistics()
        options: dict[str, Any] = {"max_new_tokens": 20, "drafts": Drafts(count)}
        with pytest.MonkeyPatch.context() as patch:
            if batch == 1:  # several may end with different numbers of drafts, which are made in parts
                patch.setattr(Drafter, "propose", None)
            assert replies(model, prompts, GREEDY, statistics=whole, **options) == plain
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Drafter, "speculate", lambda *_: None)
            assert replies(model, prompts, GREEDY, statistics=parts, **options) == plain
        assert (whole.accepted_at, whole.drafted_at, whole.steps) == (parts.accepted_at, parts.drafted_at, parts.steps)
        if model is rises:
            right = ids is None or batch == count == 1  # one odd token is followed by one that may be drafted
            assert whole.acceptance == 1.0 if right else 0 < whole.accepted < whole.drafted


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, EVERYTHING])
def test_a_part_of_the_vocabulary_to_draft_from_changes_no_token(sampling, compiled):
    model, options = drawn(0), {"max_new_tokens": 16, "seeds": SEEDS}
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            use_modules(patch)
        plain = replies(model, PROMPTS, sampling, **options)
        model.generation_config.draft_token_ids = [5, *range(20, 50)]
        proposed, propose = [], Drafter.propose

        def watched(self: Drafter, sequences: list[Sequence], counts: list[int]) -> Any:
            asked = propose(self, sequences, counts)
            proposed.extend(s.history.drafts for s in sequences)
            return asked

        patch.setattr(Drafter, "propose", watched)
        for count in (1, 3):
            assert replies(model, PROMPTS, sampling, drafts=Drafts(count), **options) == plain
    assert {token for drafts in proposed for token in drafts} <= {5, *range(20, 50)} and len(proposed) > 5


TARGET = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05, 0.0])


@pytest.mark.parametrize(
    "proposal",
    [
        TARGET,
        torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.5]),  # half of its drafts are impossible
        torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
        torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1, 0.0]),
    ],
)
def test_rejection_sampling_keeps_the_distribution(proposal):
    """First tokens are draws from the target; drafts stay as often as the theory says; the token behind the last draft
    is a draw from the target too."""
    torch.manual_seed(0)
    rows = 40_000
    probabilities = proposal.expand(rows, 2, 6)
    drafts = torch.multinomial(proposal, 2 * rows, replacement=True).view(rows, 2)
    found, accepted = accept(TARGET.log().expand(rows, 3, 6), drafts, probabilities)
    assert chi_square_fits(found[:, 0].bincount(minlength=6), TARGET)
    kept = float(torch.minimum(TARGET, proposal).sum())
    shares = torch.tensor([1 - kept, kept * (1 - kept), kept * kept])
    assert chi_square_fits(accepted.bincount(minlength=3), shares)
    for behind in (1, 2):
        chosen = found[accepted >= behind, behind]
        assert len(chosen) == 0 or chi_square_fits(chosen.bincount(minlength=6), TARGET)


def exact_distribution(model: Any, prompt: list[int], sampling: Sampling, length: int, vocabulary: int) -> torch.Tensor:
    """Probability of each reply of ``length`` tokens, ``[vocabulary ** length]``, by enumeration."""
    found = torch.ones(1, dtype=torch.float64)
    written: list[list[int]] = [[]]
    for _ in range(length):
        logits, scores = model(torch.tensor([prompt + w for w in written])).logits[:, -1], []
        for row, reply in zip(logits, written, strict=True):
            history = History(prompt, torch.device("cpu"))
            history.tokens += reply
            scores.append(Scorer(sampling)(row[None], history))
        found = (found[:, None] * torch.cat(scores).double().softmax(-1)).flatten()
        written = [[*w, token] for w in written for token in range(vocabulary)]
    return found


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("seeded", [False, True])
@torch.no_grad()
def test_replies_are_distributed_as_the_model_says(count, seeded):
    """Three tokens of a vocabulary of six, 216 replies: many of them drafted and checked, with penalties."""
    model = drawn(0, vocab_size=6, initializer_range=0.3)
    sampling = Sampling(temperature=1.2, top_p=0.93, presence_penalty=0.6, repetition_penalty=1.2)
    prompt, number = [2, 3, 5], 1_000
    torch.manual_seed(count)
    statistics = DraftStatistics()
    found = replies(
        model, [prompt] * number, sampling, max_new_tokens=3, drafts=Drafts(count), statistics=statistics,
        seeds=range(number) if seeded else None,
    )  # fmt: skip
    counts = (torch.tensor(found) @ torch.tensor([36, 6, 1])).bincount(minlength=6**3)
    assert chi_square_fits(counts, exact_distribution(model, prompt, sampling, 3, 6))
    assert count == 0 or 0.05 < (statistics.acceptance or 0) < 0.95


@pytest.fixture
def unsteady(monkeypatch):
    """A model whose best logits are close to each other, and arithmetic that gives other logits to a step of several
    tokens than to single ones: both by far more than rounding."""
    model = drawn(2)
    with torch.no_grad():
        model.lm_head.weight *= 0.02
    generator = torch.Generator().manual_seed(0)

    class Shaken(Watched):
        def step(self, batch):
            step = super().step(batch)
            if batch.prompts or len(batch.ids) == 1:
                return step
            logits = step.logits + 0.004 * (torch.rand(step.logits.shape, generator=generator) - 0.5)
            return step._replace(logits=logits, best=logits.argmax(-1))

    use_executor(monkeypatch, lambda model, pool: Shaken(ModuleExecutor(model)))
    return model


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=1.0, seed=3)])
def test_near_ties_are_decided_as_plain_decoding_does(unsteady, sampling):
    plain = replies(unsteady, PROMPTS[:1], sampling, max_new_tokens=150)
    for count in (1, 3):
        statistics = DraftStatistics()
        drafts = Drafts(count, tie_gap=0.005)
        found = replies(unsteady, PROMPTS[:1], sampling, max_new_tokens=150, drafts=drafts, statistics=statistics)
        assert found == plain
        assert statistics.replays > 0 or sampling is not GREEDY


def test_a_near_tie_after_the_prompt_reads_it_no_second_time(unsteady):
    statistics = DraftStatistics()
    drafts = Drafts(2, tie_gap=1e9)  # every token is near to another
    plain = replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=1)
    assert replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=1, drafts=drafts, statistics=statistics) == plain
    assert statistics.replays == 0
    plain = replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=9)
    assert replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=9, drafts=drafts, statistics=statistics) == plain
    assert statistics.replays == statistics.steps - 1 == 7  # the last makes no drafts


def test_fast_drafts_differ_only_where_two_tokens_are_near(unsteady):
    """Up to the first difference; from there on it is another text."""
    (plain,) = replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=150)
    gaps = []
    for count in (1, 2, 3, 4):
        statistics = DraftStatistics()
        drafts = Drafts(count, exact=False)
        (found,) = replies(unsteady, PROMPTS[:1], GREEDY, max_new_tokens=150, drafts=drafts, statistics=statistics)
        assert statistics.replays == 0
        at = next((at for at in range(150) if found[at] != plain[at]), None)
        if at is not None:
            logits = unsteady(torch.tensor([PROMPTS[0] + plain[:at]])).logits[0, -1].detach()
            gaps.append(float(logits.max() - logits[found[at]]))
    assert gaps and max(gaps) < 0.005


class Clock:
    """Seconds that only pass when the model runs: a step costs one, each token of it and each draft what is given."""

    def __init__(self, monkeypatch, model: Any, token: float, draft: float):
        self.now = 0.0
        forward, drafting = model.model.forward, model.model.draft
        use_modules(monkeypatch)
        monkeypatch.setattr(model.model, "forward", lambda **inputs: self.spend(inputs, token) or forward(**inputs))
        monkeypatch.setattr(model.model, "draft", lambda *args, **more: self.pass_(draft) or drafting(*args, **more))

    def spend(self, inputs: Any, token: float) -> None:
        self.pass_(1.0 + token * (inputs["input_ids"].shape[1] - 1))

    def pass_(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("token", "draft", "most"), [(0.0, 0.1, 4), (2.0, 0.1, 0)])
def test_automatic_drafts_are_made_while_they_pay(monkeypatch, token, draft, most):
    scripted = make_scripted_model({token: token + 1 for token in range(2, 300)} | {300: 2})
    clock, gate, statistics = Clock(monkeypatch, scripted, token, draft), Gate(), DraftStatistics()
    drafts = Drafts(AUTO, gate=gate, clock=clock)
    found = replies(scripted, [[10]], GREEDY, max_new_tokens=400, drafts=drafts, statistics=statistics)
    assert found == [[(8 + at) % 299 + 2 for at in range(1, 401)]]
    assert gate.choose(1) == most
    without, drafting = statistics.rates
    assert without and drafting and (drafting > without) == (most > 0)
    assert clock.now < 400 * (0.5 if most else 1.15)
    again = DraftStatistics()
    replies(scripted, [[10]], GREEDY, max_new_tokens=20, drafts=drafts, statistics=again)
    assert (again.drafted > 0) == (most > 0)  # what is known is not measured again


def test_the_module_catches_up_or_gives_up(monkeypatch):
    """Some steps without drafts are made up for; after too many the call goes on without the module."""
    monkeypatch.setattr(speculate, "WAITING_STEPS", 6)
    model = drawn(1)
    (plain,) = replies(model, PROMPTS[:1], GREEDY, max_new_tokens=30)
    chosen = iter([2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2] + [0] * 8 + [2] * 99)
    monkeypatch.setattr(Gate, "choose", lambda self, sequences: next(chosen))
    script, waiting = Script(model, [plain], [True]), []
    monkeypatch.setattr(Drafter, "_draft", lambda self, s, logits, best, ahead, asked: script.draw(s, ahead) is None)
    monkeypatch.setattr(Drafter, "speculate", lambda *_: None)
    follow = Drafter.follow

    def watched(self: Drafter, s: Sequence, states: torch.Tensor) -> None:
        follow(self, s, states)
        waiting.append((len(s.waiting), s.drafting))

    monkeypatch.setattr(Drafter, "follow", watched)
    found = replies(model, PROMPTS[:1], GREEDY, max_new_tokens=30, drafts=Drafts(AUTO))
    assert found == [plain]
    assert script.made == 6 and waiting[-1] == (0, False) and max(count for count, _ in waiting) <= 7


@pytest.mark.parametrize("count", [-2, 16])
def test_drafts_out_of_range(count):
    with pytest.raises(ValueError, match=f"drafts is {count}"):
        Drafts(count)


def test_a_model_without_a_module():
    model = drawn(0, num_nextn_predict_layers=0)
    assert replies(model, PROMPTS, GREEDY, drafts=Drafts(AUTO)) == replies(model, PROMPTS, GREEDY)
    with pytest.raises(ValueError, match="no MTP module"):
        replies(model, PROMPTS, GREEDY, drafts=Drafts(1))


def test_two_modules_draft_with_the_first():
    model = drawn(0, num_nextn_predict_layers=2)
    assert replies(model, PROMPTS, SAMPLED, drafts=Drafts(3)) == replies(model, PROMPTS, SAMPLED)


def test_padding_tokens_may_be_generated_too():
    """PAD in the reply is a token as any other."""
    scripted = make_scripted_model({5: PAD, PAD: 6, 6: 5})
    assert (
        replies(scripted, [[5], [9, 9, 5]], GREEDY, drafts=Drafts(2), max_new_tokens=7)
        == [[PAD, 6, 5, PAD, 6, 5, PAD]] * 2
    )


def test_what_the_documentation_says_about_the_released_model():
    """Bytes and gains of ``docs/decoding.md``, from the shapes of the configuration."""
    from pathlib import Path

    from axk1 import AXK1Config

    c = AXK1Config()
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    heads, layers = c.num_attention_heads, c.num_hidden_layers - 1
    mla = (
        c.hidden_size * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim)
        + c.q_lora_rank * heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
        + c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
        + heads * c.v_head_dim * c.hidden_size
    )
    head, moe = c.vocab_size * c.hidden_size, mla + expert + c.n_routed_experts * c.hidden_size
    fixed = mla + 3 * c.hidden_size * c.intermediate_size + layers * moe + head

    def touched(tokens: int) -> float:
        return c.n_routed_experts * (1 - (1 - c.num_experts_per_tok / c.n_routed_experts) ** tokens)

    def ratio(drafts: int, batch: int) -> float:
        module = moe + 2 * c.hidden_size**2 + touched(batch) * expert + head
        plain = fixed + layers * expert * touched(batch)
        return (fixed + layers * expert * touched(batch * (drafts + 1)) + drafts * module) / plain

    text = (Path(__file__).parents[2] / "docs" / "decoding.md").read_text(encoding="utf-8")
    for drafts in (1, 2, 3):
        gains = [sum(share**n for n in range(drafts + 1)) / ratio(drafts, 1) for share in (0.6, 0.85, 1.0)]
        cells = [f"{touched(drafts + 1):.2f}", f"{ratio(drafts, 1):.2f}", *(f"{gain:.2f}" for gain in gains)]
        assert f"| {drafts} | {' | '.join(cells)} |" in text
    sizes = (1, 8, 32, 128)
    for name, values in {
        "experts per layer, plain": [f"{touched(n):.1f}" for n in sizes],
        "with drafts": [f"{touched(2 * n):.1f}" for n in sizes],
        "bytes": [f"{ratio(1, n):.2f}" for n in sizes],
        "gain while reading is the bound": [f"{1.85 / ratio(1, n):.2f}" for n in sizes],
    }.items():
        assert f"| {name} | {' | '.join(values)} |" in text
