"""The server over the nano: the real engine, with drafts."""

import json
import re

import pytest
from serving import NANO, assembled, events, serving, user, wait_for

from axk1.chat import Chat
from axk1.engine.engine import ModelEngine
from axk1.engine.settings import Settings as EngineSettings
from axk1.generation.sampling import GREEDY
from axk1.generation.speculate import Drafts
from axk1.load import load

PATH = "/v1/chat/completions"
SUM = user("What is 17 + 25?")


@pytest.fixture(scope="module")
def chat():
    return Chat(*load(NANO, dtype="float32"))


@pytest.fixture(scope="module")
def nano(chat, tokenizer):
    """A client of a server that drafts two tokens at every step."""
    engine = ModelEngine(chat.model, EngineSettings(streams=8, pages=256, drafts=Drafts(2), poison=True))
    with serving(engine, tokenizer) as running, running.client() as client:
        yield client


def ask(client, **body):
    reply = client.post(PATH, json={"messages": SUM, "temperature": 0, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_reply_is_that_of_the_chat_and_so_are_its_log_probabilities(nano, chat):
    told = ask(nano, enable_thinking=True, logprobs=True, top_logprobs=2)
    (choice,) = told["choices"]
    expected = chat.reply(SUM, think=True, sampling=GREEDY, logprobs=2, drafts=Drafts(0))
    assert choice["message"]["reasoning"] == expected.reasoning and choice["message"]["content"] == expected.answer
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == expected.reasoning_tokens
    scores = choice["logprobs"]["content"]
    assert len(scores) == told["usage"]["completion_tokens"] == len(expected.logprobs) + 1  # and the end
    assert [score["logprob"] for score in scores[:-1]] == pytest.approx(
        [s.logprob for s in expected.logprobs], abs=1e-4
    )


def test_crowded_cached_streamed_and_alone_are_the_same(nano):
    body = {"temperature": 0.9, "seed": 7, "enable_thinking": True, "logprobs": True, "max_tokens": 60}
    first = ask(nano, **body)["choices"][0]
    others = {"prompt": ["a b c", "who are you"], "n": 3, "max_tokens": 1_000, "ignore_eos": True, "stream": True}
    with nano.stream("POST", "/v1/completions", json=others):
        wait_for(lambda: running(nano) == 6)
        again = ask(nano, **body)["choices"][0]
        assert running(nano) == 6  # they were there all the time
    stream = {"messages": SUM, **body, "stream": True}
    streamed = assembled(events(nano.post(PATH, json=stream).text))[0]
    assert first == again and streamed["logprobs"] == first["logprobs"]["content"]
    assert streamed["content"] == first["message"]["content"]


def running(client):
    """Requests that the engine runs now."""
    return int(float(re.findall(r"num_requests_running{.*} (\S+)", client.get("/metrics").text)[0]))


SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_schema_holds_after_thinking_and_with_drafts(nano, think, seed):
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
    options = {"temperature": 0.8, "seed": seed, "enable_thinking": think, "max_tokens": 400}
    (choice,) = ask(nano, response_format=form, **options, **({"thinking_budget": 60} if think else {}))["choices"]
    value = json.loads(choice["message"]["content"])
    assert choice["finish_reason"] == "stop" and set(value) == {"answer", "sure"}
    assert isinstance(value["sure"], bool) and isinstance(value["answer"], int)
    assert ("reasoning" in choice["message"]) == think


def test_a_call_that_must_come_fits_its_schema(nano):
    numbers = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
    }
    tools = [{"type": "function", "function": {"name": "add", "parameters": numbers}}]
    (choice,) = ask(nano, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "add"
    assert isinstance(json.loads(call["function"]["arguments"])["a"], int)


@pytest.mark.parametrize("budget", [1, 3, 10])
def test_a_budget_is_hard_with_drafts(nano, budget):
    told = ask(nano, thinking_budget=budget, max_tokens=60)
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == budget
    message = told["choices"][0]["message"]
    assert message["content"] and "think>" not in message["content"] + message["reasoning"]


def test_scores_of_a_prompt_are_those_of_the_model(nano, chat, tokenizer):
    """As lm-eval reads them from ``/v1/completions``."""
    import torch

    ids = tokenizer.encode("The answer is 42. It is a number.", add_special_tokens=False)
    body = {"prompt": [ids], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    (choice,) = nano.post("/v1/completions", json=body).json()["choices"]
    with torch.no_grad():
        scores = chat.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(scores[i, id]) for i, id in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)


def test_a_long_prompt_is_a_400_and_others_go_on(nano, chat):
    too_long = nano.post(PATH, json={"messages": user("x " * chat.context_length)})
    assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"
    assert ask(nano, max_tokens=10**6)["choices"][0]["finish_reason"] == "stop"  # no more than fits is asked for
