"""Many prompts from a JSONL file to a JSONL file of replies, resumable."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axk1.chat.messages import Message, check_messages
from axk1.chat.session import Chat
from axk1.generation.sampling import Sampling, row_seeds

_HEAD = b'{"id": '  # how each line of ours begins


@dataclass(frozen=True, slots=True)
class Record:
    """One request: ``line`` is its number in the file, ``id`` its own or its index, ``think`` None for the default."""

    id: str | int
    line: int
    messages: list[Message]
    think: bool | None


def read_records(path: Path) -> list[Record]:
    """Reads requests: objects with ``prompt`` or ``messages``, optionally ``id`` and ``think``; skips blank lines.

    Raises:
        ValueError: naming the line, for anything else, or an id that occurs twice.
    """
    records: list[Record] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                records.append(_record(json.loads(line), len(records), number))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    seen: dict[str | int, int] = {}
    for record in records:
        first = seen.setdefault(record.id, record.line)
        if first != record.line:
            raise ValueError(f"{path}, line {record.line}: the id {record.id!r} was used in line {first} already.")
    if not records:
        raise ValueError(f"{path} holds no requests.")
    return records


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _record(value: Any, index: int, line: int) -> Record:
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise ValueError("a request must be an object with either 'prompt' or 'messages'.")
    if "prompt" in value and not isinstance(value["prompt"], str):
        raise ValueError("'prompt' must be text.")
    messages = value["messages"] if "messages" in value else [{"role": "user", "content": value["prompt"]}]
    messages = check_messages(messages)
    identity, think = value.get("id", index), value.get("think")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError("'id' must be text or a whole number.")
    if think is not None and not isinstance(think, bool):
        raise ValueError("'think' must be true or false.")
    return Record(identity, line, messages, think)


def finished_ids(output: Path) -> set[str | int]:
    """The ids answered in ``output`` by an earlier run; a last line that was cut off is removed from the file.

    Raises:
        ValueError: when the file is something else; it is then left untouched.
    """
    if not output.exists():
        return set()
    *lines, torn = output.read_bytes().split(b"\n")
    ids = set()
    for number, line in enumerate(lines, start=1):
        try:
            ids.add(json.loads(line)["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{output}, line {number}: not a reply of an earlier run; choose another output."
            ) from error
    if not torn.startswith(_HEAD[: len(torn)]):
        raise ValueError(f"{output}, line {len(lines) + 1}: not a reply of an earlier run; choose another output.")
    if torn:
        with output.open("r+b") as file:
            file.truncate(output.stat().st_size - len(torn))
    return ids


def answer_records(
    chat: Chat,
    records: Sequence[Record],
    output: Path,
    *,
    think: bool = False,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    **options: Any,
) -> Iterator[int]:
    """Answers what ``output`` does not hold yet and appends a line a reply, in order, a batch at a time.

    With a seed each record has its own, made of that and its place in the file, so that neither the size of the batches
    nor an interruption changes what is drawn.

    Args:
        think: the mode of records that name none.
        options: those of :meth:`Chat.reply_batch`.

    Yields:
        How many records are finished: first those of earlier runs, then after each batch.

    Raises:
        ValueError: before anything is generated, naming the line of a prompt that does not fit the context.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it must be at least 1.")
    sampling = sampling or Sampling()
    seeds = None if sampling.seed is None else row_seeds(sampling.seed, len(records))
    answered = finished_ids(output)
    todo = [record for record in records if record.id not in answered]
    _check_lengths(chat, todo)
    finished = len(records) - len(todo)
    yield finished
    with output.open("a", encoding="utf-8") as file:
        for start in range(0, len(records), batch_size):
            batch = [i for i in range(start, start + batch_size) if i < len(records) and records[i].id not in answered]
            chosen = [records[i] for i in batch]
            modes = [think if record.think is None else record.think for record in chosen]
            replies = chat.reply_batch(
                [record.messages for record in chosen],
                think=modes,
                sampling=sampling,
                seeds=None if seeds is None else [seeds[i] for i in batch],
                **options,
            )
            for record, mode, reply in zip(chosen, modes, replies, strict=True):
                line = {"id": record.id, "think": mode, **reply.record()}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            finished += len(batch)
            if batch:
                yield finished


def _check_lengths(chat: Chat, records: Sequence[Record]) -> None:
    for record in records:
        try:
            chat.room(len(chat.prompt(record.messages)))
        except ValueError as error:
            raise ValueError(f"Line {record.line} of the input: {error}") from error
