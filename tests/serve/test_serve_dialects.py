"""``/v1/responses`` and ``/v1/messages`` over scripted replies."""

import pytest
from serving import TOOLS, events, user

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]
CLAUDE = [{"name": tool["function"]["name"], "input_schema": {"type": "object"}} for tool in TOOLS]


def test_responses_whole_and_streamed_are_identical(client):
    body = {"input": "look twice", "tools": FLAT, "reasoning": {"effort": "low"}, "seed": 1}
    whole = client.post(RESPONSES, json=body).json()
    told = events(client.post(RESPONSES, json={**body, "stream": True}).text)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[0]["type"] == "response.created" and told[-1]["type"] == "response.completed"
    last = told[-1]["response"]
    kinds = ["reasoning", "message", "function_call", "function_call"]
    assert [item["type"] for item in whole["output"]] == kinds
    for ours, theirs in zip(whole["output"], last["output"], strict=True):
        assert {**ours, "id": 0, "call_id": 0} == {**theirs, "id": 0, "call_id": 0}
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == last["output"] and whole["usage"]["output_tokens"] == last["usage"]["output_tokens"]
    for index, item in enumerate(last["output"]):
        pieces = [e["delta"] for e in told if e.get("output_index") == index and e["type"].endswith(".delta")]
        text = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        assert "".join(pieces) == text and len(pieces) >= 1


@pytest.mark.parametrize("asked", ["look twice", "hello", "stop here"])
def test_log_probabilities_of_responses_come_with_their_text(client, asked):
    """In the events that bring the text, all of them, and none of reasoning and calls."""
    body = {"input": asked, "tools": FLAT, "reasoning": {"effort": "low"}, "seed": 1, "top_logprobs": 1}
    whole = client.post(RESPONSES, json=body).json()
    told = events(client.post(RESPONSES, json={**body, "stream": True}).text)
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    scores = [score for event in deltas for score in event["logprobs"]]
    assert b"".join(bytes(score["bytes"]) for score in scores).decode() == "".join(e["delta"] for e in deltas)
    assert all(len(score["top_logprobs"]) == 1 for score in scores) and all(event["logprobs"] for event in deltas)
    (done,) = (event for event in told if event["type"] == "response.output_text.done")
    (part,) = (
        event["part"] for event in told if event["type"] == "response.content_part.done" and "logprobs" in event["part"]
    )
    (text,) = (item["content"][0] for item in whole["output"] if item["type"] == "message")
    assert scores == done["logprobs"] == part["logprobs"] == text["logprobs"]


def test_responses_take_their_own_output_back(client):
    first = client.post(RESPONSES, json={"input": "look twice", "tools": FLAT, "reasoning": {"effort": "low"}}).json()
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "hot"} for call in calls]
    body = {"instructions": "Be brief.", "input": [*user("look twice"), *first["output"], *results], "tools": FLAT}
    assert client.post(RESPONSES, json=body).json()["status"] == "completed"


def test_responses_that_are_cut_say_so(client):
    reply = client.post(RESPONSES, json={"input": "long reply", "max_output_tokens": 5, "store": True}).json()
    assert reply["status"] == "incomplete" and reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["store"] is False and reply["usage"]["output_tokens"] == 5


def test_tools_that_this_server_does_not_run_are_named(client):
    body = {"input": "hello", "tools": [{"type": "web_search"}, {"type": "custom", "name": "x"}, *FLAT]}
    reply = client.post(RESPONSES, json={**body, "include": ["reasoning.encrypted_content"]})
    named = reply.headers["x-axk1-ignored"]
    assert named == "tools.web_search, tools.custom, include.reasoning.encrypted_content"
    assert [tool["name"] for tool in reply.json()["tools"]] == ["weather", "clock"]


@pytest.mark.parametrize("stream", [False, True])
def test_messages(client, stream):
    body = {"messages": user("look twice"), "max_tokens": 200, "tools": CLAUDE}
    body["thinking"] = {"type": "enabled", "budget_tokens": 100}
    reply = client.post(MESSAGES, json={**body, "stream": stream})
    if not stream:
        message = reply.json()
        kinds = [block["type"] for block in message["content"]]
        assert kinds == ["thinking", "text", "tool_use", "tool_use"]
        assert message["content"][2]["input"] == {"city": "서울", "days": [1, 2]}
        assert message["stop_reason"] == "tool_use"
        return
    told = events(reply.text)
    blocks: list[dict] = []
    for event in told:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({"type": event["content_block"]["type"], "text": "", "open": True})
        elif event["type"] == "content_block_delta":
            assert blocks[event["index"]]["open"]
            delta = event["delta"]
            blocks[-1]["text"] += delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
        elif event["type"] == "content_block_stop":
            blocks[event["index"]]["open"] = False
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert blocks[2]["text"] == '{"city": "서울", "days": [1, 2]}' and not any(block["open"] for block in blocks)
    assert told[0]["type"] == "message_start" and told[-1]["type"] == "message_stop"
    assert (
        told[0]["message"]["stop_reason"] is None
        and told[-2]["delta"]["stop_reason"] == "tool_use"
        and told[-2]["usage"]["output_tokens"] > 50
    )


def test_messages_take_their_own_output_back_and_count(client):
    first = client.post(MESSAGES, json={"messages": user("look twice"), "max_tokens": 200, "tools": CLAUDE}).json()
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "hot"}]}
        for block in first["content"]
        if block["type"] == "tool_use"
    ]
    content = [*results, {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}}]
    past = [
        *user("look twice"),
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": content},
    ]
    body = {"messages": past, "tools": CLAUDE, "system": [{"type": "text", "text": "Be brief."}]}
    counted = client.post(MESSAGES + "/count_tokens", json=body).json()["input_tokens"]
    usage = client.post(MESSAGES, json={**body, "max_tokens": 50}).json()["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted


def test_a_changing_billing_line_shares_its_prefix(client):
    def cached(number):
        system = f"x-anthropic-billing-header: cc_version=2.{number}; cch={number};\n" + "Rules of this house. " * 40
        body = {"messages": user("hello"), "max_tokens": 5, "system": [{"type": "text", "text": system}]}
        return client.post(MESSAGES, json=body).json()["usage"]["cache_read_input_tokens"]

    assert cached(12345) == 0 and cached(98765) > 64


def test_stop_sequences_are_named(client):
    body = {"messages": user("stop here"), "max_tokens": 100, "stop_sequences": ["absent", "STOP"]}
    reply = client.post(MESSAGES, json=body).json()
    assert reply["stop_reason"] == "stop_sequence" and reply["stop_sequence"] == "STOP"
    assert reply["content"] == [{"type": "text", "text": "One. ", "citations": None}]


@pytest.mark.parametrize(
    ("extra", "mention"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"thinking": {"type": "enabled", "budget_tokens": -5}}, "budget_tokens"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": "claude"}, "claude"),
    ],
)
def test_errors_have_the_dialects_shape(client, extra, mention):
    reply = client.post(MESSAGES, json={"messages": user("hello"), "max_tokens": 5, **extra})
    error = reply.json()
    assert reply.status_code in (400, 404) and error["type"] == "error" and mention in error["error"]["message"]
