"""Options of requests and of the server that no other file here asks for: each changes what it says."""

import hmac
import logging
import re

import pytest
from serving import TOOLS, events, scripted, serving, user

from axk1.engine.interface import wake
from axk1.serve.settings import Settings

PATH = "/v1/chat/completions"
LONG = {"messages": user("long reply"), "temperature": 0, "max_tokens": 12}


def ask(client, **body):
    reply = client.post(PATH, json={**LONG, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def test_roles_and_parts(client):
    """A developer is the system; content in parts is the text; tools tell their results."""

    def tokens(*messages):
        reply = client.post("/tokenize", json={"messages": messages, "tools": TOOLS})
        assert reply.status_code == 200, reply.text
        return reply.json()["tokens"]

    rules, parts = "Be brief.", [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    system = tokens({"role": "system", "content": rules}, *user("hello"))
    assert system == tokens({"role": "developer", "content": rules}, *user(parts))
    assert system != tokens(*user("hello"))
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [*user("hello"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    told = tokens(*turns, {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]})
    assert told == tokens(*turns, {"role": "tool", "tool_call_id": "c1", "content": "noon"})


def test_biases_and_penalties(client, tokenizer):
    """What is written word by word changes: at its first token, or once it repeats itself."""
    plain = ask(client)["message"]["content"]
    assert plain.split()[:5] == ["word"] * 5
    (other,) = tokenizer.encode("7", add_special_tokens=False)
    assert ask(client, logit_bias={str(other): 1e6}, max_tokens=3)["message"]["content"] == "777"
    refused = client.post(PATH, json={**LONG, "logit_bias": {str(len(tokenizer)): 1}})  # a model may have more rows
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "logit_bias"
    for name in ("presence_penalty", "frequency_penalty"):
        assert ask(client, **{name: 1e6})["message"]["content"].split()[:3] != ["word"] * 3, name


def test_ends(client, tokenizer):
    """Tokens that end a reply, the least there may be, and both names of the most."""
    (word,) = {id for id in tokenizer.encode(" word word", add_special_tokens=False)}
    assert ask(client, stop_token_ids=[word])["finish_reason"] == "stop"
    body = {"messages": user("choose"), "seed": 1, "logprobs": True}
    assert len(ask(client, **body)["logprobs"]["content"]) == 2
    assert len(ask(client, **body, min_tokens=6)["logprobs"]["content"]) >= 6
    for names in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}):
        reply = client.post(PATH, json={**LONG, "max_tokens": None, **names}).json()
        assert reply["usage"]["completion_tokens"] == 5 and reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"regex": "[0-9]{3}-[abc]"}, r"\d{3}-[abc]"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "a" x\nx: "b" "c"'}, "abc"),
        ({"json": {"enum": [7, "seven"]}}, r'\s*(7|"seven")\s*'),
    ],
    ids=str,
)
def test_structured_outputs_of_all_kinds(client, asked, pattern):
    """The script writes something else, so that only the grammar can make these."""
    for path, more in ((PATH, {"messages": user("hello")}), ("/v1/completions", {"prompt": "hello"})):
        (choice,) = client.post(path, json={**more, "structured_outputs": asked, "max_tokens": 40}).json()["choices"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        assert re.fullmatch(pattern, text) and choice["finish_reason"] == "stop", text


def test_a_strict_function_is_called_as_its_schema_says(client):
    """The script's calls are others'."""
    zone = {"type": "object", "properties": {"zone": {"enum": ["KST"]}}, "required": ["zone"]}
    tool = {"type": "function", "function": {"name": "clock", "strict": True, "parameters": zone}}
    body = {"messages": user("look twice"), "tools": [tool], "parallel_tool_calls": False, "max_tokens": 80}
    (call,) = ask(client, **body)["message"]["tool_calls"]
    assert call["function"] == {"name": "clock", "arguments": '{"zone": "KST"}'}


def test_usage_with_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = events(client.post(PATH, json={**LONG, "stream": True, "stream_options": options}).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in told]
    assert counts == sorted(counts) and counts[-1] == 12
    assert len(set(counts)) > 1, "steps that come while the client is not looking are one chunk"


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_in_the_log_only_where_that_is_asked_for(tokenizer, caplog, asked):
    caplog.set_level(logging.INFO)
    with serving(scripted(tokenizer), tokenizer, Settings(log_prompts=asked)) as running, running.client() as client:
        client.post(PATH, json={"messages": user("xyzzy-secret")})
    assert ("xyzzy-secret" in caplog.text) == asked


def test_all_keys_are_compared_in_constant_time(tokenizer, monkeypatch):
    """Each of them, whichever fits, by hmac's comparison of digests of one length."""
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr("axk1.serve.guard.hmac.compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    keys = Settings(api_keys=["first", "second", "third"])  # pyright: ignore[reportArgumentType]
    with serving(scripted(tokenizer), tokenizer, keys) as running, running.client() as client:
        for key, status in (("first", 200), ("third", 200), ("wrong", 401), ("f", 401), ("x" * 5_000, 401)):
            compared.clear()
            assert client.get("/v1/models", headers={"x-api-key": key}).status_code == status
            assert len(compared) == 3 and {len(each) for pair in compared for each in pair} == {32}


@pytest.mark.parametrize("kind", ["web_search", "namespace", "custom", "file_search", "unheard_of"])
def test_tools_of_other_kinds_are_taken_and_named(client, kind):
    body = {"input": "hello", "tools": [{"type": kind, "name": "x"}]}
    reply = client.post("/v1/responses", json=body)
    assert reply.status_code == 200 and reply.headers["x-axk1-ignored"] == f"tools.{kind}"


def test_a_model_that_fails_is_a_500_that_is_counted(tokenizer, caplog):
    """In the dialects' shapes; the next request is answered."""
    engine = scripted(tokenizer)
    step = engine._step

    def failing(runs):
        for run in runs:
            run.generation.finish("error", RuntimeError("out of memory"))
        engine._running = []
        wake(run.generation for run in runs)

    with serving(engine, tokenizer) as running, running.client() as client:
        engine._step = failing
        replies = [client.post(path, json={**LONG, "input": "hello"}) for path in (PATH, "/v1/messages")]
        assert [reply.status_code for reply in replies] == [500, 500] and "out of memory" in caplog.text
        assert replies[0].json()["error"]["type"] == "server_error" and replies[1].json()["type"] == "error"
        streamed = client.post(PATH, json={**LONG, "stream": True})
        assert streamed.status_code == 200 and events(streamed.text)[-1]["error"]["type"] == "server_error"
        failed = events(client.post("/v1/responses", json={"input": "hello", "stream": True}).text)[-1]
        assert failed["type"] == "response.failed" and failed["response"]["error"]["code"] == "server_error"
        engine._step = step
        assert client.post(PATH, json=LONG).status_code == 200
        counted = re.findall(r'request_success_total{.*finished_reason="(\w+)".*} (\S+)', client.get("/metrics").text)
    assert dict(counted) == {"error": "4.0", "length": "1.0"}
