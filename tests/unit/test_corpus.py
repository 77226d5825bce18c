"""The corpus build: extraction, language filter, deduplication, cap and resumption, on a stand-in for apt."""

import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from axk1.train import corpus
from axk1.train.corpus import Source, build, extract_text, in_language, write_problems

PAGE = """<html><head><title>not text</title><script>var a = 1;</script></head><body>
<header><p>frame</p></header><div class="navheader"><div>Prev</div>Next</div>
<h1>도움말 &amp; 안내</h1><p>첫 번째   문장입니다. <span class="MAC">Command<span>x</span></span><span>Ctrl</span></p>
<ul><li>항목 하나</li><li>항목 <b>둘</b></li></ul><pre>def f():
    return 1</pre></body></html>"""


def test_extraction_keeps_blocks_and_drops_the_frame():
    assert extract_text(PAGE).split("\n") == [
        "도움말 & 안내",
        "첫 번째 문장입니다. Ctrl",
        "항목 하나",
        "항목 둘",
        "def f():",
        "    return 1",
    ]


def test_mallard_pages_are_read():
    page = '<page xmlns="x"><info><desc>no</desc></info><title>Sound</title><p>Turn it <gui>up</gui>.</p></page>'
    assert extract_text(page) == "Sound\nTurn it up."


@pytest.mark.parametrize(
    ("line", "language", "expected"),
    [
        ("파일을 엽니다", "ko", True),
        ("Opens the file", "ko", False),
        ("打开文件", "zh", True),
        ("ファイルを開く", "zh", False),
        ("ファイルを開く", "ja", True),
        ("Opens the file", "ja", False),
        ("Opens the file", "es", True),
    ],
)
def test_language_of_a_line(line, language, expected):
    assert in_language(line, language) is expected


SENTENCES = {
    "en": "The document {} opens in its own window.",
    "ko": "{}번 문서가 새 창에서 열립니다.",
    "zh": "第{}个文档在新窗口中打开。",
    "ja": "{}番目の文書を新しいウィンドウで開きます。",
    "es": "El documento {} se abre en su propia ventana.",
}
SOURCE = Source("manual", "MIT", {language: f"{language}/*.html" for language in SENTENCES})


def _pages(root: Path) -> None:
    for language, sentence in SENTENCES.items():
        (root / language).mkdir(parents=True)
        for page in range(6):
            lines = [f"<p>{sentence.format(page * 20 + line)}</p>" for line in range(20)]
            untranslated = f"<p>{SENTENCES['en'].format(page)}</p><p>{sentence.format(0)}</p>"
            (root / language / f"{page}.html").write_text(untranslated + "".join(lines), encoding="utf-8")


@pytest.fixture
def apt(monkeypatch, tmp_path):
    """Commands asked of apt and dpkg, answered without a network; `broken` names packages whose download fails."""

    answers = SimpleNamespace(calls=[], broken=set())

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        answers.calls.append(command)
        if command[:2] == ["apt-get", "download"]:
            if command[2] in answers.broken:
                return subprocess.CompletedProcess(command, 100, "", "E: Failed to fetch")
            (cwd / f"{command[2]}_1_all.deb").write_bytes(b"archive")
        if command[:2] == ["dpkg-deb", "-x"]:
            assert (cwd / command[2]).is_file()  # as the process sees it, from its own folder
            _pages(cwd / command[3])
        known = command[0] == "apt-cache" and command[2] != "unknown"
        return subprocess.CompletedProcess(command, 0, "1.0\n" if known or command[0] == "dpkg-deb" else "", "")

    library = tmp_path / "library"
    (library / "test").mkdir(parents=True)
    for name in ("one.py", "test/two.py"):
        (library / name).write_text(f"# {name}\n" + "value = 1\n" * 50, encoding="utf-8")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr(corpus, "_run", run)
    monkeypatch.setattr(corpus, "_require_apt", lambda: None)
    return answers


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_build_writes_deduplicated_text_and_sources(tmp_path, apt):
    sizes = build(tmp_path, max_bytes=100_000, sources=(SOURCE, Source("unknown", "MIT", {"en": "*"})))
    for language in corpus.PARTS:
        texts = _texts(tmp_path / f"{language}.jsonl")
        assert sum(len(text.encode()) for text in texts) == sizes[language] <= 100_000
    for language, sentence in SENTENCES.items():
        lines = [line for text in _texts(tmp_path / f"{language}.jsonl") for line in text.split("\n")]
        assert sorted(lines) == sorted(sentence.format(number) for number in range(120))
    assert [text.split("\n")[0] for text in _texts(tmp_path / "code.jsonl")] == ["# one.py"]
    record = json.loads((tmp_path / "SOURCES.json").read_text(encoding="utf-8"))
    assert record["missing"] == ["unknown"] and record["bytes"] == sizes
    manual, python = record["sources"]
    assert (manual["package"], manual["version"], manual["licence"]) == ("manual", "1.0", "MIT")
    assert python["licence"] == "PSF-2.0" and manual["sha256"] == hashlib.sha256(b"archive").hexdigest()


def test_the_cap_holds_and_the_result_is_the_same_twice(tmp_path, apt):
    for name in ("a", "b"):
        sizes = build(tmp_path / name, max_bytes=3000, sources=(SOURCE,))
        assert min(sizes.values()) > 0 and max(sizes.values()) <= 3000
    for language in corpus.PARTS:
        assert (tmp_path / "a" / f"{language}.jsonl").read_bytes() == (
            tmp_path / "b" / f"{language}.jsonl"
        ).read_bytes()


def test_the_folder_may_be_relative(tmp_path, apt, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = build(Path("corpus"), max_bytes=3000, sources=(SOURCE,))
    assert min(sizes.values()) > 0 and (tmp_path / "corpus" / "en.jsonl").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "library"]


def test_an_interrupted_build_goes_on(tmp_path, apt):
    second = Source("second", "MIT", {"en": "en/*.html"})
    apt.broken.add("second")
    with pytest.raises(ValueError, match="Failed to fetch"):
        build(tmp_path, max_bytes=3000, sources=(SOURCE, second))
    assert not (tmp_path / "en.jsonl").exists()
    apt.broken.clear()
    apt.calls.clear()
    build(tmp_path, max_bytes=3000, sources=(SOURCE, second))
    assert [call[2] for call in apt.calls if call[:2] == ["apt-get", "download"]] == ["second"]


def test_a_language_without_packages_is_an_error(tmp_path, apt):
    with pytest.raises(ValueError, match=r"no text for 'en'.*apt-get update"):
        build(tmp_path, sources=(Source("unknown", "MIT", {"en": "*"}),))
    assert ["apt-get", "update"] in apt.calls


def test_without_apt_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="'apt-get' is not on PATH"):
        build(tmp_path, sources=(SOURCE,))


def test_every_source_has_a_licence_and_known_languages():
    assert all(source.licence and set(source.globs) <= set(corpus.LANGUAGES) for source in corpus.SOURCES)
    assert len({source.package for source in corpus.SOURCES}) == len(corpus.SOURCES)


def test_problem_text_comes_from_the_training_split(tmp_path):
    from axk1.tasks import generate

    write_problems(tmp_path / "problems.jsonl", count=50, seed=3)
    texts = _texts(tmp_path / "problems.jsonl")
    first = next(generate("train", 3))
    assert len(texts) == 50 and texts[0] == f"{first.question}\n{first.reasoning}\n{first.answer}"
    write_problems(tmp_path / "replies.jsonl", count=50, seed=3, replies=True)
    assert _texts(tmp_path / "replies.jsonl")[0] == f"{first.reasoning}\n{first.answer}"
