"""The Python API on scripted models: modes, budgets, streaming, batches, stopping."""

import pytest
import torch
from decoding import use_executor
from scripted import make_tokenizer, same

import axk1.chat
from axk1.chat import Chat, Delta
from axk1.generation.sampling import GREEDY, Sampling

HELLO = [{"role": "user", "content": "Hello"}]


def test_prompt_ends_in_the_mode(endless):
    prompts = {think: make_tokenizer().decode(endless.prompt(HELLO, think)) for think in (True, False)}
    start = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == {True: start + "<think>", False: start + "</think>"}


def test_both_modes_end_on_im_end(closing):
    reply = closing.reply(HELLO, think=True)
    assert (reply.reasoning, reply.answer, reply.finish_reason) == ("1+2=3", "Yes", "stop")
    assert (reply.reasoning_tokens, reply.answer_tokens) == (5, 3)
    assert reply.prompt_tokens == len(closing.prompt(HELLO, think=True))
    assert reply.seconds > 0
    reply = closing.reply(HELLO)
    assert (reply.reasoning, reply.answer, reply.closed) == ("", "Yes", True)


def test_non_think_is_the_default_and_answers(endless):
    assert endless.reply(HELLO).answer == "Ys,42é"


def test_max_new_tokens_inside_the_reasoning(endless):
    reply = endless.reply(HELLO, think=True, max_new_tokens=7)
    assert (reply.reasoning, reply.answer, reply.closed, reply.finish_reason) == ("abc abc", "", False, "length")


def test_stream_gives_the_whole_reply_in_pieces(endless):
    stream = endless.stream(HELLO, think=True, budget=5)
    deltas = list(stream)
    assert deltas[:2] == [Delta("reasoning", "a"), Delta("reasoning", "b")]
    assert "".join(d.text for d in deltas if d.kind == "answer") == "Ys,42é"
    assert same(stream.reply, endless.reply(HELLO, think=True, budget=5))


def test_cancelled_stream_keeps_what_was_written(endless):
    stream = endless.stream(HELLO, think=True)
    seen = []
    for delta in stream:
        seen.append(delta.text)
        if len(seen) == 6:
            stream.cancel()
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.reasoning == "".join(seen)
    assert len(seen) == 6
    assert not stream.reply.closed


def test_batch_equals_single_replies_with_mixed_modes_and_lengths(endless, closing):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "longer text", "한국어", "b" * 50)]
    for chat in (endless, closing):
        modes = [True, False, True, True]
        replies = chat.reply_batch(conversations, think=modes, budget=4, max_new_tokens=20)
        for reply, conversation, think in zip(replies, conversations, modes, strict=True):
            assert same(reply, chat.reply(conversation, think=think, budget=4, max_new_tokens=20))


def test_random_model_batch_equals_single(random):
    conversations = [[{"role": "user", "content": text}] for text in ("a", "some longer text", "c" * 40)]
    options = {"sampling": GREEDY, "max_new_tokens": 12, "think": True}
    replies = random.reply_batch(conversations, **options)
    assert all(same(a, random.reply(b, **options)) for a, b in zip(replies, conversations, strict=True))
    assert len({reply.reasoning for reply in replies}) > 1


def test_budget_closes_the_reasoning_and_an_answer_follows(endless):
    for budget in (1, 2, 9):
        reply = endless.reply(HELLO, think=True, budget=budget)
        assert reply.reasoning == ("abc " * 3)[:budget]
        assert (reply.reasoning_tokens, reply.answer, reply.closed) == (budget, "Ys,42é", True)


def test_budget_zero_renders_non_think(endless):
    assert same(endless.reply(HELLO, think=True, budget=0), endless.reply(HELLO, think=False))


def test_budget_not_reached_changes_nothing(closing):
    plain = closing.reply(HELLO, think=True)
    for budget in (-1, 5, 6, 100):
        assert same(closing.reply(HELLO, think=True, budget=budget), plain)
    assert closing.reply(HELLO, think=True, budget=4).reasoning == "1+2="


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -2}, "budget is -2"),
        ({"budget": 10, "max_new_tokens": 10}, "leaves no room"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"stop": [""]}, "stop string"),
    ],
)
def test_bad_options(endless, options, message):
    with pytest.raises(ValueError, match=message):
        endless.reply(HELLO, think=True, **options)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no message"),
        ([{"content": "x"}], "role is one of"),
        ([{"role": "user", "content": None}], "must be text"),
        ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
        ([{"role": "nobody", "content": "x"}], "role is one of"),
        ([{"role": "user", "content": "x" * 5000}], "context holds 4096"),
    ],
)
def test_bad_messages(endless, messages, message):
    with pytest.raises(ValueError, match=message):
        endless.reply(messages)


def test_stop_string(endless):
    reply = endless.reply(HELLO, stop=[",4"])
    assert (reply.answer, reply.finish_reason) == ("Ys", "stop")


def test_context_is_the_limit_without_max_new_tokens(endless):
    endless_short = Chat(endless.model, endless.tokenizer)
    endless_short.context_length = 60
    reply = endless_short.reply(HELLO, think=True)
    assert reply.prompt_tokens + reply.reasoning_tokens == 60


def test_no_conversations(endless):
    assert endless.reply_batch([]) == []


def test_seed_decides_and_the_global_generator_is_left_alone(random):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    hot = {"max_new_tokens": 12, "think": True}
    replies = [
        random.reply(HELLO, sampling=Sampling(temperature=2.0, seed=seed), **hot).reasoning for seed in (1, 1, 2)
    ]
    assert torch.rand(1) == expected
    assert replies[0] == replies[1] != replies[2]


def test_error_in_the_model_reaches_the_caller(random, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    use_executor(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        random.reply(HELLO)


def test_load_without_a_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no checkpoint at"):
        axk1.chat.load(tmp_path / "nothing")
    monkeypatch.setenv("AXK1_MODEL", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"elsewhere \(from AXK1_MODEL\)"):
        axk1.chat.load()


def test_model_path_from_the_environment(endless_checkpoint, monkeypatch):
    monkeypatch.setenv("AXK1_MODEL", str(endless_checkpoint))
    assert axk1.chat.resolve_model_path() == endless_checkpoint
    assert axk1.chat.resolve_model_path(endless_checkpoint.parent / endless_checkpoint.name) == endless_checkpoint


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "abacus"}, "abacus"), ({"dtype": "tensor"}, "dtype is"), ({"dtype": "int8"}, "dtype is")],
)
def test_load_with_a_bad_option(endless_checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        axk1.chat.load(endless_checkpoint, **options)


@pytest.mark.parametrize("missing", ["tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_load_of_an_incomplete_checkpoint(endless_checkpoint, tmp_path, missing):
    for file in endless_checkpoint.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=missing.partition(".")[0]):
        axk1.chat.load(tmp_path)


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_by_default_a_cpu_computes_in_the_stored_dtype_if_it_is_fast_in_it(monkeypatch, fast, expected):
    asked = []
    monkeypatch.setattr("axk1.kernels.is_fast", lambda dtype: asked.append(dtype) or fast)
    assert axk1.chat.load(device="cpu").model.dtype == expected
    assert asked == [torch.bfloat16]


def test_load_keeps_the_asked_dtype(endless_checkpoint):
    assert axk1.chat.load(endless_checkpoint, dtype="bfloat16").model.dtype == torch.bfloat16
