"""Many clients at once, some of which behave badly: no reply is lost or mixed up, and nothing is left behind."""

import random
import threading
from typing import Any

import httpx2
from serving import Running, assembled, events, serving, user

from axk1.engine.scripted import Pace, Script, ScriptedEngine

CLIENTS, REQUESTS, REPLIES = 8, 12, 97
SCRIPTS = [Script([f"This is reply {i}. " + "filler " * (i % 9) for i in range(REPLIES)], reasoning="Hm. " * 20)]


def ask(running: Running, client: httpx2.Client, dice: random.Random) -> None:
    number = dice.randrange(REPLIES)
    think = dice.random() < 0.5
    body: dict[str, Any] = {"messages": user("which " * dice.randint(1, 60)), "seed": number, "enable_thinking": think}
    expected = SCRIPTS[0].reply[number]
    kind = dice.choice(["whole", "stream", "leave", "malformed", "messages", "responses"])
    if kind == "whole":
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["message"]["content"] == expected and ("reasoning" in choice["message"]) == think
    elif kind == "stream":
        reply = client.post("/v1/chat/completions", json={**body, "stream": True})
        assert assembled(events(reply.text))[0]["content"] == expected
    elif kind == "leave":
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            for _ in zip(range(dice.randint(0, 3)), reply.iter_lines(), strict=False):
                pass
    elif kind == "malformed":
        content = dice.choice([b"{", b"[]", b'{"messages": 3}', b'{"messages": [], "n": "x"}', b"\xff\x00"])
        assert client.post("/v1/chat/completions", content=content).status_code == 400
    elif kind == "messages":
        reply = client.post("/v1/messages", json={"messages": user("hello"), "max_tokens": dice.randint(1, 40)})
        assert reply.json()["content"][0]["text"].startswith("This"[: len(reply.json()["content"][0]["text"])])
    else:
        reply = client.post("/v1/responses", json={"input": "hello", "seed": number, "stream": True})
        assert events(reply.text)[-1]["response"]["output"][-1]["content"][0]["text"] == expected


def test_many_clients(tokenizer):
    engine = ScriptedEngine(tokenizer, SCRIPTS, Pace(token=0.0005, running=5))
    faults: list[BaseException] = []

    def work(running: Running, number: int) -> None:
        dice = random.Random(number)
        try:
            with running.client() as client:
                for _ in range(REQUESTS):
                    ask(running, client, dice)
        except BaseException as fault:
            faults.append(fault)

    with serving(engine, tokenizer) as running:
        threads = [threading.Thread(target=work, args=(running, number)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running.wait_idle()
        assert not faults, faults[0]
        assert not running.service._running and engine.statistics().pages_used == 0
