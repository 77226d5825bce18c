"""Training examples and packed rows."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import make_tokenizer

from axk1.train.examples import Example, problem_examples, text_examples
from axk1.train.packing import PackedRows, pack

PAD = 257


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def take(stream, count):
    return [next(stream) for _ in range(count)]


def test_a_think_example_learns_the_reply_only(tokenizer) -> None:
    for example in take(problem_examples(tokenizer, 0, think=1.0, dialogue=0.0, learn_prompt=False), 20):
        prompt = [i for i, learned in zip(example.input_ids, example.learned, strict=True) if not learned]
        reply = [i for i, learned in zip(example.input_ids, example.learned, strict=True) if learned]
        assert example.input_ids == prompt + reply, "the prompt comes first, the reply after it"
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>")
        text = tokenizer.decode(reply)
        assert text.count("</think>") == 1 and text.endswith("<|im_end|>") and "<|im_start|>" not in text


def test_a_non_think_example_has_no_reasoning(tokenizer) -> None:
    for example in take(problem_examples(tokenizer, 0, think=0.0, dialogue=0.0, learn_prompt=False), 20):
        text = tokenizer.decode(example.input_ids)
        assert "<|im_start|>assistant\n</think>" in text and "<think>" not in text
        assert text.count("</think>") == 1


def test_share_of_think_and_of_dialogues(tokenizer) -> None:
    texts = [
        tokenizer.decode(e.input_ids)
        for e in take(problem_examples(tokenizer, 1, think=0.3, dialogue=0.5, learn_prompt=False), 1500)
    ]
    assert abs(np.mean(["<think>" in text for text in texts]) - 0.3) < 0.05
    assert abs(np.mean([text.count("<|im_start|>user") == 2 for text in texts]) - 0.5) < 0.05


def test_language_modelling_learns_the_prompt_too(tokenizer) -> None:
    assert all(all(e.learned) for e in take(problem_examples(tokenizer, 0, think=1, dialogue=0, learn_prompt=True), 5))


def test_the_same_seed_gives_the_same_examples(tokenizer) -> None:
    first, again, other = (
        take(problem_examples(tokenizer, seed, think=0.5, dialogue=0.2, learn_prompt=False), 30) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_text_takes_turns_between_the_parts(tokenizer, tmp_path) -> None:
    for part, letter in (("en", "a"), ("ko", "b")):
        lines = [json.dumps({"text": letter * 100}) for _ in range(10)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    examples = take(text_examples(tmp_path, tokenizer, 32, 0, ["en", "ko"]), 400)
    assert all(len(e.input_ids) <= 32 and all(e.learned) for e in examples)
    counts = {letter: sum(e.input_ids.count(ord(letter)) for e in examples) for letter in "ab"}
    assert 0.8 < counts["a"] / counts["b"] < 1.25
    assert sum(e.input_ids.count(256) for e in examples) > 50, "documents end with <|endoftext|>"


def test_a_missing_part_of_the_corpus_is_named(tokenizer, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"ja\.jsonl is missing: build the corpus"):
        next(text_examples(tmp_path, tokenizer, 32, 0, ["ja"]))
    for text, error in (("", "holds no text"), ('{"text": 5}', "line 1: 'text' is 5"), ("[", "line 1 is not a JSON")):
        (tmp_path / "ja.jsonl").write_text(text)
        with pytest.raises(ValueError, match=error):
            next(text_examples(tmp_path, tokenizer, 32, 0, ["ja"]))


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=200, max_size=400), seed=st.integers(0, 99))
def test_rows_hold_whole_examples_once(tmp_path_factory, lengths, seed) -> None:
    rng = np.random.default_rng(seed)
    examples = [
        Example(rng.integers(1000 * n, 1000 * n + 999, k).tolist(), rng.random(k).round().astype(bool).tolist())
        for n, k in enumerate(lengths)
    ]
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    pack(itertools.cycle(examples), rows=20, row_tokens=24, pad_id=PAD, path=path)
    rows = PackedRows(path)
    assert len(rows) == 20
    originals = {(tuple(e.input_ids), tuple(e.learned)) for e in examples}
    for row in rows:
        starts = [*np.flatnonzero(row["position_ids"] == 0), 24]
        for start, end in itertools.pairwise(starts):
            ids, labels = row["input_ids"][start:end].tolist(), row["labels"][start:end].tolist()
            if set(ids) == {PAD}:
                assert set(labels) == {-100} and end == 24
                continue
            assert row["position_ids"][start:end].tolist() == list(range(end - start))
            assert (tuple(ids), tuple(label != -100 for label in labels)) in originals
            assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))


def test_an_example_longer_than_a_row_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="An example has 9 tokens, a row holds row_tokens=8"):
        pack(iter([Example([1] * 9, [True] * 9)]), 1, 8, PAD, tmp_path / "rows.npy")
    assert not list(tmp_path.iterdir())


def test_too_few_examples_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="ended after 0 full rows of the 2"):
        pack(iter([Example([1] * 8, [True] * 8)] * 3), 2, 8, PAD, tmp_path / "rows.npy")
