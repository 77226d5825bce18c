"""`axk1 serve` beside vLLM's server for CPUs, in turns, asked by `vllm bench serve` as it comes.

    make bench-peers
    python benchmarks/serve.py models/nano --json nano.json
    python benchmarks/serve.py 440m --json 440m.json

Measured are throughput and latencies at 8 and 32 streams, the time between tokens while a prompt of 1,500 tokens
arrives, the time to the first token with and without a kept prefix, one stream beside `axk1 bench`, and the event
loop's lag. The model `440m` is bench-440m with the nano's vocabulary, so that it has a tokenizer. Let nothing else run.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from axk1.bench.engines import BASE, environment, require, start
from axk1.bench.models import BENCH_MODELS, Model, cache_root, find_model, per_expert, write_random
from axk1.config import AXK1Config

NANO = Path(__file__).parents[1] / "models" / "nano"
NAME = "bench"
LONG = 1_500
"""Tokens of the prompt that arrives, and of the prefix that is shared."""
CASES = ("load", "arrivals", "alone")
TURNS = 5
"""Replies of a single stream in a round."""
CHAT = "/v1/chat/completions"
VLLM = BASE["vllm"]
# `vllm bench` itself asks for the version of a package that the CPU's build does not have; this is what it calls.
CLIENT = (
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser; "
    "parser = Parser(); add_cli_args(parser); main(parser.parse_args())"
)
# Without the second: the rotary kernel of its CPU build turns queries wrongly where there is no YaRN.
VLLM_OPTIONS = {
    "--max-num-seqs": "32",
    "--compilation-config": '{"custom_ops": ["all", "-rotary_embedding"]}',
}


@dataclass
class Server:
    """A server that stands still unless it is asked, as threads that spin would slow the other."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    @contextmanager
    def awake(self) -> Iterator["Server"]:
        """Lets it run for a while."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield self
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """Ends it and what it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def main() -> None:
    """Measures, tells, and writes what was measured."""
    options = _options()
    cache = cache_root(None)
    folder = {"nano": NANO, "440m": None}.get(options.model, options.model) or _shaped(cache)
    model = find_model(str(folder), cache)
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        servers = [_start(kind, model, options, Path(logs), stack) for kind in options.servers]
        rows = [row for turn in range(options.rounds) for row in _round(servers, model, options, turn, Path(logs))]
    found = {"model": model.name, "options": {**vars(options), "json": str(options.json)}, "rows": rows}
    found["bars"] = _bars(_medians(rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    typer.echo(_table(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="nano, 440m, or a checkpoint's folder")
    parser.add_argument("--servers", default="axk1,vllm", type=lambda text: text.split(","))
    parser.add_argument("--streams", default=[8, 32], type=lambda text: [int(each) for each in text.split(",")])
    parser.add_argument("--cases", default=list(CASES), type=lambda text: text.split(","), help=", ".join(CASES))
    parser.add_argument("--rounds", default=3, type=int, help="turns that every server takes")
    parser.add_argument("--requests", default=6, type=int, help="for each stream")
    parser.add_argument("--input", default=128, type=int, help="tokens of a prompt")
    parser.add_argument("--output", default=128, type=int, help="tokens of a reply")
    parser.add_argument("--arrivals", default=5, type=int, help="long prompts that arrive, in a round")
    parser.add_argument("--alone", default=256, type=int, help="tokens of the reply of a single stream")
    parser.add_argument("--compiled", action="store_true", help="vLLM with torch.compile")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _shaped(cache: Path) -> Path:
    """bench-440m with the vocabulary and the tokenizer of the nano."""
    folder = cache / "serve-440m"
    if not folder.is_dir():
        nano = AXK1Config.from_pretrained(NANO)
        ends = {name: getattr(nano, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
        write_random(AXK1Config(**BENCH_MODELS["bench-440m"] | ends | {"max_position_embeddings": 4_096}), folder, 0)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copy(NANO / name, folder)
    return folder


def _start(kind: str, model: Model, options: argparse.Namespace, logs: Path, stack: ExitStack) -> Server:
    """A server that answers, until ``stack`` is closed."""
    port = _free_port()
    if kind == "axk1":
        command = [sys.executable, "-m", "axk1", "serve", str(model.folder), "--name", NAME, "--port", str(port)]
        variables = os.environ | {"AXK1_SERVE_PING": "600"}  # the client of vLLM loses all that follows a comment
    else:
        context = min(model.config.max_position_embeddings, 4_096)
        command = [str(require(VLLM)), "-m", "vllm.entrypoints.openai.api_server", "--model", str(per_expert(model))]
        command += ["--tokenizer", str(model.folder), "--served-model-name", NAME, "--port", str(port)]
        command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", str(context)]
        command += ["--enable-prefix-caching"]
        command += [each for pair in VLLM_OPTIONS.items() for each in pair]
        command += [] if options.compiled else ["--enforce-eager"]
        variables = environment(VLLM, os.cpu_count() or 1) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = logs / f"{kind}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=file, start_new_session=True)
    server = Server(kind, f"http://127.0.0.1:{port}", process)
    stack.callback(server.close)
    end = time.monotonic() + 300
    while not _answers(server.url):
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{kind} did not start:\n{log.read_text(errors='replace')[-3_000:]}")
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGSTOP)
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def _round(
    servers: list[Server], model: Model, options: argparse.Namespace, turn: int, logs: Path
) -> Iterator[dict[str, Any]]:
    """Every case once, on each server in turn."""
    for streams in options.streams if "load" in options.cases else ():
        for server in servers:
            with server.awake():
                if turn == 0:
                    _load(server, model, options, streams, 10**6, logs)  # to warm up
                before = _lags(server)
                yield _row(server, f"load, {streams} streams", _load(server, model, options, streams, turn, logs))
                if before:
                    yield _row(server, f"event loop, {streams} streams", _lag(before, _lags(server)))
    for server in servers if "arrivals" in options.cases else ():
        with server.awake():
            yield _row(server, "a long prompt arrives", asyncio.run(_arrivals(server, options, turn)))
            yield _row(server, "a prefix of 1,500 tokens", asyncio.run(_prefixes(server, options, turn)))
    for server in servers if "alone" in options.cases else ():
        yield _row(server, "one stream", _one_stream(server, model, options, turn, logs))


def _row(server: Server, case: str, values: dict[str, float]) -> dict[str, Any]:
    typer.echo(f"{server.name}, {case}: {values}", err=True)
    return {"server": server.name, "case": case, "values": values}


def _load(
    server: Server, model: Model, options: argparse.Namespace, streams: int, turn: int, logs: Path
) -> dict[str, float]:
    """What `vllm bench serve` says of so many streams."""
    given = {
        "--backend": "openai-chat",
        "--base-url": server.url,
        "--endpoint": CHAT,
        "--model": str(model.folder),
        "--served-model-name": NAME,
        "--dataset-name": "random",
        "--random-input-len": options.input,
        "--random-output-len": options.output,
        "--num-prompts": streams * (options.requests if turn < 10**6 else 1),
        "--max-concurrency": streams,
        "--temperature": 0,
        "--seed": 100 * streams + turn,
        "--percentile-metrics": "ttft,itl,tpot",
        "--metric-percentiles": "50,99",
        "--result-dir": str(logs),
        "--result-filename": "load.json",
    }
    command = [str(require(VLLM)), "-c", CLIENT, "--ignore-eos", "--save-result", "--disable-tqdm"]
    command += [str(each) for pair in given.items() for each in pair]
    done = subprocess.run(command, env=environment(VLLM, 1), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"vllm bench serve failed:\n{done.stdout[-1_000:]}\n{done.stderr[-3_000:]}")
    told = json.loads((logs / "load.json").read_text())
    if told["completed"] != given["--num-prompts"]:
        raise SystemExit(f"{server.name}: {told['completed']} of {given['--num-prompts']} requests were answered.")
    names = {"tokens/s": "output_throughput", "first token, ms": "median_ttft_ms", "first token p99, ms": "p99_ttft_ms"}
    names |= {"between tokens, ms": "median_itl_ms", "between tokens p99, ms": "p99_itl_ms"}
    return {ours: told[theirs] for ours, theirs in names.items()}


async def _ask(server: Server, body: dict[str, Any], times: list[float] | None = None) -> float:
    """Streams a chat, and notes when its pieces of text come.

    Returns:
        Seconds to the first of them; to the end, where a reply of random weights is no text.
    """
    times = [] if times is None else times
    content = json.dumps({"model": NAME, "stream": True, "temperature": 0, "ignore_eos": True, **body}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    begun = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"{server.name} answered {status!r} {(await reader.read())[-500:]!r}")
    async for line in reader:
        if line.startswith(b"data: ") and b'"content":"' in line and b'"content":""' not in line:
            times.append(time.perf_counter())
    writer.close()
    return (times[0] if times else time.perf_counter()) - begun


def _words(count: int, seed: object) -> str:
    """About so many tokens, which nobody has seen before."""
    dice = random.Random(str(seed))
    return "".join(dice.choice("0123456789") for _ in range(count))  # a digit is a token


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def _arrivals(server: Server, options: argparse.Namespace, turn: int) -> dict[str, float]:
    """Between the tokens of eight streams, while nothing else happens and while long prompts are read."""
    during: list[tuple[float, float]] = []
    streams: list[list[float]] = [[] for _ in range(8)]

    def body(length: int, reply: int, seed: object) -> dict[str, Any]:
        return {"messages": _user(_words(length, (turn, seed))), "max_tokens": reply}

    running = [
        asyncio.ensure_future(_ask(server, body(64, 64 + 128 * options.arrivals, number), times))
        for number, times in enumerate(streams)
    ]
    for arrival in range(options.arrivals):
        before = min(map(len, streams))
        while min(map(len, streams)) < before + 40 and not any(task.done() for task in running):
            await asyncio.sleep(0.005)
        if any(task.done() for task in running):
            break
        begun = time.perf_counter()
        await _ask(server, body(LONG, 1, f"long {arrival}"))
        during.append((begun, time.perf_counter()))
    await asyncio.gather(*running)
    gaps = [(end, end - start) for times in streams for start, end in pairwise(times)]
    beside = [gap for end, gap in gaps if any(first < end <= last for first, last in during)]
    quiet = [gap for end, gap in gaps if not any(first < end <= last for first, last in during)]
    return {
        "between tokens, ms": 1e3 * statistics.median(quiet),
        "between tokens meanwhile p50, ms": 1e3 * _percentile(beside, 0.5),
        "between tokens meanwhile p99, ms": 1e3 * _percentile(beside, 0.99),
        "long prompt, ms": 1e3 * statistics.median(last - first for first, last in during),
        "p99 over median": _percentile(beside, 0.99) / _percentile(beside, 0.5),
    }


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values) or [float("nan")]
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def _prefixes(server: Server, options: argparse.Namespace, turn: int) -> dict[str, float]:
    """The first token of a prompt whose first 1,500 tokens nobody has seen, and of one that differs in its end."""
    miss, hit, same = [], [], True
    for number in range(options.arrivals):
        history = [{"role": "system", "content": _words(LONG - 500, (turn, "system", number))}]
        history += [*_user(_words(450, (turn, "user", number))), {"role": "assistant", "content": "Yes."}]
        miss.append(await _ask(server, {"messages": [*history, *_user("And now?")], "max_tokens": 2}))
        hit.append(await _ask(server, {"messages": [*history, *_user("Or then?")], "max_tokens": 2}))
        if server.name == "axk1":
            same = same and _same_scores(server, [*history, *_user("Or else?")], number)
    told = {"miss, ms": 1e3 * statistics.median(miss), "hit, ms": 1e3 * statistics.median(hit)}
    told["hit over miss"] = told["hit, ms"] / told["miss, ms"]
    return told | ({"log-probabilities equal": float(same)} if server.name == "axk1" else {})


def _same_scores(server: Server, messages: list[dict[str, str]], number: int) -> bool:
    """Whether tokens and log-probabilities are the same with kept pages and without."""
    told = []
    for salt in (None, f"cold {number} {time.time()}"):
        body = {"messages": messages, "max_tokens": 20, "temperature": 0, "logprobs": True, "cache_salt": salt}
        request = urllib.request.Request(server.url + CHAT, json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as reply:
            told.append(json.load(reply))
    cached = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in told]
    return cached[0] > 1_000 and cached[1] == 0 and told[0]["choices"] == told[1]["choices"]


def _one_stream(server: Server, model: Model, options: argparse.Namespace, turn: int, logs: Path) -> dict[str, float]:
    """A single stream; ours in turns with the worker of `axk1 bench`, a reply each: minutes differ by more than 5%."""
    rates, ratios = [], []
    with ExitStack() as stack:
        worker = None
        if server.name == "axk1":
            worker = start(BASE["axk1"], os.cpu_count() or 1, logs)
            stack.callback(worker.close)
            given = {"dtype": "auto", "device": "cpu", "threads": os.cpu_count() or 1, "path": str(model.folder)}
            worker.request("load", **given)
        for number in range(TURNS + 1):
            with server.awake():
                rate = asyncio.run(_alone(server, options, (TURNS + 1) * turn + number))
            decode = {"context": 264, "tokens": options.alone}
            bench = options.alone / worker.request("decode", **decode)["seconds"] if worker else rate
            if number:  # the first warms up
                rates.append(rate)
                ratios.append(rate / bench)
    told = {"tokens/s": statistics.median(rates)}
    return told | ({"over axk1 bench": statistics.median(ratios)} if server.name == "axk1" else {})


async def _alone(server: Server, options: argparse.Namespace, turn: int) -> float:
    """Tokens a second of a single stream, after its first."""
    times: list[float] = []
    await _ask(server, {"messages": _user(_words(250, (turn, "alone"))), "max_tokens": options.alone}, times)
    return (options.alone - 1) / (times[-1] - times[0])


def _lags(server: Server) -> dict[float, float]:
    """How often the event loop was at most so late, in seconds, since the server began; nothing of other servers."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        lines = [line for line in reply.read().decode().splitlines() if "event_loop_lag_seconds_bucket" in line]
    return {float(line.split('le="')[1].split('"')[0]): float(line.split()[-1]) for line in lines}


def _lag(before: dict[float, float], after: dict[float, float]) -> dict[str, float]:
    """The 99th percentile of the time between, as far as the histogram tells."""
    counts = {edge: count - before[edge] for edge, count in after.items()}
    wanted = 0.99 * counts[float("inf")]
    return {"lag p99 at most, ms": 1e3 * next(edge for edge, count in counts.items() if count >= wanted)}


def _medians(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Of all rounds, by server and case."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row["values"].items():
            found.setdefault((row["server"], row["case"]), {}).setdefault(name, []).append(value)
    return {at: {name: statistics.median(each) for name, each in values.items()} for at, values in found.items()}


def _bars(medians: dict[tuple[str, str], dict[str, float]]) -> list[dict[str, Any]]:
    """What was asked for, and what was measured."""
    bars = []

    def bar(what: str, value: float, wanted: float, least: bool = True) -> None:
        bars.append(
            {"bar": what, "measured": value, "wanted": wanted, "met": value >= wanted if least else value <= wanted}
        )

    for (server, case), ours in medians.items():
        theirs = medians.get(("vllm", case))
        if server != "axk1":
            continue
        if case.startswith("load") and theirs:
            wanted = 2.0 if case == "load, 8 streams" else 1.5
            bar(f"{case}: throughput over vLLM's", ours["tokens/s"] / theirs["tokens/s"], wanted)
            bar(f"{case}: first token over vLLM's", ours["first token, ms"] / theirs["first token, ms"], 1.0, False)
        if case == "a long prompt arrives":
            bar("p99 between tokens over their median meanwhile", ours["p99 over median"], 3.0, False)
        if case == "a prefix of 1,500 tokens":
            bar("first token, hit over miss", ours["hit over miss"], 0.2, False)
            bar("log-probabilities of hit and miss equal", ours["log-probabilities equal"], 1.0)
        if case == "one stream":
            bar("one stream over axk1 bench", ours["over axk1 bench"], 0.95)
        if case.startswith("event loop"):
            bar(f"{case}: lag p99, ms", ours["lag p99 at most, ms"], 20.0, False)
    return bars


def _table(found: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [f"## {found['model']}", "", "| case | server | |", "|---|---|---|"]
    for (server, case), values in sorted(_medians(found["rows"]).items(), key=lambda item: item[0][::-1]):
        lines.append(f"| {case} | {server} | {', '.join(f'{name}: {value:.4g}' for name, value in values.items())} |")
    lines += ["", "| bar | measured | wanted | met |", "|---|---|---|---|"]
    for bar in found["bars"]:
        lines.append(f"| {bar['bar']} | {bar['measured']:.3g} | {bar['wanted']:g} | {'yes' if bar['met'] else 'no'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
