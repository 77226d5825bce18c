"""Sources of training data: kinds, orders, what is left out, and what is said before anything starts."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import SIZES, make_tokenizer
from typer.testing import CliRunner

from axk1.cli.main import app
from axk1.train.inspect import documents
from axk1.train.packing import PackedRows, packed_rows, save_rows
from axk1.train.recipe import Recipe, Stage, check_stage
from axk1.train.sources import Lines, Source, Taken, check_source, endless_examples, open_source, order, source_examples
from axk1.train.stages import stage_examples

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
TALK = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}]
THOUGHT = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "two", "reasoning_content": "1+1"}]
RECORDS: list[dict[str, Any]] = [
    *({"text": f"text {number}"} for number in range(20)),
    {"messages": TALK},
    {"messages": THOUGHT},
    {"messages": TALK, "think": True},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    """Of the library, which copies what it reads."""
    if importlib.util.find_spec("datasets") is not None:
        from datasets import config

        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def lines(path: Path, records: list[Any]) -> str:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return str(path)


def as_kind(kind: str, folder: Path, records: list[dict[str, Any]]) -> str:
    """The records as a source of a kind."""
    if kind == "jsonl":
        return lines(folder / "a.jsonl", records)
    if kind == "several":
        for number in range(3):
            lines(folder / f"part-{number}.jsonl", records[number * 8 : number * 8 + 8])
        return str(folder / "part-*.jsonl")
    import datasets

    empty = dict.fromkeys(("text", "messages", "think"))  # a table has every column in every row
    table = datasets.Dataset.from_list([{**empty, **record} for record in records])
    if kind == "parquet":
        table.to_parquet(folder / "a.parquet")
        return str(folder / "a.parquet")
    if kind == "saved":
        table.save_to_disk(folder / "saved")
        return str(folder / "saved")
    if kind == "splits":
        datasets.DatasetDict({"train": table}).save_to_disk(folder / "splits")
        return str(folder / "splits")
    (folder / "files").mkdir()
    table.to_parquet(folder / "files" / "train-0.parquet")
    return str(folder / "files")


KINDS = ["jsonl", "several", *(pytest.param(k, marks=needs_datasets) for k in ("parquet", "saved", "splits", "folder"))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_holds_the_same(tokenizer, tmp_path: Path, kind: str) -> None:
    """In its order, and every round in another one; columns that a table adds to a row change nothing."""
    expected = list(source_examples(lines(tmp_path / "plain.jsonl", RECORDS), tokenizer, 200))
    name = as_kind(kind, tmp_path, RECORDS)
    check_source(name, Source(1.0))
    assert list(source_examples(name, tokenizer, 200)) == expected
    stream = endless_examples(name, tokenizer, 200, seed=3)
    first, second = ([next(stream) for _ in expected] for _ in range(2))
    assert first != second and first != expected
    for found in (first, second):
        assert sorted(found, key=repr) == sorted(expected, key=repr)
    again = endless_examples(name, tokenizer, 200, seed=3)
    assert [next(again) for _ in range(2 * len(expected))] == first + second
    assert list(islice(endless_examples(name, tokenizer, 200, seed=4), len(expected))) != first


@needs_datasets
@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_a_stream_holds_the_same_and_copies_nothing(tokenizer, tmp_path: Path, kind: str) -> None:
    from datasets import config

    name, source = as_kind(kind, tmp_path, RECORDS), Source(1.0, stream=True)
    expected = list(source_examples(lines(tmp_path / "plain.jsonl", RECORDS), tokenizer, 200))
    assert list(source_examples(name, tokenizer, 200, source)) == expected
    rounds = [
        [next(stream) for _ in expected]
        for stream in (endless_examples(name, tokenizer, 200, 3, source) for _ in range(2))
    ]
    assert rounds[0] == rounds[1] != expected and sorted(rounds[0], key=repr) == sorted(expected, key=repr)
    assert not list(Path(config.HF_DATASETS_CACHE).rglob("*.arrow"))


def test_text_files_are_documents(tokenizer, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"document {number}")
    found = [bytes(e.input_ids[:-1]).decode() for e in source_examples(str(tmp_path / "*.txt"), tokenizer, 50)]
    assert found == [f"document {number}" for number in range(5)]
    stream = endless_examples(str(tmp_path / "*.txt"), tokenizer, 50, seed=0)
    assert len({tuple(next(stream).input_ids) for _ in range(5)}) == 5
    (tmp_path / "6.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"6\.txt: is not UTF-8 text"):
        list(source_examples(str(tmp_path / "*.txt"), tokenizer, 50))


@settings(max_examples=50, deadline=None)
@given(
    files=st.lists(
        st.lists(st.sampled_from(['{"text": "a"}', "", "  ", '{"text": "한국어"}', "{"])), min_size=1, max_size=4
    ),
    ended=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_lines_are_found_by_their_offsets(tmp_path_factory, files: list[list[str]], ended: bool, seed: int) -> None:
    """Every line that is not blank once a round, at its number, whatever ends the file and begins it."""
    folder = tmp_path_factory.mktemp("lines")
    paths = []
    for number, each in enumerate(files):
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_bytes(b"\xef\xbb\xbf" * (number % 2) + ("\n".join(each) + "\n" * ended).encode())
    records = Lines(paths)
    expected = list(records.in_order())
    assert len(expected) == sum(bool(line.strip()) for each in files for line in each)
    for round_number in range(2):
        assert sorted(records.shuffled(seed, round_number), key=repr) == sorted(expected, key=repr)
    for record in expected:
        path, _, number = record.place.rpartition(", line ")
        line = files[int(Path(path).stem)][int(number) - 1]
        assert record.value == ({} if line == "{" else json.loads(line)) and bool(record.fault) == (line == "{")


@given(length=st.integers(0, 300), seed=st.integers(0, 2**31), round_number=st.integers(0, 9))
def test_an_order_is_a_permutation_of_seed_and_round(length: int, seed: int, round_number: int) -> None:
    found = list(order(seed, round_number, length))
    assert sorted(found) == list(range(length)) and found == list(order(seed, round_number, length))
    if length > 20:
        assert found != list(order(seed, round_number + 1, length))
        assert found != list(order(seed + 1, round_number, length))


def test_corrupt_lines_are_refused_or_counted(tokenizer, tmp_path: Path) -> None:
    records = [{"text": "a"}, "{", {"prompt": "b"}, {"messages": TALK[:1]}, {"messages": [*TALK[:1] * 60, TALK[1]]}]
    name = lines(tmp_path / "a.jsonl", records)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: .*Mend or remove the line"):
        list(source_examples(name, tokenizer, 100))
    taken = Taken()
    found = list(source_examples(name, tokenizer, 100, Source(1.0, corrupt="skip"), taken))
    assert len(found) == 1 and (taken.examples, taken.tokens, taken.corrupt, taken.too_long) == (1, 2, 3, 1)
    assert taken.first_corrupt.startswith(f"{name}, line 2: ")
    assert "3 records skipped, the first: " in taken.words() and "1 conversations longer than a row" in taken.words()
    with pytest.raises(ValueError, match="holds no example of at most 100 tokens"):
        list(source_examples(lines(tmp_path / "b.jsonl", ["{"]), tokenizer, 100, Source(1.0, corrupt="skip")))


def test_columns_have_names(tokenizer, tmp_path: Path) -> None:
    name = lines(tmp_path / "a.jsonl", [{"body": "abc", "text": 5, "messages": None}, {"body": None, "chat": TALK}])
    source = Source(1.0, text="body", messages="chat")
    check_source(name, source)
    texts = [tokenizer.decode(e.input_ids) for e in source_examples(name, tokenizer, 200, source)]
    assert texts[0] == "abc<|endoftext|>" and texts[1].endswith("one<|im_end|>")
    alone = Source(1.0, text="", messages="chat", corrupt="skip")
    assert len(list(source_examples(name, tokenizer, 200, alone))) == 1
    both = lines(tmp_path / "b.jsonl", [{"text": "a", "messages": TALK}])
    with pytest.raises(ValueError, match="line 1: give either 'text' or 'messages'"):
        list(source_examples(both, tokenizer, 200))


@pytest.mark.parametrize(
    ("records", "source", "words"),
    [
        ([{"body": "a"}], Source(1.0), r"line 1: there is no text or messages among body; name the column that holds"),
        ([{"text": "a"}], Source(1.0, text="body", messages=""), "there is no body among text"),
        (["{"], Source(1.0), "line 1: .*Mend or remove the line"),
        (["{", {"x": 1}], Source(1.0, corrupt="skip"), "line 2: there is no text or messages among x"),
        ([], Source(1.0), "holds no record"),
    ],
)
def test_a_first_look(tmp_path: Path, records: list[Any], source: Source, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_source(lines(tmp_path / "a.jsonl", records), source)


def test_what_is_no_source(tmp_path: Path, monkeypatch) -> None:
    lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a.txt").write_text("text")
    for name, words in {
        "none.jsonl": "is missing, or no ordinary file",
        "no/such.parquet": "is missing, or no ordinary file",
        "*.csv": "is missing, or no ordinary file",
        "a.*": r"names files of several kinds, .jsonl, .txt: give each kind by itself",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_source(str(tmp_path / name))
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").touch()
    for name in ("some/name", str(tmp_path / "a.parquet"), str(tmp_path)):
        with pytest.raises(
            ValueError, match=r"the library datasets, which is not installed: in a clone, pip install '.\[data\]'"
        ):
            open_source(name)


@needs_datasets
def test_what_the_library_cannot_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text("<a/>")
    saved = as_kind("splits", tmp_path, RECORDS)
    files = as_kind("folder", tmp_path, RECORDS)
    for name, source, words in [
        ("a.parquet", Source(1.0), r"a\.parquet cannot be read as a dataset: "),
        ("empty", Source(1.0), r"empty cannot be read as a dataset: "),
        ("xml", Source(1.0), r"xml is of the kind xml, which is not read: parquet, json, arrow, csv, text are"),
        (saved, Source(1.0, split="test"), "has no split test; there are train"),
        (files, Source(1.0, split="test"), 'cannot be read as a dataset: .*"?test"?'),
        (files, Source(1.0, config="none"), "cannot be read as a dataset: .*none"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            check_source(str(tmp_path / name), source)
        assert "\n" not in str(error.value)


def test_a_mixture_keeps_its_shares_and_says_what_it_took(tokenizer, tmp_path: Path) -> None:
    """Of tokens, whatever the lengths; a share of 0 takes nothing."""
    long = lines(tmp_path / "long.jsonl", [{"text": "x" * 90}] * 7)
    short = lines(tmp_path / "short.jsonl", ["{", *[{"text": "y" * 9}] * 7])
    data = {long: 0.75, short: {"share": 0.25, "corrupt": "skip"}, lines(tmp_path / "none.jsonl", RECORDS): 0}
    stage = Stage("a", steps=1, learning_rate=1.0, schedule="constant", data=data)
    recipe = Recipe(preset="nano", tokenizer="x", stage=[stage], row_tokens=128, model=SIZES)
    check_stage(recipe, stage)
    taken: dict[str, Taken] = {}
    tokens = {120: 0, 121: 0}
    for example in islice(stage_examples(recipe, stage, tokenizer, taken), 4_000):
        tokens[example.input_ids[0]] += len(example.input_ids)
    assert tokens[120] / sum(tokens.values()) == pytest.approx(0.75, abs=0.01)
    assert list(taken) == [long, short] and taken[short].corrupt == pytest.approx(taken[short].rounds, abs=1)
    assert taken[long].tokens == tokens[120] and taken[long].rounds == (taken[long].examples - 1) // 7


STAGE = {"name": "a", "steps": 1, "learning_rate": 1.0, "schedule": "constant"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": True}, 'stage "a": data."x" = True must be a share from 0 to 1, or a table with one'),
        ({"x": 1.5}, 'data."x" = 1.5 must be a share'),
        ({"x": {}}, 'stage "a": data."x": share is missing and required'),
        ({"x": {"share": 2}}, 'stage "a": data."x": share = 2 must be from 0 to 1'),
        ({"x": {"share": 1, "splot": "y"}}, 'data."x": splot is no field; the nearest is split'),
        ({"x": {"share": 1, "stream": 1}}, 'data."x": stream = 1 must be true or false'),
        ({"x": {"share": 1, "corrupt": "no"}}, 'data."x": corrupt = "no" must be "refuse" or "skip"'),
        ({"x": {"share": 1, "text": "", "messages": ""}}, "text and messages are both empty"),
        ({"x": {"share": 1, "split": ""}}, "split is empty"),
        ({"x": 0.6, "y": {"share": 0.6}}, "the shares of data and text must be 1 at most in all"),
    ],
)
def test_a_wrong_source_is_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        Stage(**STAGE, data=given)
    assert words in str(error.value)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), row_tokens=st.integers(1, 40))
def test_rows_come_back_from_four_bytes_a_token(tmp_path_factory, seed: int, rows: int, row_tokens: int) -> None:
    """Ids up to the largest vocabulary, labels, and positions that begin again wherever documents do."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2**24, (rows, row_tokens))
    labels = np.where(rng.random(ids.shape) < 0.5, ids, -100)
    starts = rng.random(ids.shape) < 0.2
    starts[:, 0] = True
    places = np.arange(row_tokens)
    positions = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    array = np.stack([ids, labels, positions], axis=1).astype(np.int32)
    path = tmp_path_factory.mktemp("rows") / "data.npy"
    save_rows(path, array)
    held = PackedRows(path)
    assert np.array_equal(held.read(0, rows), array) and held.row_tokens == row_tokens and len(held) == rows
    assert held[rows - 1]["labels"].tolist() == labels[-1].tolist()
    assert path.stat().st_size < 4 * ids.size + 200
    np.save(path, array)  # as runs begun earlier have it
    assert np.array_equal(PackedRows(path).read(0, rows), array)


def test_inspect_shows_a_stage_of_a_recipe(tokenizer, tmp_path: Path) -> None:
    """Its mixture, in its row length, in the rows that training will see first."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = lines(tmp_path / "a.jsonl", ["{", *RECORDS])
    stages = [
        {**STAGE, "name": name, "row_tokens": length, "data": {data: {"share": 1.0, "corrupt": "skip"}}}
        for name, length in (("short", 0), ("long", 300))
    ]
    text = f"preset = 'nano'\ntokenizer = '{tmp_path / 'tokenizer'}'\nrow_tokens = 150\n[model]\nvocab_size = 320\n"
    text += "bos_token_id = 256\npad_token_id = 257\neos_token_id = [269, 256]\n"
    for stage in stages:
        text += "[[stage]]\n" + "".join(
            f"{key} = {json.dumps(value)}\n" for key, value in stage.items() if key != "data"
        )
        text += f"data = {{ '{data}' = {{ share = 1.0, corrupt = 'skip' }} }}\n"
    (tmp_path / "own.toml").write_text(text)
    for name, length in (("short", 150), ("long", 300)):
        shown = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "own.toml"), "--stage", name, "--rows", "1"])
        assert shown.exit_code == 0, shown.output
        assert f" of {length} tokens learned" in shown.output and "records skipped, the first: " in shown.output
    recipe = Recipe.load(tmp_path / "own.toml")
    expected = next(packed_rows(stage_examples(recipe, recipe.stage[0], tokenizer), 150, 257))
    found = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "own.toml"), "--rows", "1", "--json"])
    shown = [document._asdict() for document in documents(expected, tokenizer)]
    assert json.loads(found.output) == json.loads(json.dumps([shown]))
    wrong = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / "own.toml"), "--stage", "sort"])
    assert wrong.exit_code == 2 and "has the stages short, long" in wrong.output + str(wrong.exception)
