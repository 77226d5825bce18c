"""What a model writes itself, as training texts: its replies to prompts, in both modes, a part of them kept out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from axk1.chat import load
from axk1.chat.batch import Record, answer_records, read_finished, read_records
from axk1.generation.sampling import Sampling
from axk1.load import load_tokenizer
from axk1.train.data import reply_example
from axk1.train.examples import Example
from axk1.train.graft import Texts
from axk1.train.progress import Paced, Say
from axk1.train.sources import source_examples

KEPT_OUT = 10
"""One in so many prompts is for measuring."""


def in_both_modes(records: Iterable[Record]) -> list[Record]:
    """Each record in Think and in Non-Think, where it names no mode itself."""
    modes = {True: "think", False: "non-think"}
    return [
        replace(record, id=f"{record.id}/{name}", think=think)
        for record in records
        for think, name in modes.items()
        if record.think in (None, think)
    ]


def answered(
    model: Path, records: list[Record], replies: Path, sampling: Sampling, max_new_tokens: int, say: Say
) -> dict[str | int, dict[str, Any]]:
    """The model's replies by the records' ids; those that the file ``replies`` holds are not made again."""
    replies.parent.mkdir(parents=True, exist_ok=True)
    held = read_finished(replies)
    if any(record.id not in held for record in records):
        chat, paced = load(model), Paced(say)
        options = {"sampling": sampling, "max_new_tokens": max_new_tokens, "batch_size": 64}
        for done in answer_records(chat, records, replies, **options):  # pyright: ignore[reportArgumentType]
            paced(lambda done=done: f"{done.finished:,} of {len(records):,} replies")
        held = read_finished(replies)
    return held


def own_replies(
    model: Path, prompts: Path, folder: Path, row_tokens: int, sampling: Sampling, max_new_tokens: int, say: Say
) -> Texts:
    """``model``'s replies to ``prompts`` (JSONL), kept in ``folder/replies.jsonl``; those that fit a row and ended.

    Raises:
        ValueError: faulty prompts, or a file of replies by another model.
    """
    records = in_both_modes(read_records(prompts))
    held = answered(model, records, folder / "replies.jsonl", sampling, max_new_tokens, say)
    tokenizer, train, held_out = load_tokenizer(model), [], {}
    for place, record in enumerate(records):
        reply = held[record.id]
        if reply["error"] or reply["finish_reason"] != "stop":
            continue
        example = reply_example(tokenizer, record.messages, reply["think"], reply["reasoning"], reply["answer"])
        if len(example.input_ids) <= row_tokens:
            domain = "/".join(part for part in (record.domain, str(record.id).rpartition("/")[2]) if part)
            kept = place // 2 % KEPT_OUT == 0
            (held_out.setdefault(domain, []) if kept else train).append(example)
    return Texts(train, held_out)


def from_file(model: Path, data: Path, row_tokens: int) -> Texts:
    """The examples of a source (:func:`axk1.train.sources.source_examples`); one in ten is kept out."""
    examples: list[Example] = list(source_examples(str(data), load_tokenizer(model), row_tokens))
    train = [example for place, example in enumerate(examples) if place % KEPT_OUT]
    return Texts(train, {data.stem: examples[::KEPT_OUT]})
