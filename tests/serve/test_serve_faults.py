"""The faults that users of other servers report most, where no other file here has them already.

A draft that holds brings several tokens at once, so replies are read in chunks of every size.
"""

import asyncio
import gc
import json
import re
from pathlib import Path

import pytest
from serving import FAMILY, NANO, scripted, serving, user

from axk1.chat.session import TURN_ENDS
from axk1.engine.engine import ModelEngine
from axk1.engine.interface import Generation, Request
from axk1.engine.settings import Settings as EngineSettings
from axk1.generation.speculate import Drafts
from axk1.load import load
from axk1.serve.blocks import Whole
from axk1.serve.replies import Choice, Order, Running
from axk1.serve.thinking import Thinking

PATH = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": {"b": "}"}}}\n</tool_call>'
SIZES = [1, 2, 3, 5, 8, 1000]
FAULTS = {
    "tags that leak at a draft's boundary": "test_tags_never_leak_whatever_the_chunks",
    "budget ignored with drafts": "test_a_budget_is_hard_with_drafts",
    "schema lost while thinking": "test_a_schema_holds_after_thinking_and_with_drafts",
    "tool deltas with index 0": "test_calls_have_their_own_index_and_id",
    "a stray brace": "test_a_call_that_was_cut_off_stays_one_without_a_stray_brace",
    "calls lost or invented inside reasoning": "test_a_call_in_reasoning_counts_only_where_it_was_never_closed",
    "cached answers of the wrong turn": "test_a_kept_prefix_never_brings_the_answer_of_another_turn",
    "disconnect before the first token": "test_who_leaves_is_cancelled",
    "memory a request": "test_a_request_leaves_nothing_in_memory",
    "usage that disagrees with log-probabilities": "test_usage_and_logprobs_agree_where_a_stop_string_cuts",
    "n identical replies": "test_choices_differ_and_a_seed_brings_them_again",
    "stop strings across tokens": "test_stop_strings_across_tokens_whatever_the_chunks",
    "emoji families and rare Hangul split over tokens": "test_characters_of_many_tokens_whatever_the_chunks",
    "seeds under load": "test_many_clients",
}


class Nobody:
    """An engine that nobody runs."""

    def cancel(self, generation: Generation) -> None:
        pass


def texts(events):
    return [text for event in events if (text := getattr(event, "text", None)) is not None]


async def read(tokenizer, text, size, end=True, **order):
    """The whole, and all pieces of text, of a reply that comes in chunks of ``size`` tokens."""
    ends = frozenset(tokenizer.convert_tokens_to_ids(list(TURN_ENDS)))
    ids = tokenizer.encode(text, add_special_tokens=False) + ([min(ends)] if end else [])
    request = Request([1, 2], stop_ids=ends)
    generation = Generation(request, Nobody(), asyncio.get_running_loop())  # pyright: ignore[reportArgumentType]
    choice = Choice(0, Order([1, 2], **order), generation, tokenizer)
    whole, pieces, steps = Whole(), [], choice.steps()
    for first in range(0, len(ids), size):
        generation.push(ids[first : first + size], None)
        step = await anext(steps, None)
        if step is None:
            break
        whole.add(step)
        pieces += texts(step.events)
    generation.finish("stop" if end else "length")
    async for step in steps:
        whole.add(step)
        pieces += texts(step.events)
    return whole, pieces, choice


def test_every_fault_has_its_test_and_so_has_what_the_comparison_claims():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page.split("## Beside other servers", 1)[1].split("\n## ", 1)[0]
    rows = [row.split("|")[2] for row in section.split("\n") if row.startswith("| ")][1:]
    claimed = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 5 and all(claimed), rows
    assert {*FAULTS.values(), *(name for names in claimed for name in names)} <= known


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("thought", ["Hm.", "Hm. </thin", "<tool_call> maybe </tool_call>"])
def test_tags_never_leak_whatever_the_chunks(tokenizer, size, thought):
    text = f"{thought}</think>So {CALL}"
    whole, pieces, choice = asyncio.run(read(tokenizer, text, size, thinking=Thinking(True), tools=True))
    assert (whole.reasoning, whole.answer) == (thought, "So")
    assert [(call.name, json.loads(call.text)) for call in whole.calls] == [("f", {"a": {"b": "}"}})]
    assert choice.finish == "tool_calls" and not any("</think>" in piece for piece in pieces)


@pytest.mark.parametrize("size", SIZES)
def test_stop_strings_across_tokens_whatever_the_chunks(tokenizer, size):
    text = "The first line.\n\nSTOPPING here and more"
    assert len(tokenizer.encode("STOPPING", add_special_tokens=False)) > 2
    whole, pieces, choice = asyncio.run(read(tokenizer, text, size, stop=["absent", "STOPPING"]))
    assert whole.answer == "The first line.\n\n" == "".join(pieces)
    assert choice.finish == "stop" and choice.stop_string == "STOPPING"
    cut, _, choice = asyncio.run(read(tokenizer, "so STOPPIN", size, end=False, stop=["STOPPING"]))
    assert cut.answer == "so STOPPIN" and choice.finish == "length"  # what was held back is told in the end


@pytest.mark.parametrize("size", SIZES)
def test_characters_of_many_tokens_whatever_the_chunks(tokenizer, size):
    whole, pieces, _ = asyncio.run(read(tokenizer, f"{FAMILY} 쀍똠방각하 {FAMILY}", size))
    assert whole.answer == f"{FAMILY} 쀍똠방각하 {FAMILY}" and not any("\ufffd" in piece for piece in pieces)


def test_a_kept_prefix_never_brings_the_answer_of_another_turn(tokenizer):
    """Two conversations that begin alike, in turns and long enough for kept pages: each stays what it is alone."""
    model, _ = load(NANO, dtype="float32")
    engine = ModelEngine(model, EngineSettings(streams=4, pages=256, drafts=Drafts(2), poison=True))
    begin = [*user("You know the rules. " * 30 + "What is 2 + 2?"), {"role": "assistant", "content": "4"}]
    turns = [[*begin, *user(f"What is {a} + {b}?")] for a, b in ((3, 4), (50, 6), (3, 5))]
    with serving(engine, tokenizer) as running, running.client() as client:

        def ask(messages, salt=None):
            body = {"messages": messages, "temperature": 0, "max_tokens": 30, "logprobs": True, "cache_salt": salt}
            reply = client.post(PATH, json=body).json()
            return reply["choices"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]

        cold = [ask(messages, f"alone {at}") for at, messages in enumerate(turns)]
        assert [cached for _, cached in cold] == [0, 0, 0]
        assert len({json.dumps(choices) for choices, _ in cold}) == 3
        for _ in range(2):
            for messages, (choices, _) in zip(turns, cold, strict=True):
                warm, cached = ask(messages)
                assert warm == choices
        assert cached > 64


def test_a_request_leaves_nothing_in_memory(tokenizer):
    """Neither its generation nor what was counted for it, however it ended."""
    with serving(scripted(tokenizer), tokenizer) as running, running.client() as client:
        for number in range(30):
            body = {"messages": user("hello"), "stream": number % 2 == 0, "enable_thinking": number % 3 == 0}
            assert client.post(PATH, json=body).status_code == 200
            client.post(PATH, json={"messages": user("hello"), "n": 99})
            with client.stream("POST", PATH, json={"messages": user("long reply"), "stream": True}):
                pass
        running.wait_idle()
        client.get("/health")
        gc.collect()
        left = [type(each).__name__ for each in gc.get_objects() if isinstance(each, Generation | Choice | Running)]
        assert len(left) <= 3, left  # of connections that have yet to be closed
        assert not running.service._running
