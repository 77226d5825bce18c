"""Every reply that is finished fits its schema; a schema that is not supported is a 400 that says what is not.

CI asks one in six of :mod:`schemas` and all that are refused, `make server-suites` all of them.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from schemas import REFUSED, SCHEMAS
from serving import NANO, serving, user

from axk1.engine.engine import ModelEngine
from axk1.engine.settings import Settings as EngineSettings
from axk1.generation.speculate import Drafts
from axk1.load import load

EVERY = int(os.environ.get("AXK1_SCHEMAS_EVERY", "6"))
MODES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 1, "thinking_budget": 12},
    {"temperature": 1.3, "seed": 2, "top_p": 0.9},
]
NAMES = [name for at, name in enumerate(sorted(SCHEMAS)) if at % EVERY == 0 or name in REFUSED]
FORMATS = Draft202012Validator.FORMAT_CHECKER  # of this draft: another's time has no zone


@pytest.fixture(scope="module")
def nano(tokenizer):
    """A server that drafts two tokens at every step."""
    model, _ = load(NANO, dtype="float32")
    with serving(ModelEngine(model, EngineSettings(streams=8, pages=512, drafts=Drafts(2))), tokenizer) as running:
        yield running


def ask(client: httpx2.Client, name: str, mode: dict[str, Any]) -> httpx2.Response:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name]}}
    body = {"messages": user(f"Write an example: {name}."), "response_format": form, "max_tokens": 400, **mode}
    return client.post("/v1/chat/completions", json=body)


def fault(client: httpx2.Client, name: str, mode: dict[str, Any]) -> str | None:
    """What is wrong with the reply to one schema; "cut" where it is not finished, and nothing is."""
    reply = ask(client, name, mode)
    if name in REFUSED:
        told = reply.json().get("error", {}).get("message", "")
        return None if reply.status_code == 400 and REFUSED[name] in told else f"{reply.status_code} {told}"
    if reply.status_code != 200:
        return reply.text
    (choice,) = reply.json()["choices"]
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        return "cut"
    try:
        value = json.loads(text)
    except ValueError:
        return f"no JSON: {text!r}"[:500]
    faults = list(Draft202012Validator(SCHEMAS[name], format_checker=FORMATS).iter_errors(value))
    return f"{faults[0].json_path}: {faults[0].message}: {text}"[:500] if faults else None


def test_replies_fit_their_schemas(nano):
    """All at once; few are so long that they are cut off, which says nothing."""
    cases = [(name, mode) for mode in MODES for name in NAMES]
    with ThreadPoolExecutor(8) as pool, httpx2.Client(base_url=nano.url, timeout=300) as client:
        found = list(pool.map(lambda case: fault(client, *case), cases))
    faults = {(name, str(mode)): told for (name, mode), told in zip(cases, found, strict=True) if told}
    cut = {case for case, told in faults.items() if told == "cut"}
    sys.stdout.write(f"{len(SCHEMAS)} schemas, {len(cases)} requests, {len(cut)} replies cut off\n")
    assert not {case: told for case, told in faults.items() if case not in cut}
    assert len(cut) <= len(cases) // 8, cut
    assert nano.service.engine.statistics().failed_steps == 0


def test_the_schemas_are_many_and_few_are_refused():
    assert len(SCHEMAS) > 200 and set(REFUSED) < set(SCHEMAS) and len(REFUSED) <= 21
