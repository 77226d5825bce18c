"""`--expert-cache` in the commands: the same answers, and counters beside them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.load import resolve_model_path

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here"),
    pytest.mark.skipif(
        not any((Path(__file__).parents[2] / "models" / "nano").glob("*.safetensors")), reason="no nano"
    ),
]
CACHE = ("--expert-cache", "2MiB", "--threads", "2")
COUNTS = {"asked", "hits", "reads", "bytes", "stalls", "stall_seconds", "read_seconds", "hit_rate"}


def run(*arguments: str, stdin: str = "") -> Any:
    done = CliRunner().invoke(app, list(arguments), input=stdin)
    assert done.exit_code == 0, done.output
    return done


def test_generate_gives_the_same_reply_and_counts() -> None:
    question = ("generate", "What is 17 + 25?", "--temperature", "0", "--json")
    plain, streamed = (json.loads(run(*question, *more).stdout) for more in ((), CACHE))
    assert "experts" not in plain and set(streamed["experts"]) == COUNTS
    assert streamed["experts"]["asked"] >= 4 * 4 * 3 and streamed["experts"]["reads"] > 0
    assert all(streamed[key] == plain[key] for key in plain if key not in ("seconds", "drafts"))
    said = run("generate", "What is 17 + 25?", "--temperature", "0", "--stats", *CACHE)
    assert said.stdout.strip() == plain["answer"] and "in the cache" in said.stderr


def test_stats_need_a_cache() -> None:
    done = CliRunner().invoke(app, ["generate", "Hi there", "--stats"])
    assert done.exit_code == 2 and "add --expert-cache SIZE" in done.output


def test_chat_answers() -> None:
    question = "What is 17 + 25?\n"
    answer = run("chat", "--temperature", "0", stdin=question).stdout
    assert answer.strip() and run("chat", "--temperature", "0", *CACHE, stdin=question).stdout == answer


def test_eval_reports() -> None:
    plain, streamed = (json.loads(run("eval", "--problems", "3", "--json", *more).stdout) for more in ((), CACHE))
    assert set(streamed.pop("experts")) == COUNTS
    plain.pop("mtp_acceptance")
    assert "mtp_acceptance" not in streamed
    assert streamed == plain


def test_the_server_tells_what_was_read() -> None:
    """The engine's statistics, and /metrics."""
    from axk1.chat import Chat
    from axk1.engine.engine import ModelEngine
    from axk1.engine.settings import Settings
    from axk1.load import load
    from axk1.serve.metrics import Metrics

    chat = Chat(*load(resolve_model_path(), device="cpu", expert_cache="2MiB"))
    chat.reply([{"role": "user", "content": "What is 17 + 25?"}], max_new_tokens=8)
    engine = ModelEngine(chat.model, Settings(pages=16))
    engine._publish()
    now = engine.statistics()
    assert now.experts_asked > now.experts_hit > 0 and now.expert_bytes > 0 and now.expert_stalls > 0
    text = generate_latest(Metrics(engine, "nano").registry).decode()
    for name in ("experts_asked", "expert_cache_hits", "expert_bytes_read", "expert_stalls", "expert_stall_seconds"):
        assert f'axk1:{name}_total{{engine="0",model_name="nano"}}' in text or f"axk1:{name}_total{{" in text


def test_bench_passes_it_to_its_worker(tmp_path: Path) -> None:
    from axk1.bench.engines import BASE, start

    worker = start(BASE["axk1"], 1, tmp_path)
    how: dict[str, Any] = dict(dtype="auto", device="cpu", threads=1, expert_cache="2MiB")
    worker.request("load", path=str(resolve_model_path()), **how)
    assert worker.request("decode", context=16, tokens=4)["seconds"] > 0
    assert worker.request("memory")["experts"]["asked"] >= 4 * 4 * 4
    worker.close()
