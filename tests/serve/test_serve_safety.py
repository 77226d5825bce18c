"""What the server refuses, and what nobody can make it do."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from serving import NANO, TOOLS, scripted, serving, user, wait_for
from starlette.routing import Mount, Route

from axk1.serve.guard import OPEN
from axk1.serve.settings import Settings

PAGE = {"/", "/page"}
"""What a browser asks for without a key: nothing of it is secret."""
PATH = "/v1/chat/completions"
HELLO = {"messages": user("hello")}


def test_loopback_unless_told():
    from axk1.cli.serve_here import Here

    assert Here("nano").host == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_hosts_name_is_refused(client, host):
    """A page whose name was given this machine's address (rebinding) still says its own name."""
    for path in ("/health", "/v1/models", "/nothing"):
        assert client.get(path, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_a_page_elsewhere_is_refused_and_cors_is_closed(client, origin):
    replies = [
        client.post(PATH, json=HELLO, headers={"Origin": origin}),
        client.options(PATH, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}),
    ]
    for reply in replies:
        assert reply.status_code == 403
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_own_pages_and_allowed_ones_may_ask(server, client, tokenizer):
    assert client.post(PATH, json=HELLO, headers={"Origin": server.url}).status_code == 200
    settings = Settings(origins=["https://example.org"], hosts=["my.host"])
    with serving(scripted(tokenizer), tokenizer, settings) as running, running.client() as other:
        assert other.post(PATH, json=HELLO, headers={"Origin": "https://example.org"}).status_code == 200
        assert other.get("/v1/models", headers={"Host": "my.host:1234"}).status_code == 200


@pytest.fixture(scope="module")
def locked(tokenizer):
    """A server with two keys."""
    with serving(scripted(tokenizer), tokenizer, Settings(api_keys=["sesame", "other"])) as running:  # pyright: ignore
        yield running


def test_every_route_but_health_asks_for_the_key(locked):
    routes = [route for route in locked.server.config.app.routes if isinstance(route, Route | Mount)]
    paths = {route.path.replace("{id}", "x").replace("{name:path}", "x") for route in routes}
    assert {PATH, "/v1/messages", "/v1/responses", "/metrics", "/openapi.json", "/tokenize", "/v1/models/x"} <= paths
    tricks = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic sesame"},
        {"x-api-key": "Sesame"},
        {"Authorization": "Bearer"},
        {"X-Original-URL": "/health", "X-Rewrite-URL": "/health", "X-Forwarded-Prefix": "/health"},
        {"Host": "127.0.0.1/health?"},
    ]
    with locked.client() as client:
        for path in sorted(paths - OPEN - PAGE):
            assert {client.request(method, path).status_code for method in ("GET", "POST")} == {401}, path
        for headers in tricks:
            assert client.get("/v1/models", headers=headers).status_code in (401, 403), headers
        assert {client.request(method, PATH).status_code for method in ("HEAD", "OPTIONS", "PUT")} == {401}
        for path in OPEN:
            assert client.get(path).status_code == 200
        assert client.get("/").status_code == 307 and client.get("/page/").status_code == 200  # where the key is typed
        assert client.get("/page/index.html").status_code == 200 and client.post("/page/").status_code == 405
        for odd in ("/page/none.js", "/page/../v1/models", "/page/..%2fapp.py", "/page/%2e%2e/app.py"):
            assert client.get(odd).status_code == 401, odd
        for odd in ("/health/", f"{locked.url}//health", "/health/../v1/models", "/%68ealth/..%2fmetrics", "/HEALTH"):
            assert client.get(odd).status_code == 401
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer sesame"}, {"x-api-key": "sesame"}, {"authorization": "bearer other"}):
            assert client.post(PATH, json=HELLO, headers=headers).status_code == 200


def test_keys_share_neither_prefixes_nor_replies(locked, tokenizer):
    body = {"messages": user("secret words " * 60)}
    with locked.client() as client:

        def cached(key):
            usage = client.post(PATH, json=body, headers={"x-api-key": key}).json()["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        assert cached("sesame") == 0 and cached("sesame") > 0 and cached("other") == 0
    keys = Settings(api_keys=["sesame", "other"])  # pyright: ignore[reportArgumentType]
    thought = {"messages": user("ponder"), "enable_thinking": True, "stream": True}
    with (
        serving(scripted(tokenizer, token=0.01), tokenizer, keys) as running,
        running.client() as client,
        client.stream("POST", PATH, json=thought, headers={"x-api-key": "sesame"}) as reply,
    ):
        steered = f"{PATH}/{reply.headers['x-request-id']}/answer"
        assert client.post(steered, headers={"x-api-key": "other"}).status_code == 404
        assert client.post(steered, headers={"x-api-key": "sesame"}).status_code == 200


BOUNDS = [
    {**HELLO, "n": 17},
    {**HELLO, "n": 10**12},
    {**HELLO, "stop": ["x"] * 17},
    {**HELLO, "top_logprobs": 10**6, "logprobs": True},
    {**HELLO, "logit_bias": {str(i): 1 for i in range(5000)}},
    {**HELLO, "logit_bias": {"999999": 1}},
    {**HELLO, "tools": [TOOLS[1]] * 129},
    {"messages": user("x") * 2049},
    {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}}},
    {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
    {**HELLO, "structured_outputs": {"regex": "(" * 60_000 + ")" * 60_000}},
    {**HELLO, "structured_outputs": {"regex": "(?=a)"}},
    {**HELLO, "structured_outputs": {"grammar": "start: ("}},
    {**HELLO, "chat_template_kwargs": {"enable_thinking": True, "chat_template": "{{ x }}"}},
    {**HELLO, "seed": 2**64},
    {**HELLO, "temperature": -1},
    {**HELLO, "temperature": "hot"},
    {**HELLO, "max_tokens": 0},
    {**HELLO, "max_tokens": 5, "max_completion_tokens": 6},
    {**HELLO, "stream_options": {"include_usage": "yes"}, "stream": True},
    {**HELLO, "thinking_budget": 5, "budget_tokens": 6},
    {**HELLO, "tool_choice": "required"},
    {**HELLO, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "none of these"}}},
    {"messages": user([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}])},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": user("word " * 5000)},
    {"messages": None},
    {},
]


@pytest.mark.parametrize("body", BOUNDS, ids=range(len(BOUNDS)))
def test_what_is_too_much_or_wrong_is_a_400_that_says_so(client, body):
    reply = client.post(PATH, content=json.dumps(body), headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["type"] == "invalid_request_error"
    assert len(error["message"]) > 20 and error["message"].count("\n") == 0


def test_bodies_that_are_no_json_or_too_large(client):
    kind = {"content-type": "application/json"}
    for content in (b"[" * 60_000, b"{", b"\xff", b"null", b"[]", b'{"messages": NaN}', b'{"a":' * 30_000):
        assert client.post(PATH, content=content, headers=kind).status_code == 400
    for headers, came in (({"content-type": "text/plain"}, "as text/plain"), ({}, "without a type")):
        wrong = client.post(PATH, content=json.dumps(HELLO), headers=headers)
        assert wrong.status_code == 400 and f"The body came {came}: send JSON" in wrong.json()["error"]["message"]
    for content in (b" " * 5_000_000, iter([b" " * 100_000] * 50)):
        reply = client.post(PATH, content=content, headers=kind)
        assert reply.status_code == 413 and reply.json()["error"]["message"]
    assert client.post("/v1/messages", content=b"{", headers=kind).json()["type"] == "error"


@pytest.mark.parametrize("depth", [100, 950, 20_000])
def test_values_in_each_other_never_break_the_server(client, depth):
    text = "[" * depth + "]" * depth
    fields = ["messages", "tools", "response_format", "stream_options", "tool_choice", "thinking", "logit_bias", "x"]
    for name in fields:
        for value in (text, f'{{"type": {text}}}', f'[{{"role": "user", "content": {text}}}]'):
            body = f'{{"messages": [{{"role": "user", "content": "hello"}}], "max_tokens": 3, "{name}": {value}}}'
            for path in (PATH, "/v1/messages", "/v1/responses"):
                reply = client.post(path, content=body, headers={"content-type": "application/json"})
                assert reply.status_code in (200, 400), (name, value[:40], reply.text[:300])


def test_a_schema_within_a_schema_within(client):
    schema: dict = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert "deep" in client.post(PATH, json={**HELLO, "response_format": form}).json()["error"]["message"]


def test_hard_schemas_do_not_stop_the_event_loop(server):
    """A request that others wait behind would show in how long the health route takes."""
    pattern = {"type": "string", "pattern": "(" * 60_000}
    wide = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": "[a-z]{1,50}x?"} for i in range(300)},
    }
    bodies = [{**HELLO, "max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {"schema": each}}}
              for each in (pattern, wide)]  # fmt: skip
    codes: list[int] = []

    def ask() -> None:
        with server.client() as client:
            codes.extend(client.post(PATH, json=body).status_code for body in bodies * 3)

    thread = threading.Thread(target=ask)
    thread.start()
    lags = []
    with server.client() as client:
        while thread.is_alive():
            begun = time.perf_counter()
            client.get("/health")
            lags.append(time.perf_counter() - begun)
    assert codes[0] == 400 and 500 not in codes
    assert sorted(lags)[int(len(lags) * 0.9)] < 0.1


def test_sixty_thousand_parentheses_are_a_400_and_the_event_loop_goes_on(tokenizer):
    """Its lag, as /metrics tells it, stays below a tenth of a second."""
    texts = ["(" * 60_000, "(" * 30_000 + ")" * 30_000]
    bodies: list[dict] = [{**HELLO, "structured_outputs": {"regex": text}} for text in texts]
    for schema in ({"type": "string", "pattern": texts[0]}, {"patternProperties": {texts[0]: {}}}):
        bodies.append({**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
    with serving(scripted(tokenizer), tokenizer) as running, running.client() as client:
        begun = time.monotonic()
        while time.monotonic() < begun + 1:
            assert {client.post(PATH, json=body).status_code for body in bodies} == {400}
        lags = {
            edge: float(count)
            for edge, count in re.findall(
                r'event_loop_lag_seconds_bucket.*le="(.+?)".* (\S+)', client.get("/metrics").text
            )
        }
    assert lags["+Inf"] > 8 and lags["0.1"] >= lags["+Inf"] - 1  # one for whatever else the machine did


@pytest.mark.parametrize("line", [b"x-long: " + b"x" * 9_990 + b"\r\n", b"x" * 10_000, b"a: b\r\n" * 1_600])
def test_headers_are_bounded(server, line):
    """Whoever goes on sending them is cut off: long ones, one without an end, many."""
    address = server.url.removeprefix("http://")
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: {address}\r\n".encode())
        sent, told = 0, b""
        with contextlib.suppress(ConnectionError):
            while sent < 20_000_000:
                connection.sendall(line)
                sent += len(line)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(4096):
                told += piece
    assert sent < 20_000_000 and (not told or told.startswith(b"HTTP/1.1 4"))
    with server.client() as client:
        assert client.get("/health", headers={"x-some": "x" * 30_000}).status_code == 200


def test_urls_are_never_fetched(client):
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.2)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        schema = {"type": "json_schema", "json_schema": {"schema": {"$ref": url}}}
        for body in (
            {"messages": user([{"type": "image_url", "image_url": {"url": url}}])},
            {"messages": user(f"![]({url})")},
            {**HELLO, "response_format": schema},
        ):
            assert client.post(PATH, json=body).status_code in (200, 400)
        with pytest.raises(TimeoutError):
            bait.accept()


def test_no_prompt_in_logs(client, caplog, capfd):
    client.post(PATH, json={"messages": user("xyzzy-secret")})
    client.post(PATH, json={"messages": user([{"type": "audio", "audio": "xyzzy-secret"}])})
    assert "xyzzy" not in caplog.text + "".join(capfd.readouterr())


def test_a_full_engine_says_when_to_come_again(tokenizer):
    with serving(scripted(tokenizer, token=0.01, running=1, waiting=1), tokenizer) as running:
        with (
            running.client() as client,
            client.stream("POST", PATH, json={"messages": user("long reply"), "stream": True}),
        ):
            wait_for(lambda: running.service.engine.statistics().running == 1)
            with client.stream("POST", PATH, json={"messages": user("long reply"), "stream": True}):
                wait_for(lambda: running.service.engine.statistics().waiting == 1)
                for path, body in ((PATH, HELLO), ("/v1/messages", {**HELLO, "max_tokens": 5})):
                    reply = client.post(path, json=body)
                    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
                reply = client.post(PATH, json={**HELLO, "n": 3})
                assert reply.status_code == 503 and running.service.engine.statistics().waiting == 1
        running.wait_idle()


def test_a_slow_reader_is_given_up(tokenizer):
    """It takes nothing: what was written for it goes no further than the socket's buffers, and then it is cut off."""
    with serving(scripted(tokenizer, token=0.0), tokenizer, Settings(send_timeout=0.3)) as running:
        host, port = running.url.removeprefix("http://").split(":")
        body = json.dumps(
            {"prompt": "long reply", "ignore_eos": True, "max_tokens": 4000, "stream": True, "logprobs": 20}
        )
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_for(lambda: running.service._running)
            wait_for(lambda: not running.service._running, 30)
        running.wait_idle()


def test_a_server_that_is_asked_to_end_finishes_what_runs(tmp_path, tokenizer):
    """SIGTERM: the running stream ends as it would have, new ones are refused, and the process ends."""
    script = {"tokenizer": str(NANO), "pace": {"token": 0.02}, "replies": [{"reply": "word " * 60}]}
    (tmp_path / "replies.json").write_text(json.dumps(script))
    command = [sys.executable, "-m", "axk1", "serve", f"scripted:{tmp_path / 'replies.json'}", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert url.startswith("http://127.0.0.1:")
        with httpx2.Client(base_url=url, timeout=30) as client:
            assert client.get("/ready").json() == {"ready": True}  # it listens no earlier than it answers
            with client.stream("POST", PATH, json={**HELLO, "stream": True}) as reply:
                lines = reply.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = "\n".join(line for line in lines if not line.startswith(":"))  # comments come from a clock
            assert rest.rstrip().endswith("data: [DONE]") and '"finish_reason":"stop"' in rest
            assert rest.count('"content":"word') + rest.count('"content":" word') > 40
            with pytest.raises(httpx2.TransportError):
                client.get("/health")
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
