"""``axk1 serve`` without ``--engine``: what it refuses, what it makes of its options, and the place for the page."""

import json
import re

import pytest
from serving import NANO, scripted, serving
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.cli.serve_here import Here, _engine_settings, _names, _settings
from axk1.engine.settings import Settings as EngineSettings
from axk1.serve import app as application
from axk1.serve.run import listen
from axk1.serve.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["models/nano", "--gpus", "2", "--context", "9"],
            "--engine is missing; use vllm or sglang (or leave out --gpus",
        ),
        (["models/nano", "--", "--enforce-eager"], "'--enforce-eager' is not read"),
        (["models/nano", "--engine", "vllm", "--name", "x"], "--name are for axk1's own server"),
        (["models/nano", "--port", "70000"], "--port is 70000"),
        (["models/nano", "--max-requests", "0"], "--max-requests is 0; it must be at least 1"),
        (["models/nano", "--mtp", "-1"], "--mtp is -1; it must be at least 0"),
        (["models/nano", "--host", "x" * 300], "which is no address of this machine"),
        (["scripted:nowhere.json"], "nowhere.json"),
        (["nowhere"], "There is no checkpoint at nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_a_port_in_use_is_said_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("axk1.cli.serve_here._engine", lambda *_: pytest.fail("the model was loaded"))
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "models/nano", "--port", str(port)])
    assert result.exit_code == 2 and f"Address already in use: 127.0.0.1 port {port}" in result.stderr


def test_a_file_that_is_no_script(tmp_path):
    for text in ("{", "[]", '{"replies": [{}]}', '{"replies": [{"reply": "x", "oops": 1}]}'):
        (tmp_path / "x.json").write_text(text)
        result = CliRunner().invoke(app, ["serve", f"scripted:{tmp_path / 'x.json'}"])
        assert result.exit_code == 2 and "is no file of scripted replies" in result.stderr


def test_options_and_environment(monkeypatch):
    monkeypatch.setenv("AXK1_SERVE_MAX_BODY", "8388608")
    monkeypatch.setenv("AXK1_SERVE_API_KEYS", '["from the environment"]')
    found = _settings(Here("models/nano", api_key="sesame, other", think=True, allow_origin=["https://a.example"]))
    assert [key.get_secret_value() for key in found.api_keys] == ["sesame", "other"]
    assert found.max_body == 8388608 and found.think and found.origins == ["https://a.example"]
    assert len(_settings(Here("models/nano")).api_keys) == 1
    assert "sesame" not in repr(found) + repr(Here("x", api_key="sesame"))
    monkeypatch.setenv("AXK1_SERVE_MAX_BODY", "lots")
    with pytest.raises(ValueError, match="AXK1_SERVE_MAX_BODY"):
        _settings(Here("models/nano"))


def test_what_the_engine_is_told(monkeypatch):
    """Its own defaults, but for what options and environment say."""
    monkeypatch.setenv("AXK1_SERVE_PROMPT_TOKENS", "128")
    monkeypatch.setenv("AXK1_SERVE_STREAM_INTERVAL", "0.5")
    asked = Here("models/nano", max_requests=3, mtp=0)
    found, plain = _engine_settings(asked, _settings(asked)), EngineSettings()
    assert (found.streams, found.prompt_tokens, found.drafts.count) == (3, 128, 0)
    assert found.stream_interval == 0.5 != plain.stream_interval
    assert (found.pages, found.waiting) == (plain.pages, plain.waiting)
    monkeypatch.setenv("AXK1_SERVE_PROMPT_TOKENS", "5")
    with pytest.raises(ValueError, match="prompt_tokens is 5; it must be 64 or more"):
        _engine_settings(asked, _settings(asked))


def test_names():
    assert _names("models/nano") == ["nano", "axk1", "models/nano"]
    assert _names("skt/A.X-K1") == ["A.X-K1", "axk1", "skt/A.X-K1"]
    assert _names("scripted:x.json") == ["scripted", "axk1"]


def test_the_page_has_its_place(tmp_path, monkeypatch, tokenizer):
    (tmp_path / "js").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>axk1</title>")
    (tmp_path / "js" / "main.js").write_text("export {};")
    monkeypatch.setattr(application, "PAGE", tmp_path)
    settings = Settings(api_keys=["sesame"])  # pyright: ignore[reportArgumentType]
    with serving(scripted(tokenizer), tokenizer, settings) as running, running.client() as client:
        for path in ("/page/", "/page/js/main.js"):
            reply = client.get(path)
            policy = reply.headers["content-security-policy"]
            assert reply.status_code == 200 and "default-src 'self'" in policy and not re.search("unsafe|http", policy)
        assert client.get("/").headers["location"] == "/page/"
        for path in ("/page/../v1/models", "/page/%2e%2e/v1/models", "/page/absent", "/v1/models"):
            assert client.get(path).status_code in (401, 404)


def test_open_shows_the_page_in_the_browser(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    monkeypatch.setattr("axk1.serve.run.run", lambda *arguments: arguments[-1]("http://127.0.0.1:1"))
    (tmp_path / "x.json").write_text(json.dumps({"tokenizer": str(NANO), "replies": []}))
    for options, expected in (([], []), (["--open"], ["http://127.0.0.1:1"])):
        result = CliRunner().invoke(app, ["serve", f"scripted:{tmp_path / 'x.json'}", *options])
        assert result.stdout == "scripted answers at http://127.0.0.1:1\n" and shown == expected
