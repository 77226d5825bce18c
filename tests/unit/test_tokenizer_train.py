"""Training: round trip of every text, determinism, digits, slots, weights, and loading through transformers."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from axk1.tokenizer.documents import TextFile, copies, find_files, read_documents, weighted_documents
from axk1.tokenizer.special_tokens import NAMED_TOKENS, RELEASED_SLOTS, RELEASED_VOCAB_SIZE, special_token_id
from axk1.tokenizer.train import new_tokenizer, save_tokenizer, train_tokenizer

TEXTS = [
    "The library holds 1234567 books, and readers don't return 89 of them.\n",
    "도서관에는 책이 1234567권 있고 LibreOffice를 쓰는 사람도 많습니다.\n",
    "图书馆有一千多本书，还有很多读者。\n",
    "図書館には本がたくさんあります。LibreOfficeを使う人も多いです。\n",
    "La biblioteca tiene muchos libros, ¿cuántos lectores hay?\n",
    "def area(self, width):\n    return self.height * width  # 3.14\n",
] * 3
VOCAB_SIZE, SLOTS = 400, 64


def _train(digits: int = 1, **options) -> Tokenizer:
    return train_tokenizer(iter(TEXTS), vocab_size=VOCAB_SIZE, special_slots=SLOTS, digits=digits, **options)


TOKENIZER = _train()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60) | st.lists(st.sampled_from([*TEXTS, "<think>", "<|im_end|>", " ", "\r\n", "5"])).map("".join)
)
def test_every_text_round_trips(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_two_trainings_write_identical_files(tmp_path):
    for name in ("a", "b"):
        save_tokenizer(_train(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    ("digits", "expected"), [(1, list("1234567")), (2, ["12", "34", "56", "7"]), (3, ["123", "456", "7"])]
)
def test_numbers_are_cut_into_the_given_digits(digits, expected):
    text = "x 1234567"
    pieces = [text[start:end] for _, (start, end) in new_tokenizer(digits).pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == ["x", " ", *expected]


def test_no_token_of_a_digit_tokenizer_has_a_digit_and_more():
    pieces = [TOKENIZER.decode([index]) for index in range(VOCAB_SIZE - SLOTS)]
    assert sorted(piece for piece in pieces if re.search("[0-9]", piece)) == list("0123456789")


def test_pieces_stay_inside_a_script_and_keep_the_space_before_a_word():
    text = "LibreOffice를 엽니다 漢字をコピー don't  x2"
    pieces = [text[start:end] for _, (start, end) in new_tokenizer(1).pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == ["LibreOffice", "를", " 엽니다", " 漢字", "を", "コピー", " don", "'t", " ", " x", "2"]


def test_special_slots_end_the_vocabulary():
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    for token in NAMED_TOKENS:
        assert TOKENIZER.token_to_id(token.text) == VOCAB_SIZE - SLOTS + token.offset
    assert TOKENIZER.token_to_id("<|reserved_63|>") == VOCAB_SIZE - 1


def test_released_ids():
    ids = {
        text: special_token_id(text, RELEASED_VOCAB_SIZE, RELEASED_SLOTS) for text in ("<|endoftext|>", "<|im_end|>")
    }
    assert ids == {"<|endoftext|>": 163_691, "<|im_end|>": 163_704}
    assert special_token_id("<|pad|>", RELEASED_VOCAB_SIZE, RELEASED_SLOTS) == 163_692
    with pytest.raises(ValueError, match="nonsense"):
        special_token_id("<|nonsense|>", RELEASED_VOCAB_SIZE, RELEASED_SLOTS)


def test_tags_survive_skip_special_tokens():
    ids = TOKENIZER.encode("<think>a</think>b<tool_call>{}</tool_call><|im_end|>").ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>a</think>b<tool_call>{}</tool_call>"
    assert TOKENIZER.token_to_id("<think>") in ids


def test_max_token_bytes_bounds_ordinary_tokens():
    ordinary = _train(max_token_bytes=5).get_vocab(with_added_tokens=False)
    assert max(map(len, ordinary)) == 5 < max(map(len, TOKENIZER.get_vocab(with_added_tokens=False)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 300, "special_slots": 64}, "no room"),
        ({"vocab_size": 400, "special_slots": 10}, "need at least"),
        ({"vocab_size": 90_000, "special_slots": 64}, "add text"),
        ({"vocab_size": 400, "special_slots": 64, "digits": 0}, "at least 1"),
        ({"vocab_size": 400, "special_slots": 64, "max_token_bytes": 1}, "at least 2"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(iter(TEXTS), **options)


def test_transformers_loads_the_folder(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(TOKENIZER, tmp_path, model_max_length=4096)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    first = VOCAB_SIZE - SLOTS
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (first, first + 1, first + 13)
    assert (len(loaded), loaded.model_max_length, loaded.padding_side) == (VOCAB_SIZE, 4096, "left")
    for text in TEXTS:
        assert loaded(text)["input_ids"] == TOKENIZER.encode(text).ids
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_files_are_found_with_their_labels(tmp_path):
    (tmp_path / "ko").mkdir()
    (tmp_path / "ko" / "b.txt").write_text("나\n", encoding="utf-8")
    (tmp_path / "en.jsonl").write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-8")
    (tmp_path / "SOURCES.json").write_text("{}", encoding="utf-8")
    (tmp_path / ".parts").mkdir()
    (tmp_path / ".parts" / "x.jsonl").write_text("{}", encoding="utf-8")
    assert [(file.path.name, file.label) for file in find_files([tmp_path])] == [("en.jsonl", "en"), ("b.txt", "ko")]
    with pytest.raises(ValueError, match="is no file or folder"):
        find_files([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no text"):
        find_files([tmp_path / "empty"])


def test_plain_files_stream_in_chunks_that_join_to_the_file(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"line {number}\r\n\n" for number in range(5000))
    path.write_bytes(text.encode())
    chunks = list(read_documents(TextFile(path, "a")))
    assert len(chunks) > 1 and "".join(chunks) == text


@pytest.mark.parametrize("content", [b'{"text": 1', b'{"other": "a"}', b"[]"])
def test_a_bad_jsonl_row_is_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + content + b"\n")
    with pytest.raises(ValueError, match="line 2"):
        list(read_documents(TextFile(path, "a")))


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("año".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        list(read_documents(TextFile(path, "latin")))


def test_weights_repeat_and_drop_documents(tmp_path):
    path = tmp_path / "ko.jsonl"
    rows = [f"문서 {number}" for number in range(1000)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    files = find_files([path])
    assert list(weighted_documents(files, {"ko": 2})) == [row for row in rows for _ in range(2)]
    assert list(weighted_documents(files, {"ko": 0})) == []
    half = list(weighted_documents(files, {"ko": 0.5}))
    assert half == list(weighted_documents(files, {"ko": 0.5})) and 400 < len(half) < 600
    assert all(copies(row, 2.5) in (2, 3) for row in rows)
    for wrong in ({"ko": -1.0}, {"en": 2.0}):
        with pytest.raises(ValueError, match="weight"):
            list(weighted_documents(files, wrong))
