"""``/v1/chat/completions`` over scripted replies: streams, counts, tools, thinking."""

import httpx2
import pytest
from serving import CALLS, FAMILY, TOOLS, assembled, events, scripted, serving, user, wait_for

from axk1.serve.settings import Settings

PATH = "/v1/chat/completions"
CASES = [
    {"messages": user("hello")},
    {"messages": user("hello"), "reasoning_effort": "low", "logprobs": True, "top_logprobs": 2},
    {"messages": user("look twice"), "tools": TOOLS},
    {"messages": user("look twice"), "tools": TOOLS, "enable_thinking": True},
    {"messages": user("look twice"), "tools": TOOLS, "parallel_tool_calls": False},
    {"messages": user("look twice"), "tools": TOOLS, "max_tokens": 30},
    {"messages": user("look twice"), "tools": TOOLS, "tool_choice": "none"},
    {"messages": user("forgetful"), "tools": TOOLS, "enable_thinking": True},
    {"messages": user("stop here"), "stop": ["STOP", "more"], "logprobs": True},
    {"messages": user("choose"), "n": 4, "seed": 5, "logprobs": True},
    {"messages": user("ponder"), "thinking_budget": 40},
    {"messages": user("hello"), "response_format": {"type": "json_object"}, "max_tokens": 20},
    {"messages": user("hello"), "max_completion_tokens": 3},
    {"messages": user("hello"), "ignore_eos": True, "max_tokens": 40},
]


@pytest.mark.parametrize("body", CASES, ids=lambda body: ",".join(key for key in body if key != "messages"))
def test_whole_and_streamed_are_identical(client, body):
    whole = client.post(PATH, json={**body, "seed": 3}).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = events(client.post(PATH, json={**body, "seed": 3, **options}).text)
    streamed = assembled(chunks)
    for choice in whole["choices"]:
        message, told = choice["message"], streamed[choice["index"]]
        assert (message["content"] or "") == told["content"]
        assert message.get("reasoning", "") == told["reasoning"] == told["reasoning_content"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        assert calls == [told["calls"][i] for i in range(len(told["calls"]))]
        assert (choice["logprobs"] or {"content": []})["content"] == told["logprobs"]
        assert told["ends"] == [choice["finish_reason"]]
    counts, expected = chunks[-1]["usage"], whole["usage"]
    for usage in (counts, expected):
        usage.pop("prompt_tokens_details")  # the second found the first one's prompt
    assert chunks[-1]["choices"] == [] and counts == expected
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def ask(client, **body):
    reply = client.post(PATH, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_counts_include_tags_and_the_end(client, tokenizer):
    reply = ask(client, messages=user("hello"), enable_thinking=True, logprobs=True)
    ids = tokenizer.encode(f"Let me think.</think>Hello there! {FAMILY}<|im_end|>", add_special_tokens=False)
    usage = reply["usage"]
    assert usage["completion_tokens"] == len(ids) == len(reply["choices"][0]["logprobs"]["content"])
    assert usage["completion_tokens_details"] == {"reasoning_tokens": ids.index(tokenizer.encode("</think>")[0])}
    assert usage["total_tokens"] == usage["prompt_tokens"] + len(ids)


def test_usage_and_logprobs_agree_where_a_stop_string_cuts(client):
    reply = ask(client, messages=user("stop here"), stop="STOP", logprobs=True)
    (choice,) = reply["choices"]
    assert choice["message"]["content"] == "One. " and choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == len(choice["logprobs"]["content"])
    written = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    assert written.startswith(b"One. STOP") and len(written) < 20


def test_emoji_families_and_rare_hangul_are_never_split(client):
    chunks = events(client.post(PATH, json={"messages": user("hello"), "stream": True}).text)
    pieces = [part["delta"].get("content") or "" for chunk in chunks for part in chunk["choices"]]
    assert "".join(pieces).endswith(FAMILY) and not any("\ufffd" in piece for piece in pieces)


def test_calls_have_their_own_index_and_id(client):
    body = {"messages": user("look twice"), "tools": TOOLS, "stream": True}
    deltas = [part["delta"] for chunk in events(client.post(PATH, json=body).text) for part in chunk["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    begun = [call for call in calls if "id" in call]
    assert [(call["index"], call["function"]["name"]) for call in begun] == [(0, "weather"), (1, "clock")]
    assert len({call["id"] for call in begun}) == 2 and all(call["type"] == "function" for call in begun)
    pieces = [call["function"]["arguments"] for call in calls if call["index"] == 0]
    assert len(pieces) > 5 and "".join(pieces) == '{"city": "서울", "days": [1, 2]}'
    assert not any("tool_call" in (delta.get("content") or "") for delta in deltas)


def test_one_call_where_only_one_is_wanted(client):
    reply = ask(client, messages=user("look twice"), tools=TOOLS, parallel_tool_calls=False)
    (choice,) = reply["choices"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."


def test_without_tools_a_call_is_text(client):
    for choice in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (told,) = ask(client, messages=user("look twice"), **choice)["choices"]
        assert told["message"]["content"] == CALLS and told["finish_reason"] == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_call_that_must_come_comes(client, choice):
    """The script's text is not a call, so that only the grammar can make one."""
    body = {"messages": user("hello"), "tools": TOOLS[1:], "tool_choice": choice, "max_tokens": 60}
    (told,) = ask(client, **body, parallel_tool_calls=False)["choices"]
    assert [call["function"]["name"] for call in told["message"]["tool_calls"]] == ["clock"]
    assert told["message"]["content"] is None


def test_a_call_in_reasoning_counts_only_where_it_was_never_closed(client):
    (told,) = ask(client, messages=user("forgetful"), tools=TOOLS, enable_thinking=True)["choices"]
    assert [call["function"]["name"] for call in told["message"]["tool_calls"]] == ["clock"]
    assert told["finish_reason"] == "tool_calls" and told["message"]["content"] is None
    (told,) = ask(client, messages=user("look twice"), tools=TOOLS, enable_thinking=True)["choices"]
    assert len(told["message"]["tool_calls"]) == 2
    assert told["message"]["reasoning"] == "Two tools, so </tool_call> twice."


def test_choices_differ_and_a_seed_brings_them_again(client):
    body = {"messages": user("choose"), "n": 8, "seed": 11}
    texts = [choice["message"]["content"] for choice in ask(client, **body)["choices"]]
    assert len(set(texts)) > 1
    assert [choice["message"]["content"] for choice in ask(client, **body)["choices"]] == texts


def test_the_seed_that_was_drawn_is_told(client):
    first = client.post(PATH, json={"messages": user("choose")})
    again = ask(client, messages=user("choose"), seed=int(first.headers["x-axk1-seed"]))
    assert again["choices"][0]["message"] == first.json()["choices"][0]["message"]


def test_cached_tokens_are_counted(client):
    text = "hello " * 150
    first, second = (ask(client, messages=user(text))["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == second["prompt_tokens"] // 64 * 64


@pytest.mark.parametrize(
    "asked",
    [
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"enable_thinking": True},
        {"reasoning_effort": "high"},
        {"thinking": {"type": "enabled", "budget_tokens": 500}},
        {"thinking_budget": -1},
        {"thinking_token_budget": 500},
        {"budget_tokens": 500},
    ],
    ids=str,
)
def test_thinking_under_all_names(client, asked):
    (told,) = ask(client, messages=user("hello"), **asked)["choices"]
    assert told["message"]["reasoning"] == told["message"]["reasoning_content"] == "Let me think."
    assert "think" not in told["message"]["content"]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"reasoning_effort": "none"},
        {"thinking_budget": 0, "enable_thinking": True},
        {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
        {"thinking": {"type": "disabled"}},
    ],
    ids=str,
)
def test_no_thinking_under_all_names(client, asked):
    (told,) = ask(client, messages=user("hello"), **asked)["choices"]
    assert "reasoning" not in told["message"] and told["message"]["content"].startswith("Hello there!")


@pytest.mark.parametrize("budget", [1, 7, 40, 100])
def test_a_budget_is_hard_and_an_answer_follows(server, client, budget):
    reply = ask(client, messages=user("ponder"), thinking_budget=budget)
    (choice,) = reply["choices"]
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] <= budget
    assert choice["message"]["content"] == "done" and "</think>" not in choice["message"]["reasoning"]
    closed = choice["message"]["reasoning"].endswith(server.service.settings.closing)
    assert closed == (budget == 100)  # a sentence only where there is room for it


def test_answer_now_ends_the_reasoning_of_a_running_reply(slow):
    body = {"messages": user("ponder"), "enable_thinking": True, "stream": True}
    with slow.client() as client, client.stream("POST", PATH, json=body) as reply:
        lines = reply.iter_lines()
        first = next(event for line in lines for event in events(line) if event["choices"][0]["delta"].get("reasoning"))
        answered = client.post(f"{PATH}/{first['id']}/answer")
        assert answered.json() == {"id": first["id"], "object": "chat.completion.answer", "reasoning_ended": True}
        told = assembled([first, *events("\n".join(lines))])[0]
    assert told["content"] == "done" and told["ends"] == ["stop"]
    assert len(told["reasoning"]) < 1000 and told["reasoning"].endswith(slow.service.settings.closing)
    with slow.client() as client:
        assert client.post(f"{PATH}/{first['id']}/answer").json()["error"]["code"] == "not_running"


def test_reasoning_is_taken_back_under_both_names(client):
    turn = {"role": "assistant", "content": "4"}
    texts = []
    for names in (["reasoning"], ["reasoning_content"], ["reasoning", "reasoning_content"]):
        past = [*user("2 + 2?"), {**turn, **dict.fromkeys(names, "easy")}, *user("hello")]
        texts.append(client.post("/tokenize", json={"messages": past}).json()["tokens"])
    assert texts[0] == texts[1] == texts[2]


def test_a_silent_stream_is_kept_alive(tokenizer):
    body = {"messages": user("hello"), "stream": True}
    with serving(scripted(tokenizer, prompt=0.5), tokenizer, Settings(ping=0.1)) as running, running.client() as client:
        text = client.post(PATH, json=body).text
    before, told, _ = text.partition('"content":"H')
    assert before.count(": still here") >= 3 and told


def test_who_leaves_is_cancelled(slow, tokenizer):
    """While the whole reply is waited for, in a stream, and before the first token."""
    with slow.client() as client, pytest.raises(httpx2.TimeoutException):
        client.post(PATH, json={"messages": user("long reply")}, timeout=0.2)
    slow.wait_idle()
    with slow.client() as client, client.stream("POST", PATH, json={"messages": user("long reply"), "stream": True}):
        wait_for(lambda: slow.service.engine.statistics().running == 1)
    slow.wait_idle()
    assert not slow.service._running
    with serving(scripted(tokenizer, prompt=30), tokenizer) as running, running.client() as client:
        with client.stream("POST", PATH, json={"messages": user("hello"), "stream": True}):
            wait_for(lambda: running.service.engine.statistics().running == 1)
        running.wait_idle()
        assert not running.service._running
