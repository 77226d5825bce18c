"""Many clients for minutes: replies whole and streamed, cancels, disconnects and nonsense, on a real server process.

    python tests/serve/soak.py --seconds 600

Each reply is compared with the one that the same request got alone, before, from a server that did nothing else. At the
end nothing may be left: no running request, no page in use, 2% more memory at most than after a warm-up of three
minutes (LOG.md, 2026-11-29). Memory is looked at once the server has given freed blocks back, which it does after ten
seconds without a request; before, it tells the largest crowd that there ever was. Then the server is killed and started
again, and has to give the same replies.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NANO = Path(__file__).parents[2] / "models" / "nano"
CHAT, MESSAGES, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"
NONSENSE = [b"", b"{", b"[]", b"\xff\x00", b'{"messages": 3}', b'{"messages": [], "n": "x"}', b'{"model": "gpt"}']
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer", "maximum": 999}}, "required": ["answer"]}
PARTS = 5
"""Of the time after the warm-up; memory and pages are looked at after each."""
REST = 12.0
"""Seconds in which a server that nobody asks gives freed memory back."""
KINDS = ("whole", "stream", "stream", "leave", "leave early", "nonsense", "answer now")


def bodies(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests of all modes, each of which has one reply: it is greedy or has a seed."""
    dice = random.Random(0)
    history = "You know the rules of this house. " * 12
    made: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        text = dice.choice([history, ""]) + f"What is {dice.randrange(99)} + {dice.randrange(99)}?"
        how: dict[str, Any] = dice.choice([{"temperature": 0}, {"temperature": 0.9, "seed": number}])
        limit = dice.choice([8, 40, 120])
        chat = {"messages": [{"role": "user", "content": text}], "max_tokens": limit, **how}
        form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
        messages = {key: value for key, value in chat.items() if key != "seed"} | {"temperature": 0}
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 30}}
        made.append(
            [
                (CHAT, {**chat, "logprobs": True}),
                (CHAT, {**chat, "thinking_budget": dice.choice([3, 20, -1])}),
                (CHAT, {**chat, "response_format": form, "max_tokens": 200}),
                (CHAT, {**chat, "n": 2, "temperature": 1.0, "seed": number}),
                (MESSAGES, {**messages, **dice.choice([{}, thinking])}),
                (RESPONSES, {"input": text, "max_output_tokens": limit, **how}),
                (COMPLETIONS, {"prompt": text, "max_tokens": limit, "logprobs": 1, **how}),
            ][number % 7]
        )
    return made


class Server:
    """``axk1 serve`` as a process."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "axk1", "serve", model, "--port", "0", "--max-requests", "16"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " answers at " not in line:
            raise SystemExit(f"The server did not start: {line}")
        self.host, self.port = line.split("http://")[1].strip().split(":")

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def open(
        self, path: str, content: bytes, method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a request."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return reader, writer

    async def ask(self, path: str, content: bytes, method: str = "POST") -> tuple[int, str]:
        """Status and body of a reply, of whatever length."""
        reader, writer = await self.open(path, content, method)
        try:
            raw = await asyncio.wait_for(reader.read(), 300)
        finally:
            writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = b"".join(_chunks(body))
        return int(head.split()[1]), body.decode()

    async def idle(self) -> float:
        """Waits until nothing runs; the share of pages that is in use then."""
        for _ in range(600):
            _, text = await self.ask("/metrics", b"", "GET")
            found = {name: float(value) for name, value in re.findall(r"^vllm:(\w+)\{[^}]*\} ([\d.e+-]+)$", text, re.M)}
            if not found["num_requests_running"] and not found["num_requests_waiting"]:
                return found["kv_cache_usage_perc"]
            await asyncio.sleep(0.1)
        raise AssertionError("Requests run on that nobody waits for.")


def _chunks(body: bytes) -> list[bytes]:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return pieces


def told(path: str, text: str, streamed: bool) -> Any:
    """What a reply says: texts, log-probabilities and how it ended, of each choice; the same for both forms."""
    if not streamed:
        return _whole(path, json.loads(text))
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    assert not any(event.get("error") for event in events), f"{path}: an error within the stream: {events[-1]}"
    if path == RESPONSES:
        return _whole(path, events[-1]["response"])
    if path == MESSAGES:
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        texts = ["".join(delta.get(name, "") for delta in deltas) for name in ("thinking", "text")]
        return [*texts, events[-2]["delta"]["stop_reason"], events[-2]["usage"]["output_tokens"]]
    found: dict[int, list[Any]] = {}
    for event in events:
        for choice in event["choices"]:
            mine = found.setdefault(choice["index"], ["", "", [], None])
            delta = choice.get("delta", choice)
            mine[0] += delta.get("reasoning") or ""
            mine[1] += delta.get("content") or delta.get("text") or ""
            mine[2] += _scores(choice["logprobs"])
            mine[3] = choice["finish_reason"] or mine[3]
    return [found[index] for index in sorted(found)]


def _whole(path: str, reply: dict[str, Any]) -> Any:
    if path == RESPONSES:
        return [
            [item["content"][0]["text"] for item in reply["output"]],
            reply["status"],
            reply["usage"]["output_tokens"],
        ]
    if path == MESSAGES:
        texts = ["".join(block.get(name, "") for block in reply["content"]) for name in ("thinking", "text")]
        return [*texts, reply["stop_reason"], reply["usage"]["output_tokens"]]
    choices = []
    for choice in reply["choices"]:
        message = choice.get("message", {})
        text = message.get("content") or choice.get("text") or ""
        choices.append([message.get("reasoning", ""), text, _scores(choice["logprobs"]), choice["finish_reason"]])
    return choices


def _scores(logprobs: dict[str, Any] | None) -> list[Any]:
    return [] if logprobs is None else list(logprobs.get("content") or logprobs.get("token_logprobs") or [])


async def client(
    server: Server, number: int, asked: list[tuple[str, dict[str, Any]]], expected: list[Any], end: float
) -> int:
    """Asks until ``end``; how many replies were compared."""
    dice, compared = random.Random(number), 0
    while time.monotonic() < end:
        kind, at = dice.choice(KINDS), dice.randrange(len(asked))
        path, body = asked[at]
        if kind == "nonsense":
            status, _ = await server.ask(dice.choice([CHAT, MESSAGES, RESPONSES, COMPLETIONS]), dice.choice(NONSENSE))
            assert 400 <= status < 500, (kind, status)
        elif kind in ("whole", "stream"):
            content = json.dumps({**body, "stream": kind == "stream"}).encode()
            status, text = await server.ask(path, content)
            if status == 503:
                await asyncio.sleep(0.2)
                continue
            assert status == 200, (path, status, text[:500])
            assert told(path, text, kind == "stream") == expected[at], (path, body, text[:500], expected[at])
            compared += 1
        else:
            await _leave(server, kind, path, body, dice)
    return compared


async def _leave(server: Server, kind: str, path: str, body: dict[str, Any], dice: random.Random) -> None:
    """Begins a stream and goes away, at once or after some of it; or asks for the answer first."""
    body = {**body, "stream": True, **({"enable_thinking": True} if kind == "answer now" and path == CHAT else {})}
    reader, writer = await server.open(path, json.dumps(body).encode())
    try:
        if kind == "leave early":
            await asyncio.sleep(dice.random() * 0.05)
            return
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 300)
        name = re.search(rb"x-request-id: (\S+)", head)
        if kind == "answer now" and name and path != COMPLETIONS:
            status, _ = await server.ask(f"{path}/{name[1].decode()}/answer", b"")
            assert status in (200, 404), status
        await asyncio.wait_for(reader.read(dice.choice([10, 500, 100_000])), 300)
    finally:
        writer.close()


async def soak(options: argparse.Namespace) -> dict[str, Any]:
    """All of it.

    Raises:
        AssertionError: for the first thing that is wrong.
    """
    asked = bodies(options.requests)
    server = Server(options.model)
    try:
        expected = [told(path, (await server.ask(path, json.dumps(body).encode()))[1], False) for path, body in asked]
        compared, usage, sizes, begun = 0, [], [], time.monotonic()
        for part in range(PARTS + 1):
            length = (options.seconds - options.warm_up) / PARTS if part else options.warm_up
            end = time.monotonic() + length
            done = await asyncio.gather(
                *(client(server, 1_000 * part + number, asked, expected, end) for number in range(options.clients))
            )
            compared += sum(done)
            usage.append(await server.idle())
            await asyncio.sleep(REST)
            sizes.append(server.resident)
            sys.stdout.write(f"{time.monotonic() - begun:.0f} s: {compared} replies compared, {sizes[-1]} bytes\n")
            sys.stdout.flush()
        assert not any(usage), f"pages are in use when nothing runs: {usage}"
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    server = Server(options.model)
    try:
        for (path, body), before in zip(asked, expected, strict=True):
            _, text = await server.ask(path, json.dumps(body).encode())
            assert told(path, text, False) == before, (path, body, text[:500])
    finally:
        server.process.kill()
        server.process.wait()
    growth = sizes[-1] / sizes[0] - 1
    assert growth <= options.growth, f"memory grew by {growth:.1%}: {sizes}"
    return {"compared": compared, "memory growth": growth, "bytes": sizes}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(NANO))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=180, help="seconds after which memory is first looked at")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=70, help="different ones")
    parser.add_argument("--growth", type=float, default=0.02, help="of memory, as a share")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.stdout.write(f"{asyncio.run(soak(parse()))}\n")
