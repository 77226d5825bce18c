"""Many prompts from a JSONL file to a JSONL file of replies, resumable."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from axk1.chat.budget import UNLIMITED
from axk1.chat.messages import Message, check_messages, check_stop, check_tools
from axk1.chat.reply import Reply
from axk1.chat.session import Chat
from axk1.files import read_text
from axk1.generation.sampling import Sampling, row_seeds

_HEAD = b'{"id": '  # how each line of ours begins
_SAMPLING = {entry.name for entry in fields(Sampling)}
_WHOLE, _SAMPLED = 2**22, 2**12
"""Values up to which all of a tensor decide whether a model is the same, and how many of a larger one do."""
_OTHERS = {"budget", "max_new_tokens", "stop", "tools"}
_ALIASES = {
    "enable_thinking": "think",
    "thinking_budget": "budget",
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One request: ``line`` is its number in the file, ``id`` its own or its index, ``think`` None for the default.

    ``options`` are the line's own, of :meth:`Chat.reply_batch` and :class:`Sampling`; ``unknown`` names the keys that
    are none. ``domain`` is what reports are grouped by.
    """

    id: str | int
    line: int
    messages: list[Message]
    think: bool | None
    options: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    domain: str = ""


class Done(NamedTuple):
    """How far a file is: requests finished, those of them that got an error in place of a reply, and replies that
    ended inside their reasoning."""

    finished: int
    failed: int
    unclosed: int


def read_records(path: Path) -> list[Record]:
    """Reads requests: objects with ``prompt`` or ``messages``, optionally ``id``, ``think`` and options of their own;
    skips blank lines.

    Raises:
        ValueError: naming the line, for anything else, or an id that occurs twice.
    """
    records: list[Record] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # a byte order mark inside: of files that were joined
        if line.strip():
            try:
                records.append(_record(json.loads(line), len(records), number))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: is not JSON: {error.msg}, column {error.colno}.") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    seen: dict[str | int, int] = {}
    for record in records:
        first = seen.setdefault(record.id, record.line)
        if first != record.line:
            raise ValueError(
                f"{path}, line {record.line}: the id {record.id!r} was used in line {first} already (lines without an "
                "id have their index as one; give every line an id, or none)."
            )
    if not records:
        raise ValueError(f"{path} holds no requests.")
    return records


def _record(value: Any, index: int, line: int) -> Record:
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise ValueError("a request must be an object with either 'prompt' or 'messages'.")
    if "prompt" in value and not isinstance(value["prompt"], str):
        raise ValueError("'prompt' must be text.")
    messages = value["messages"] if "messages" in value else [{"role": "user", "content": value["prompt"]}]
    options = _renamed({key: item for key, item in value.items() if key not in ("prompt", "messages", "id")})
    identity, think = value.get("id", index), options.pop("think", None)
    domain = str(options.pop("domain", ""))
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError("'id' must be text or a whole number.")
    if think is not None and not isinstance(think, bool):
        raise ValueError("'think' must be true or false.")
    known = {key: item for key, item in options.items() if key in _SAMPLING | _OTHERS and item is not None}
    unknown = tuple(key for key in options if key not in _SAMPLING | _OTHERS)
    return Record(identity, line, check_messages(messages), think, _checked(known), unknown, domain)


def _renamed(options: dict[str, Any]) -> dict[str, Any]:
    """The options under our names for them."""
    renamed: dict[str, Any] = {}
    for key, value in options.items():
        name = _ALIASES.get(key, key)
        if name in renamed and renamed[name] != value:
            raise ValueError(f"'{name}' and another name of it differ; give one of them.")
        renamed[name] = value
    return renamed


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a line, refused here where one is wrong: before any reply is computed."""
    if isinstance(biases := options.get("logit_bias"), Mapping):  # the keys of JSON are texts
        options["logit_bias"] = {int(key) if str(key).isdecimal() else key: bias for key, bias in biases.items()}
    Sampling(**{key: value for key, value in options.items() if key in _SAMPLING})
    for name, least in (("budget", -1), ("max_new_tokens", 1)):
        if name in options and (type(options[name]) is not int or options[name] < least):
            raise ValueError(f"'{name}' is {options[name]!r}; it must be a whole number, at least {least}.")
    checks = {"stop": check_stop, "tools": check_tools}
    return {key: checks[key](value) if key in checks else value for key, value in options.items()}


def read_finished(output: Path) -> dict[str | int, dict[str, Any]]:
    """The lines of ``output`` from an earlier run, by id; a last line that was cut off is removed from the file. What
    is no regular file (a pipe, a terminal) holds none.

    Raises:
        ValueError: when the file is something else; it is then left untouched.
    """
    if not output.is_file():
        return {}
    *lines, torn = output.read_bytes().split(b"\n")
    finished = {}
    for number, line in enumerate(lines, start=1):
        try:
            reply = json.loads(line)
            finished[reply["id"]] = {"request": reply["request"], "error": reply.get("error")} | reply
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{output}, line {number}: not a reply of an earlier run; choose another output."
            ) from error
    if not torn.startswith(_HEAD[: len(torn)]):
        raise ValueError(f"{output}, line {len(lines) + 1}: not a reply of an earlier run; choose another output.")
    if torn:
        with output.open("r+b") as file:
            file.truncate(output.stat().st_size - len(torn))
    return finished


@dataclass(frozen=True, slots=True)
class _Request:
    """A record with everything that decides its reply, and ``error`` where there can be none."""

    record: Record
    think: bool
    options: dict[str, Any]
    seed: int | None
    print: str
    error: str | None


def answer_records(
    chat: Chat,
    records: Sequence[Record],
    output: Path,
    *,
    think: bool = False,
    batch_size: int = 32,
    sampling: Sampling | None = None,
    drafts: Any = None,
    **options: Any,
) -> Iterator[Done]:
    """Answers what ``output`` does not hold yet and appends a line a reply, in order, a batch at a time.

    With a seed each record has its own, made of that and its place in the file, so that neither the size of the batches
    nor an interruption changes what is drawn. A line names its ``request`` by a hash of model, options and question; a
    request that cannot be answered, such as one longer than the context, gets a line with its ``error``.

    Args:
        think: the mode of records that name none.
        options: those of :meth:`Chat.reply_batch`, of records that name none of their own.

    Yields:
        How much is finished: first by earlier runs, then after each batch.

    Raises:
        ValueError: before anything is generated, for an output of other requests or that another run is writing.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it must be at least 1.")
    requests = _requests(chat, records, think, {"sampling": sampling or Sampling(), **options})
    with _appending(output) as file:
        finished = read_finished(output)
        _check_same(output, requests, finished)
        lines = [finished[request.record.id] for request in requests if request.record.id in finished]
        yield _done(lines)
        for start in range(0, len(requests), batch_size):
            batch = [r for r in requests[start : start + batch_size] if r.record.id not in finished]
            replies = _replies(chat, batch, drafts)
            new = [_line(request, reply) for request, reply in zip(batch, replies, strict=True)]
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
            file.flush()
            lines += new
            if batch:
                yield _done(lines)


def _done(lines: Sequence[Mapping[str, Any]]) -> Done:
    failed = sum(line.get("error") is not None for line in lines)
    return Done(len(lines), failed, sum(line.get("closed") is False for line in lines))


def _line(request: _Request, reply: Reply | None) -> dict[str, Any]:
    head = {"id": request.record.id, "request": request.print, "think": request.think}
    return head | ({"error": request.error} if reply is None else reply.record())


@contextmanager
def _appending(output: Path) -> Iterator[TextIO]:
    """``output``, open to add lines, for this process alone where the system has locks."""
    with output.open("a" if output.is_file() or not output.exists() else "w", encoding="utf-8") as file:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"Another run is writing to {output}; wait for it, or choose another output."
                ) from None
            except OSError:  # a file system or pipe without locks
                pass
        yield file


def _requests(chat: Chat, records: Sequence[Record], think: bool, options: dict[str, Any]) -> list[_Request]:
    seed = options["sampling"].seed
    seeds = [None] * len(records) if seed is None else row_seeds(seed, len(records))
    model = _model_print(chat)
    return [_request(chat, record, think, options, own, model) for record, own in zip(records, seeds, strict=True)]


def _request(
    chat: Chat, record: Record, think: bool, options: dict[str, Any], seed: int | None, model: bytes
) -> _Request:
    own = {key: value for key, value in record.options.items() if key in _SAMPLING}
    sampling = replace(options["sampling"], **own)
    options = options | {key: value for key, value in record.options.items() if key in _OTHERS} | {"sampling": sampling}
    think = think if record.think is None else record.think
    error, ids, budget = None, [], options.get("budget", UNLIMITED) if think else 0
    try:
        ids = chat.prompt(record.messages, budget != 0, options.get("tools"))
        chat.check_room(len(ids), budget != 0, budget, options.get("max_new_tokens"))
    except ValueError as refused:
        error = str(refused)
    deciding = sorted((key, repr(value)) for key, value in (options | {"budget": budget}).items())
    name = hashlib.blake2b(model + json.dumps([ids, *deciding]).encode(), digest_size=8).hexdigest()
    return _Request(record, think, options, own.get("seed", seed), name, error)


def _model_print(chat: Chat) -> bytes:
    """A hash of the weights' names, shapes and values (of large tensors: every n-th), as fp32: the same in any dtype
    that holds them."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(chat.model.state_dict().items()):
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            some = flat if len(flat) <= _WHOLE else flat[:: len(flat) // _SAMPLED]
            found.update(some.cpu().float().numpy().tobytes())
    return found.digest()


def _check_same(output: Path, requests: Sequence[_Request], finished: Mapping[str | int, Mapping[str, Any]]) -> None:
    for request in requests:
        line = finished.get(request.record.id)
        if line is not None and line["request"] != request.print:
            raise ValueError(
                f"{output} answers {request.record.id!r} for another request: its question, its options or the model "
                f"differ from line {request.record.line} of the input; choose another output, or remove that file."
            )


def _replies(chat: Chat, batch: Sequence[_Request], drafts: Any) -> list[Reply | None]:
    """A reply to each request that can have one; those with the same options are answered together."""
    replies: dict[int, Reply] = {}
    groups: dict[str, list[int]] = {}
    for place, request in enumerate(batch):
        if request.error is None:
            same = {**request.options, "sampling": replace(request.options["sampling"], seed=None)}
            groups.setdefault(repr((same, request.seed is None)), []).append(place)
    for places in groups.values():
        replies |= zip(places, _together(chat, [batch[place] for place in places], drafts), strict=True)
    return [replies.get(place) for place in range(len(batch))]


def _together(chat: Chat, group: Sequence[_Request], drafts: Any) -> Iterable[Reply]:
    return chat.reply_batch(
        [request.record.messages for request in group],
        think=[request.think for request in group],
        seeds=None if group[0].seed is None else [request.seed for request in group],
        drafts=drafts,
        **group[0].options,
    )
