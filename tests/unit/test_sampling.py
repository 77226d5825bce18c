"""Scores and draws: the same numbers as transformers' ``generate``, each sequence by itself."""

import pytest
import torch
from decoding import Forbid, replies
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PAD, VOCAB, small_model, tokens
from transformers import GenerationConfig
from transformers.generation.logits_process import TopPLogitsWarper

from axk1.generation.history import History
from axk1.generation.sampling import GREEDY, Draws, Logprobs, Sampling, Scorer, TopP, choose, margins, row_seeds

OPTIONS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.2, "min_p": 0.2},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "logit_bias": {3: 4.0, 40: -2.5}},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.2, "logit_bias": {9: 1.0}},
]
CPU = torch.device("cpu")


def transformers_reply(model, prompt: list[int], sampling: Sampling, new: int) -> list[int]:
    """The same by ``generate``, its seed set as a user would."""
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    config = GenerationConfig(
        do_sample=not sampling.greedy,
        temperature=sampling.temperature or 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
        sequence_bias={(token,): bias for token, bias in sampling.logit_bias.items()} or None,
        max_new_tokens=new,
        pad_token_id=PAD,
    )
    return model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    vocabulary=st.sampled_from([1, 2, 60, 128, 129, 3_000]),
    positions=st.integers(1, 3),
    spread=st.sampled_from([0.0, 0.5, 2.0, 5.0, 20.0]),
    top_p=st.sampled_from([1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.999]),
    coarse=st.booleans(),
    forbidden=st.booleans(),
)
def test_top_p_is_that_of_transformers(seed, vocabulary, positions, spread, top_p, coarse, forbidden) -> None:
    """To the bit: flat and steep scores, equal ones, such that leave few tokens."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(positions, vocabulary, generator=generator)
    scores = scores.round() if coarse else scores
    if forbidden:
        scores[:, torch.rand(vocabulary, generator=generator) < 0.5] = -torch.inf
        scores[:, 0] = 1.0
    ids = torch.zeros(positions, 1, dtype=torch.int64)
    expected = TopPLogitsWarper(top_p)(ids, scores.clone())  # pyright: ignore[reportArgumentType]
    assert torch.equal(TopP(top_p)(ids, scores), expected)


def test_top_p_sorts_where_it_has_to(monkeypatch) -> None:
    """Not where a model is sure; NaN comes out as it does with transformers."""
    scores, warper, sorted_ = torch.randn(1, 5_000, generator=torch.Generator().manual_seed(0)), TopP(0.9), []
    monkeypatch.setattr(warper, "_sorting", lambda ids, scores: sorted_.append(1) or scores)
    for factor, times in ((9.0, 0), (0.1, 1), (torch.nan, 2)):
        warper(None, factor * scores)
        assert len(sorted_) == times


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 7])
def test_seeded_draws_are_those_of_transformers(options, seed):
    model, prompt = small_model(), tokens(1, 6, seed)[0].tolist()
    sampling = Sampling(seed=seed, **options)
    assert replies(model, [prompt], sampling) == [transformers_reply(model, prompt, sampling, 12)]


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_is_that_of_transformers(options):
    """Warpers do not touch greedy search, processors do."""
    model, prompt = small_model(), tokens(1, 6)[0].tolist()
    sampling = Sampling(**{**options, "temperature": 0.0})
    expected = transformers_reply(model, prompt, Sampling(**{**options, "temperature": 0.0, "top_k": 0}), 12)
    assert replies(model, [prompt], sampling) == [expected]


ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)


@settings(deadline=None, max_examples=40)
@given(
    prompts=st.lists(ids, min_size=1, max_size=4),
    written=st.lists(ids, min_size=4, max_size=4),
    ahead=st.integers(0, 2),
    positions=st.integers(1, 3),
)
def test_positions_are_scored_with_their_own_prefix(prompts, written, ahead, positions):
    """Several positions of a sequence at once, against one at a time."""
    sampling = Sampling(
        temperature=0.8,
        top_k=30,
        top_p=1.0,
        repetition_penalty=1.4,
        presence_penalty=0.7,
        frequency_penalty=0.3,
        logit_bias={5: 1.5},
    )
    drafts = tokens(len(prompts), ahead + positions)
    processors = [[Forbid(row + 1)] if row % 2 else [] for row in range(len(prompts))]
    logits = torch.randn(len(prompts), positions, VOCAB, generator=torch.Generator().manual_seed(0))
    for row, prompt in enumerate(prompts):
        history = History(prompt, CPU)
        history.tokens += written[row]
        history.drafts = drafts[row].tolist()
        found = Scorer(sampling, processors[row])(logits[row], history, ahead)
        for t in range(positions):
            reply = written[row] + drafts[row, : ahead + t].tolist()
            expected = logits[row, t].clone()
            expected[5] += 1.5
            seen = torch.tensor(sorted(set(prompt + reply)))
            expected[seen] = torch.where(expected[seen] < 0, expected[seen] * 1.4, expected[seen] / 1.4)
            for token in set(reply):
                expected[token] -= 0.7 + 0.3 * reply.count(token)
            for processor in processors[row]:
                expected = processor(torch.tensor([prompt + reply]), expected[None])[0]  # pyright: ignore[reportArgumentType]
            expected = expected / 0.8
            expected[expected < expected.topk(30).values[-1]] = float("-inf")
            assert torch.allclose(found[t], expected, atol=1e-5)


def test_presence_and_frequency_leave_the_prompt_alone():
    history = History([3, 3, 4], CPU)
    history.tokens += [4, 5, 5]
    scores = Scorer(Sampling(temperature=0, presence_penalty=1.0, frequency_penalty=0.25))
    found = scores(torch.zeros(1, 8), history)[0]
    assert found.tolist() == [0, 0, 0, 0, -1.25, -1.5, 0, 0]


def test_frequency_penalty_breaks_a_loop():
    from scripted import make_scripted_model

    looping = make_scripted_model({1: 1})
    assert replies(looping, [[1]], GREEDY, max_new_tokens=4) == [[1] * 4]
    assert len(set(replies(looping, [[1]], Sampling(temperature=0, frequency_penalty=20.0), max_new_tokens=4)[0])) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: float("-inf")}},
    ],
)
def test_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        Sampling(**options)


def test_bias_of_an_unknown_token():
    with pytest.raises(ValueError, match="vocabulary size"):
        replies(small_model(), [[2]], Sampling(logit_bias={VOCAB: 1.0}))


def test_row_seeds_share_no_rows():
    assert row_seeds(5, 3)[0] == 5
    seeds = [seed for start in range(20) for seed in row_seeds(start, 50)[1:]]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert row_seeds(9, 2) == row_seeds(9, 50)[:2]


def test_a_tokens_noise_depends_on_its_place_in_the_reply_alone():
    """However many tokens are looked at and taken at a time, drafted ones too."""
    single, expected = Draws(3, CPU), []
    for _ in range(6):
        expected.append(single.noise(1, 5)[0])
        single.advance(1)
    draws = Draws(3, CPU)
    assert torch.equal(draws.noise(3, 5), draws.noise(4, 5)[:3])
    assert torch.equal(draws.noise(1, 5, skip=2)[0], expected[2])
    draws.advance(3)
    assert torch.equal(draws.noise(2, 5), torch.stack(expected[3:5]))
    draws.advance(2)
    assert torch.equal(draws.noise(1, 5)[0], expected[5])
    assert not torch.equal(Draws(4, CPU).noise(1, 5)[0], expected[0])


def test_draws_follow_the_scores_and_leave_the_global_generator_alone():
    from decoding import chi_square_fits

    scores = torch.tensor([0.0, 1.0, 2.0, float("-inf"), -1.0])
    state = torch.random.get_rng_state()
    drawn = torch.cat([choose(scores, Draws(seed, CPU).noise(1000, 5)) for seed in range(20)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert chi_square_fits(drawn.bincount(minlength=5), scores.softmax(-1))


def test_margins_are_what_a_change_of_scores_must_exceed():
    scores, noise = torch.randn(50, 9), torch.empty(50, 9).exponential_()
    for used in (None, noise):
        token, margin = choose(scores, used), margins(scores, used)
        for row in range(50):
            lowered = scores[row].clone()
            lowered[token[row]] -= margin[row] * 1.001 + 1e-6
            assert choose(lowered, None if used is None else used[row]) != token[row]
            lowered[token[row]] += margin[row] * 0.002 + 2e-6
            assert choose(lowered, None if used is None else used[row]) == token[row]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, seed=2, repetition_penalty=1.5)])
def test_logprobs_are_the_models_own(sampling):
    model, prompts = small_model(), [tokens(1, 5)[0].tolist(), tokens(1, 2)[0].tolist()]
    recorded = Logprobs(3)
    found = replies(model, prompts, sampling, logprobs=recorded)
    for prompt, reply, row in zip(prompts, found, recorded.rows, strict=True):
        assert [token.id for token in row] == reply
        with torch.no_grad():
            logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        for token, expected in zip(row, logits, strict=True):
            best = expected.topk(3)
            assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
            assert [id for id, _ in token.top] == best.indices.tolist()
            assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_logprobs_without_alternatives():
    recorded = Logprobs()
    replies(small_model(), [[2, 3]], GREEDY, logprobs=recorded)
    assert len(recorded.rows[0]) == 12 and all(token.top == [] for token in recorded.rows[0])
    with pytest.raises(ValueError, match="logprobs is -1"):
        Logprobs(-1)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": value} for value in (1e-50, 1e39, INF, NAN, "1", True, None, 10**400)),
        *({"top_p": value} for value in (1e-50, 1 + 1e-7, NAN, "1")),
        *({"top_k": value} for value in (0.5, 2**63, True, "5", None)),
        *({"min_p": value} for value in (NAN, "0", 1.5)),
        *({"repetition_penalty": value} for value in (1e-50, 1e39, NAN, INF)),
        *({"seed": value} for value in (1.5, "3", True, 2**63)),
        *({name: value} for name in ("presence_penalty", "frequency_penalty") for value in (1e39, -1e39, NAN, "1")),
        *({"logit_bias": value} for value in ({5: 1e39}, {5: NAN}, {"5": 1.0}, {5: "1"}, {2**70: 1.0}, [(5, 1.0)])),
    ],
)
def test_options_are_checked_as_what_tensors_hold(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} is .*it must be"):
        Sampling(**options)


@settings(deadline=None)
@given(
    temperature=st.sampled_from([0.0, 1e-30, 0.6, 1e30]),
    penalty=st.sampled_from([1e-30, 1.0, 1e30]),
    presence=st.sampled_from([-1e30, 0.0, 1e30]),
    bias=st.sampled_from([-1e30, 0.0, 1e30]),
    top_p=st.sampled_from([1e-30, 0.5, 1.0]),
)
def test_the_ends_of_the_ranges_choose_a_token_or_say_that_they_cannot(temperature, penalty, presence, bias, top_p):
    """Never a token by NaN: of two extremes that overflow together the caller hears."""
    sampling = Sampling(temperature, top_p, 0, 0.0, penalty, 0, presence, presence, {3: bias})
    scorer = Scorer(sampling)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 20
    try:
        scores = scorer(logits, History([1, 2, 3], CPU))
        noise = None if sampling.greedy else Draws(0, CPU).noise(1, VOCAB)
        token = int(choose(scores, noise))
    except ValueError as error:
        assert "not finite" in str(error)
    else:
        assert not scores.isnan().any() and scores[0, token] > -INF


@pytest.mark.parametrize("noise", [None, torch.ones(2, 1, 5)])
@pytest.mark.parametrize("bad", [[NAN], [INF], [NAN, -INF], [-INF] * 5])
def test_nothing_is_chosen_from_scores_that_are_not_finite(bad, noise):
    scores = torch.zeros(2, 1, 5)
    scores[1, 0, : len(bad)] = torch.tensor(bad)
    with pytest.raises(ValueError, match="not finite"):
        choose(scores, noise)
    scores[1, 0] = torch.tensor([-INF, 0.0, -INF, -INF, -INF])  # what penalties and budgets make: one token left
    assert choose(scores, noise)[1].item() == 1
