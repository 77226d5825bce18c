"""A server in a thread, asked over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerFast

from axk1.chat.session import TURN_ENDS
from axk1.engine.interface import Engine
from axk1.engine.scripted import Pace, Script, ScriptedEngine
from axk1.serve.app import make_app
from axk1.serve.run import Server, listen
from axk1.serve.service import Service
from axk1.serve.settings import Settings

NANO = Path(__file__).parents[2] / "models" / "nano"
FAMILY = "👨‍👩‍👧‍👦 뷁 안녕"
CALLS = (
    'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "서울", "days": [1, 2]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)
SCRIPTS = [
    Script([CALLS], "look twice", "Two tools, so </tool_call> twice."),
    Script(["30 degrees"], "forgetful", 'Now <tool_call>{"name": "clock"}</tool_call> is it.', closes=False),
    Script(["a", "b", "c", "d"], "choose"),
    Script(["done"], "ponder", "and so on, " * 200),
    Script(["One. STOP two. " + "more " * 100], "stop here"),
    Script(["word " * 300], "long reply"),
    Script([f"Hello there! {FAMILY}"], "", "Let me think."),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]


@dataclass
class Running:
    """A server that answers at ``url``."""

    url: str
    service: Service
    server: Server
    thread: threading.Thread

    def client(self, **options: Any) -> httpx2.Client:
        """A client of it."""
        return httpx2.Client(base_url=self.url, timeout=30, **options)

    def wait_idle(self) -> None:
        """Until the engine runs nothing."""
        wait_for(lambda: not (now := self.service.engine.statistics()).running and not now.waiting)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    """Until ``condition()``; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


@contextmanager
def serving(engine: Engine, tokenizer: PreTrainedTokenizerFast, settings: Settings | None = None) -> Iterator[Running]:
    """A server over ``engine``, until the block ends."""
    settings = settings or Settings()
    app = make_app(engine, tokenizer, [tokenizer.get_vocab()[end] for end in TURN_ENDS], settings)
    server = Server(app, settings, lambda _: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listen("127.0.0.1", 0)]})
    thread.start()
    try:
        wait_for(lambda: server.address)
        yield Running(server.address, app.state.service, server, thread)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def scripted(tokenizer: PreTrainedTokenizerFast, **pace: Any) -> ScriptedEngine:
    """An engine that writes :data:`SCRIPTS`."""
    return ScriptedEngine(tokenizer, SCRIPTS, Pace(**pace))


def user(text: Any) -> list[dict[str, Any]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, without ``[DONE]``."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def assembled(chunks: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The choices of a streamed chat, put together as clients do."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            empty = {"content": "", "reasoning": "", "reasoning_content": "", "calls": {}, "logprobs": [], "ends": []}
            choice = choices.setdefault(part["index"], empty)
            for name in ("content", "reasoning", "reasoning_content"):
                choice[name] += part["delta"].get(name) or ""
            for call in part["delta"].get("tool_calls", []):
                known = choice["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                known["name"] += call["function"].get("name", "")
                known["arguments"] += call["function"]["arguments"]
            choice["logprobs"] += (part["logprobs"] or {}).get("content", [])
            choice["ends"] += [part["finish_reason"]] if part["finish_reason"] else []
    return choices
