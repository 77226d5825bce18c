"""Drafts and log-probabilities through the chat: budgets, stop strings, cancelling, statistics."""

import pytest
from scripted import same

import axk1.chat
from axk1.chat import Chat
from axk1.generation.sampling import GREEDY, Sampling
from axk1.generation.speculate import AUTO, NO_DRAFTS, Drafts

HELLO = [{"role": "user", "content": "Hello"}]
MANY = [Drafts(1), Drafts(3), Drafts(7), Drafts(AUTO)]


@pytest.mark.parametrize("drafts", MANY)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"think": True, "budget": 1},
        {"think": True, "budget": 2},
        {"think": True, "budget": 6},
        {"think": True, "max_new_tokens": 6},
        {"stop": [",4"]},
        {"stop": ["2é", "s,"]},
        {"sampling": GREEDY, "think": True, "budget": 5},
        {"sampling": Sampling(seed=4, frequency_penalty=0.5), "think": True, "budget": 7},
    ],
)
def test_replies_are_those_without_drafts(endless, drafts, options):
    """The scripted module's drafts are all right, so budgets and stop strings fall among accepted drafts."""
    assert same(endless.reply(HELLO, drafts=drafts, **options), endless.reply(HELLO, drafts=NO_DRAFTS, **options))


@pytest.mark.parametrize("drafts", MANY)
def test_batches_of_mixed_modes_and_budgets(endless, closing, drafts):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "longer text", "한국어", "b" * 50)]
    options = {"think": [True, False, True, True], "budget": 4, "max_new_tokens": 20}
    for chat in (endless, closing):
        found = chat.reply_batch(conversations, drafts=drafts, **options)
        plain = chat.reply_batch(conversations, drafts=NO_DRAFTS, **options)
        assert all(same(one, other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("drafts", MANY)
def test_seeded_replies_of_a_random_model(random, drafts):
    options = {"sampling": Sampling(temperature=1.5, seed=5), "think": True, "budget": 9, "max_new_tokens": 40}
    conversations = [[{"role": "user", "content": text}] for text in ("a", "some longer text")]
    found = random.reply_batch(conversations, drafts=drafts, **options)
    plain = random.reply_batch(conversations, drafts=NO_DRAFTS, **options)
    assert all(same(one, other) for one, other in zip(found, plain, strict=True))


def test_cancelling_inside_a_step(endless):
    """A step of several tokens ends at the token that is being read."""
    stream = endless.stream(HELLO, think=True, drafts=Drafts(7))
    seen = []
    for delta in stream:
        seen.append(delta.text)
        if len(seen) == 4:
            stream.cancel()
    assert stream.reply.reasoning == "".join(seen) == "abc "
    assert stream.reply.finish_reason == "cancelled"
    assert stream.statistics.steps <= 2


def test_statistics_of_a_stream(endless):
    stream = endless.stream(HELLO, think=True, budget=20, drafts=Drafts(3))
    list(stream)
    assert stream.statistics.acceptance == 1.0
    assert stream.statistics.drafted == stream.statistics.accepted > 10


def test_automatic_drafts_remember(endless_checkpoint):
    chat = axk1.chat.load(endless_checkpoint)
    assert chat.gate.rates(1) == {}
    chat.reply(HELLO, think=True, max_new_tokens=60)
    assert set(chat.gate.rates(1)) >= {0, 1}


def test_logprobs(random, endless):
    reply = random.reply(HELLO, sampling=GREEDY, max_new_tokens=5, logprobs=2)
    assert reply.logprobs is not None
    assert len(reply.logprobs) == reply.answer_tokens
    for token in reply.logprobs:
        assert token.top[0] == replace_top(token)
        assert token.logprob == token.top[0].logprob > token.top[1].logprob
    plain = random.reply(HELLO, sampling=GREEDY, max_new_tokens=5)
    assert plain.logprobs is None and "logprobs" not in plain.record() and "logprobs" in reply.record()
    stopped = endless.reply(HELLO, logprobs=0, stop=[",4"], drafts=Drafts(7))
    assert [token.token for token in stopped.logprobs] == ["Y", "s", ",", "4"]  # not those behind the stop string
    whole = endless.reply(HELLO, logprobs=0)
    assert len(whole.logprobs) == len("Ys,42é".encode())  # the token that ends the turn left out


def replace_top(token):
    from axk1.chat.reply import TokenScore

    return TokenScore(token.token, token.id, token.logprob)


def test_bad_options(random, endless):
    with pytest.raises(ValueError, match="logprobs is -1"):
        random.reply(HELLO, logprobs=-1)
    endless_plain = Chat(endless.model, endless.tokenizer)
    endless_plain.model.config.num_nextn_predict_layers, before = 0, 1
    try:
        with pytest.raises(ValueError, match="no MTP module"):
            endless_plain.reply(HELLO, drafts=Drafts(2))
    finally:
        endless_plain.model.config.num_nextn_predict_layers = before
