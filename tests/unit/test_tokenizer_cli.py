"""`axk1 tokenizer train`, `report` and `draft-tokens`, run as commands on small files."""

import json
import shutil
from collections import Counter
from typing import Any

import pytest
from tiny import small_model
from typer.testing import CliRunner

from axk1 import AXK1ForCausalLM
from axk1.cli.tokenizer import app
from axk1.tokenizer.documents import find_files
from axk1.tokenizer.report import load_tokenizer, measure, sample_texts

SIZES = ["--vocab-size", "360", "--special-slots", "64"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "ko.txt").write_text("도서관에는 책이 많이 있습니다. 사람도 많습니다.\n" * 20, encoding="utf-8")
    (folder / "en.txt").write_text(
        "The library holds many books, and many readers come to borrow them.\n" * 20, encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    result = CliRunner().invoke(app, ["train", str(out), str(corpus), *SIZES, "--digits", "1", "--weight", "ko=3"])
    assert result.exit_code == 0, result.output
    return out


def test_train_writes_a_tokenizer(trained):
    assert load_tokenizer(trained).get_vocab_size() == 360
    assert load_tokenizer(trained / "tokenizer.json").token_to_id("<think>") == 360 - 64 + 14


def test_train_writes_over_no_tokenizer(corpus, trained, tmp_path):
    before = (trained / "tokenizer.json").read_bytes()
    again = ["train", str(trained), str(corpus), "--vocab-size", "340", "--special-slots", "64"]
    refused = CliRunner().invoke(app, again)
    assert isinstance(refused.exception, ValueError) and "holds tokenizer.json already" in str(refused.exception)
    assert (trained / "tokenizer.json").read_bytes() == before
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert CliRunner().invoke(app, ["train", str(copy), *again[2:], "--force"]).exit_code == 0
    assert load_tokenizer(copy).get_vocab_size() == 340
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, ["train", str(tmp_path / "file"), *again[2:], "--force"])
    assert "is no folder" in str(refused.exception)


def test_weights_shift_the_vocabulary(corpus, trained, tmp_path):
    result = CliRunner().invoke(app, ["train", str(tmp_path / "en"), str(corpus), *SIZES, "--weight", "ko=0"])
    assert result.exit_code == 0, result.output
    cells = measure({"ko": load_tokenizer(trained), "en": load_tokenizer(tmp_path / "en")}, texts_of(corpus))
    assert cells["ko"]["ko"].bytes_per_token > 2 * cells["ko"]["en"].bytes_per_token
    assert cells["en"]["ko"].bytes_per_token < cells["en"]["en"].bytes_per_token


def texts_of(corpus):
    return sample_texts(find_files([corpus]), 500)


def test_report_prints_what_the_tokenizer_does(corpus, trained):
    arguments = ["report", str(trained), str(trained / "tokenizer.json"), "--corpus", str(corpus)]
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    text = (corpus / "ko.txt").read_text(encoding="utf-8")
    cell = rows["ko"][str(trained)]
    assert cell["bytes"] == len(text.encode()) and cell["tokens"] == len(load_tokenizer(trained).encode(text).ids)
    assert cell["bytes_per_token"] == round(cell["bytes"] / cell["tokens"], 4)
    assert rows["ko"][str(trained)] == rows["ko"][str(trained / "tokenizer.json")] and set(rows) == {"ko", "en"}
    table = CliRunner().invoke(app, arguments).output
    assert f"{cell['bytes']:,}" in table


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"text": 5}', "line 4: 'text' is 5; it must be text"),
        ('{"text": null}', "line 4: 'text' is None"),
        ('{"body": "a"}', "line 4 is not a JSON object"),
        ("5", "line 4 is not a JSON object"),
        ('["text"]', "line 4 is not a JSON object"),
        ("[" * 100_000, "line 4 is not a JSON object"),
        ('{"text": "\\ud800"}', "line 4: 'text' has a lone surrogate"),
    ],
)
@pytest.mark.parametrize("command", ["train", "report"])
def test_lines_of_another_type_are_named(trained, tmp_path, command, line, error):
    file = tmp_path / "text.jsonl"
    file.write_text('\ufeff{"text": "fine"}\n\n  \n' + line + "\n", encoding="utf-8")
    arguments = (
        [str(tmp_path / "out"), str(file), *SIZES] if command == "train" else [str(trained), "--corpus", str(file)]
    )
    result = CliRunner().invoke(app, [command, *arguments])
    assert isinstance(result.exception, ValueError) and error in str(result.exception)
    assert str(file) in str(result.exception)


def test_a_byte_order_mark_and_blank_lines_are_no_text(tmp_path):
    lines, plain = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text('\ufeff\n{"text": "one"}\n\n\ufeff{"text": ""}\n', encoding="utf-8")
    plain.write_text("\ufefftwo\n", encoding="utf-8")
    assert texts_of(tmp_path) == {"a": ["one"], "b": ["two\n"]}
    lines.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="are empty"):
        sample_texts(find_files([lines]), 500)
    with pytest.raises(ValueError, match="max_bytes: 0"):
        sample_texts(find_files([plain]), 0)


@pytest.mark.parametrize("weight", ["ko", "ko=x"])
def test_a_malformed_weight_is_refused(corpus, tmp_path, weight):
    result = CliRunner().invoke(app, ["train", str(tmp_path), str(corpus), *SIZES, "--weight", weight])
    assert isinstance(result.exception, ValueError) and "LABEL=NUMBER" in str(result.exception)


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_draft_tokens_are_the_frequent_and_the_special_ones(corpus, trained, tmp_path):
    model = small_model(vocab_size=360, num_nextn_predict_layers=1)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [300, 301]
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    found = {}
    for coverage in ("0.5", "1"):
        result = CliRunner().invoke(
            app, ["draft-tokens", str(tmp_path), str(corpus / "en.txt"), "--coverage", coverage]
        )
        assert result.exit_code == 0, result.output
        settings: Any = AXK1ForCausalLM.from_pretrained(tmp_path).generation_config
        assert settings.eos_token_id == [300, 301]
        found[coverage] = settings.draft_token_ids
        assert f"drafts {len(found[coverage])} of 360 tokens" in result.output
    tokenizer = load_tokenizer(trained)
    counts = Counter(tokenizer.encode((corpus / "en.txt").read_text(encoding="utf-8")).ids)
    special = set(tokenizer.get_added_tokens_decoder())
    assert set(found["1"]) == set(counts) | special and len(set(found["1"])) == len(found["1"])
    few = [token for token in found["0.5"] if token not in special]
    shares = [counts[token] / counts.total() for token in few]
    assert shares == sorted(shares, reverse=True) and sum(shares) >= 0.5 > sum(shares[:-1])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [], "written beside, and renamed"


@pytest.mark.parametrize("coverage", ["0", "1.5"])
def test_draft_tokens_wants_a_share(corpus, trained, tmp_path, coverage):
    small_model(vocab_size=360).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
    result = CliRunner().invoke(app, ["draft-tokens", str(tmp_path), str(corpus), "--coverage", coverage])
    assert isinstance(result.exception, ValueError) and "must be above 0 and at most 1" in str(result.exception)
    result = CliRunner().invoke(app, ["draft-tokens", str(trained), str(corpus)])
    assert isinstance(result.exception, ValueError) and "has no config.json" in str(result.exception)
