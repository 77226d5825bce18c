"""Where training texts come from: JSONL, plain text, Parquet and Hugging Face datasets, here or streamed from the hub.

A source is named by a file, a pattern of files, a folder, or ``owner/name`` on the hub. What it holds are records,
``{"text": ...}`` or ``{"messages": [...]}`` (:mod:`axk1.train.data`). Their order depends on the seed and on how many
times they were gone through before, and on nothing else: one process packs them, whatever trains on the rows.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from axk1.checkpoint.hub import HubId
from axk1.files import read_text
from axk1.train.data import record_examples
from axk1.train.examples import Example

CORRUPT = ("refuse", "skip")
BUILDERS = ("parquet", "json", "arrow", "csv", "text")
"""What the library ``datasets`` may read a folder or a name on the hub as. Others (``pandas``) open pickles."""
BUFFER = 10_000
"""Records that a stream is shuffled among."""
LOOK = 1_000
"""Records that are looked at before anything starts, where unreadable ones are skipped."""
_LINES, _TABLES, _TEXTS = (".jsonl",), (".parquet",), (".txt", ".md", ".text")


@dataclass(frozen=True)
class Source:
    """What a recipe says of one source.

    Attributes:
        share: of a stage's tokens.
        split: of a dataset.
        config: of a dataset that has several.
        text, messages: the columns that hold texts and conversations; "" leaves that kind out.
        corrupt: a record that cannot be learned from is refused, which ends the run before training, or skipped.
        stream: a dataset or Parquet files are read as they come and shuffled among 10,000 records, in place of being
            copied to the cache of ``datasets`` and shuffled as a whole.

    Raises:
        ValueError: a value that makes no sense, in one sentence.
    """

    share: float
    split: str = "train"
    config: str = ""
    text: str = "text"
    messages: str = "messages"
    corrupt: str = "refuse"
    stream: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share} must be from 0 to 1")
        if self.corrupt not in CORRUPT:
            raise ValueError(f'corrupt = "{self.corrupt}" must be "refuse" or "skip"')
        if not self.text and not self.messages:
            raise ValueError("text and messages are both empty: name a column to learn from")
        if not self.split:
            raise ValueError("split is empty: a dataset's is train, unless it says otherwise")


WHOLE = Source(1.0)
"""All of a source, as its defaults are."""


@dataclass
class Taken:
    """What was taken from a source: examples, their tokens, how many times it was gone through to its end; and what was
    left out, as unreadable or as longer than a row."""

    examples: int = 0
    tokens: int = 0
    rounds: int = 0
    corrupt: int = 0
    first_corrupt: str = ""
    too_long: int = 0

    def words(self) -> str:
        """The counts for people."""
        found = f"{self.examples:,} examples, {self.tokens:,} tokens, gone through {self.rounds:,} times"
        if self.too_long:
            found += f"; {self.too_long:,} conversations longer than a row left out"
        if self.corrupt:
            found += f"; {self.corrupt:,} records skipped, the first: {self.first_corrupt}"
        return found


class Record(NamedTuple):
    """One record: where it is ("FILE, line 3"), and its values or why there are none."""

    place: str
    value: Mapping[str, Any]
    fault: str = ""


class Records(Protocol):
    """All records of a source."""

    def in_order(self) -> Iterator[Record]: ...
    def shuffled(self, seed: int, round_number: int) -> Iterator[Record]: ...


class Lines:
    """Lines of JSONL files. Shuffled, they are read by their offsets: 8 bytes of memory for each.

    Raises:
        ValueError: a file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._offsets: list[array[int]] = []

    def in_order(self) -> Iterator[Record]:
        for path in self.paths:
            with _opened(path) as file:
                for number, line in enumerate(file, 1):
                    if not _blank(line):
                        yield _record(path, number, line)

    def shuffled(self, seed: int, round_number: int) -> Iterator[Record]:
        self._offsets = self._offsets or [_offsets(path) for path in self.paths]
        ends = list(accumulate(len(offsets) for offsets in self._offsets))
        files = [_opened(path) for path in self.paths]
        try:
            for place in order(seed, round_number, ends[-1]):
                which = bisect_right(ends, place)
                number = place - (ends[which] - len(self._offsets[which]))
                files[which].seek(self._offsets[which][number])
                if not _blank(line := files[which].readline()):
                    yield _record(self.paths[which], number + 1, line)
        finally:
            for file in files:
                file.close()


class Texts:
    """Plain text files, each one document."""

    def __init__(self, paths: Sequence[Path], column: str) -> None:
        self.paths, self.column = paths, column or "text"

    def in_order(self) -> Iterator[Record]:
        yield from map(self._read, self.paths)

    def shuffled(self, seed: int, round_number: int) -> Iterator[Record]:
        yield from (self._read(self.paths[place]) for place in order(seed, round_number, len(self.paths)))

    def _read(self, path: Path) -> Record:
        try:
            return Record(str(path), {self.column: read_text(path)})
        except ValueError as error:
            return Record(str(path), {}, str(error).removeprefix(f"{path} "))


class Table:
    """A dataset in the cache of ``datasets`` or a folder that it has saved: rows are asked for by number."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self.dataset = name, dataset

    def in_order(self) -> Iterator[Record]:
        yield from (Record(f"{self.name}, row {place}", row) for place, row in enumerate(self.dataset))

    def shuffled(self, seed: int, round_number: int) -> Iterator[Record]:
        for place in order(seed, round_number, len(self.dataset)):
            yield Record(f"{self.name}, row {place}", self.dataset[place])


class Stream:
    """A dataset that is read as it comes. What interrupts it (a network) ends the round with its error."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self.dataset = name, dataset

    def in_order(self) -> Iterator[Record]:
        yield from self._read(self.dataset)

    def shuffled(self, seed: int, round_number: int) -> Iterator[Record]:
        mixed = self.dataset.shuffle(seed=seed, buffer_size=BUFFER)
        mixed.set_epoch(round_number)
        yield from self._read(mixed)

    def _read(self, dataset: Any) -> Iterator[Record]:
        rows = iter(dataset)
        for place in count():
            row = _theirs(self.name, lambda: next(rows, None))
            if row is None:
                return
            yield Record(f"{self.name}, record {place} of the stream", row)


def order(seed: int, round_number: int, length: int) -> Iterator[int]:
    """The permutation of ``length`` records that a seed and a round give."""
    yield from np.random.default_rng([seed, round_number]).permutation(length).tolist()


def open_source(name: str, source: Source = WHOLE) -> Records:
    """The records of a source.

    Raises:
        ValueError: it is missing or cannot be read, or what reads it is not installed, in one sentence.
    """
    path = Path(name)
    if path.is_dir() or (not path.exists() and path.suffix not in (*_LINES, *_TABLES, *_TEXTS) and HubId.parse(name)):
        return _dataset(name, source)
    found = glob(name, recursive=True) if has_magic(name) else []  # noqa: PTH207 - Path.glob takes no absolute pattern
    paths = [path] if path.is_file() else [each for each in map(Path, sorted(found)) if each.is_file()]
    if not paths:
        raise ValueError(f"{name} is missing, or no ordinary file.")
    kinds = {each.suffix for each in paths}
    if kinds <= set(_LINES):
        return Lines(paths)
    if kinds <= set(_TABLES):
        files = {source.split: [str(each.resolve()) for each in paths]}
        return _read_by(name, source, lambda library: library.load_dataset_builder("parquet", data_files=files))
    if kinds & {*_LINES, *_TABLES}:
        raise ValueError(f"{name} names files of several kinds, {', '.join(sorted(kinds))}: give each kind by itself.")
    return Texts(paths, source.text)


def check_source(name: str, source: Source) -> None:
    """Opens a source and looks at its first records, until one can be learned from; without copying anything.

    Raises:
        ValueError: it cannot be read, or holds no such record, in one sentence.
    """
    look, fault = replace(source, stream=True), f"{name} holds no record."
    for record in islice(open_source(name, look).in_order(), LOOK):
        columns = [column for column in (source.text, source.messages) if column]
        if not record.fault and any(record.value.get(column) is not None for column in columns):
            return
        why = record.fault or (
            f"there is no {' or '.join(columns)} among {', '.join(record.value) or 'no fields'}; name the column that "
            'holds texts with text = "...", or the one that holds conversations with messages = "...".'
        )
        fault = f"{record.place}: {why}"
        if source.corrupt == "refuse":
            break
    raise ValueError(fault)


def source_examples(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    source: Source = WHOLE,
    taken: Taken | None = None,
) -> Iterator[Example]:
    """The examples of a source once, in its order; texts in pieces of at most ``length`` tokens.

    Conversations longer than that are left out, since a reply cannot be learned without its prompt.

    Args:
        taken: is told what was taken and what was left out.

    Raises:
        ValueError: naming the file and the line, for what is neither a text nor a conversation where that is refused,
            and a source that holds nothing.
    """
    records, taken = open_source(name, source), taken or Taken()
    yield from _examples(name, records.in_order(), source, tokenizer, length, taken)


def endless_examples(
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    seed: int,
    source: Source = WHOLE,
    taken: Taken | None = None,
) -> Iterator[Example]:
    """The examples of a source over and over, each round in another order; the same for the same seed.

    Arguments and errors are those of :func:`source_examples`.
    """
    records, taken = open_source(name, source), taken or Taken()
    for round_number in count():
        yield from _examples(name, records.shuffled(seed, round_number), source, tokenizer, length, taken)
        taken.rounds += 1


def _examples(
    name: str,
    records: Iterator[Record],
    source: Source,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    taken: Taken,
) -> Iterator[Example]:
    before = taken.examples
    for record in records:
        try:
            if record.fault:
                raise ValueError(record.fault)
            found = list(record_examples(record.value, tokenizer, length, source.text, source.messages))
        except ValueError as error:
            if source.corrupt == "refuse":
                raise ValueError(f"{record.place}: {error}") from None
            taken.corrupt += 1
            taken.first_corrupt = taken.first_corrupt or f"{record.place}: {error}"
            continue
        taken.too_long += not found
        for example in found:
            taken.examples += 1
            taken.tokens += len(example.input_ids)
            yield example
    if taken.examples == before:
        raise ValueError(f"{name} holds no example of at most {length} tokens.")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None


def _offsets(path: Path) -> array[int]:
    """Where each line of a file begins."""
    starts, place = array("q"), 0
    with _opened(path) as file:
        for line in file:
            starts.append(place)
            place += len(line)
    return starts


def _blank(line: bytes) -> bool:
    return not line.removeprefix(BOM_UTF8).strip()


def _record(path: Path, number: int, line: bytes) -> Record:
    place = f"{path}, line {number}"
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
    except UnicodeDecodeError as error:
        return Record(place, {}, f"is not UTF-8 text: {error.reason} at byte {error.start} of the line.")
    except json.JSONDecodeError as error:
        return Record(place, {}, f"is no JSON: {error.msg}, column {error.colno}. Mend or remove the line.")
    except (ValueError, RecursionError) as error:
        return Record(place, {}, f"is no JSON that can be read: {error}. Mend or remove the line.")
    if not isinstance(value, dict):
        return Record(place, {}, "is no JSON object. Mend or remove the line.")
    return Record(place, value)


def _dataset(name: str, source: Source) -> Records:
    """A folder, or a name on the hub."""
    folder = Path(name)
    if folder.is_dir() and any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        library = _library(name)
        saved = _theirs(name, lambda: library.load_from_disk(name))
        if not isinstance(saved, dict):
            return Table(name, saved)
        if source.split not in saved:
            raise ValueError(f"{name} has no split {source.split}; there are {', '.join(saved)}.")
        return Table(name, saved[source.split])
    wanted = None if folder.is_dir() else HubId.parse(name)
    path, revision = (name, None) if wanted is None else (wanted.name, wanted.revision)
    options: dict[str, Any] = {"name": source.config or None, "revision": revision}
    said = name if wanted is None else f"{name}, no file or folder here,"
    return _read_by(said, source, lambda library: library.load_dataset_builder(path, **options))


def _read_by(name: str, source: Source, build: Callable[[Any], Any]) -> Records:
    library = _library(name)
    builder = _theirs(name, lambda: build(library))
    if builder.name not in BUILDERS:
        raise ValueError(f"{name} is of the kind {builder.name}, which is not read: {', '.join(BUILDERS)} are.")
    if source.stream:
        return Stream(name, _theirs(name, lambda: builder.as_streaming_dataset(split=source.split)))
    _theirs(name, builder.download_and_prepare)
    return Table(name, _theirs(name, lambda: builder.as_dataset(split=source.split)))


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{name} is read by the library datasets, which is not installed: in a clone, pip install '.[data]'."
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _theirs(name: str, call: Callable[[], Any]) -> Any:
    """What ``call`` of the library gives; whatever it raises (files, formats, the network) as one sentence."""
    try:
        return call()
    except Exception as error:
        chain: BaseException = error
        while chain.__cause__ is not None:  # "An error occurred while generating the dataset" says nothing
            chain = chain.__cause__
        reason = (str(chain).strip() or type(chain).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{name} cannot be read as a dataset: {reason}.") from error
