"""The nano's real-text corpus: documentation that Debian serves in five languages, and Python's standard library.

`build` writes `OUT/{en,ko,zh,ja,es,code}.jsonl`, one `{"text": str, "source": str}` document per line, and
`OUT/SOURCES.json` with the package, version, licence, sha256 and bytes of everything used. Packages are downloaded and
unpacked by apt and dpkg into a temporary folder; nothing is installed.
"""

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

from axk1.files import replacing, write_text

LANGUAGES = ("en", "ko", "zh", "ja", "es")
PARTS = (*LANGUAGES, "code")
DEFAULT_MAX_BYTES = 6_000_000
MIN_DOCUMENT_CHARACTERS = 200
# A line of the language must hold this share of its script; an untranslated line is also found in English.
MIN_SCRIPT_SHARE = 0.2
SCRIPTS = {
    "ko": re.compile(r"[\uac00-\ud7a3]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]"),
}
KANA = re.compile(r"[\u3040-\u30fa]")
CODE_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Source:
    """One Debian package: its licence (SPDX) and, for each language, the glob of its text below the unpacked root."""

    package: str
    licence: str
    globs: dict[str, str]


@dataclass(frozen=True)
class SourceRecord:
    """What was used of one source, as written to `SOURCES.json`; `bytes` is UTF-8 text before deduplication and cap."""

    package: str
    version: str
    licence: str
    sha256: str
    bytes: dict[str, int]


def _docs(package: str, licence: str, pattern: str, names: dict[str, str]) -> Source:
    return Source(package, licence, {language: pattern.format(name) for language, name in names.items()})


def _one_per_language(package: str, licence: str, pattern: str, names: dict[str, str]) -> list[Source]:
    """Packages that exist once per language; `{0}` is the name in lower case, `{1}` as it is."""
    return [
        Source(package.format(name.lower()), licence, {language: pattern.format(name.lower(), name)})
        for language, name in names.items()
    ]


# Copies and changed versions are permitted under the same notice; the text has no SPDX identifier.
FAQ_LICENCE = "LicenseRef-Debian-FAQ"
SOURCES: tuple[Source, ...] = (
    *_one_per_language(
        "libreoffice-help-{0}",
        "MPL-2.0",
        "usr/share/libreoffice/help/{1}/text/**/*.html",
        {"en": "en-US", "ko": "ko", "zh": "zh-CN", "ja": "ja", "es": "es"},
    ),
    _docs(
        "gnome-user-docs",
        "CC-BY-SA-3.0",
        "usr/share/help/{}/**/*.page",
        {"en": "C", "ko": "ko", "zh": "zh_CN", "ja": "ja", "es": "es"},
    ),
    _docs(
        "installation-guide-amd64",
        "GPL-2.0-only",
        "usr/share/doc/installation-guide-amd64/{}/*.html",
        {"en": "en", "ko": "ko", "zh": "zh_CN", "ja": "ja", "es": "es"},
    ),
    _docs(
        "debian-handbook",
        "GPL-2.0-or-later OR CC-BY-SA-3.0",
        "usr/share/doc/debian-handbook/html/{}/*.html",
        {"en": "en-US", "ko": "ko-KR", "zh": "zh-CN", "ja": "ja-JP", "es": "es-ES"},
    ),
    *_one_per_language(
        "debian-reference-{0}",
        "GPL-2.0-or-later",
        "usr/share/debian-reference/*.{0}.html",
        {"en": "en", "zh": "zh-cn", "ja": "ja", "es": "es"},
    ),
    *_one_per_language(
        "aptitude-doc-{0}",
        "GPL-2.0-or-later",
        "usr/share/doc/aptitude/html/{0}/*.html",
        {"en": "en", "ja": "ja", "es": "es"},
    ),
    Source("maint-guide", "GPL-2.0-or-later", {"en": "usr/share/doc/maint-guide/html/*.html"}),
    *_one_per_language(
        "maint-guide-{0}",
        "GPL-2.0-or-later",
        "usr/share/doc/maint-guide-{0}/html/*.html",
        {"zh": "zh-cn", "ja": "ja", "es": "es"},
    ),
    _docs(
        "debmake-doc",
        "MIT",
        "usr/share/doc/debmake-doc/html/*.{}.html",
        {"en": "en", "zh": "zh-cn", "ja": "ja"},
    ),
    Source("debian-faq", FAQ_LICENCE, {"en": "usr/share/doc/debian/FAQ/**/*.html"}),
    *_one_per_language(
        "debian-faq-{0}",
        FAQ_LICENCE,
        "usr/share/doc/debian/FAQ/**/*.html",
        {"ko": "ko", "zh": "zh-cn", "ja": "ja"},
    ),
    *_one_per_language(
        "gimp-help-{0}",
        "GFDL-1.2-no-invariants-or-later",
        "usr/share/gimp/2.0/help/{0}/**/*.html",
        {"ko": "ko"},
    ),
)


# What starts a new line, what is never shown, and what is the frame of a page rather than its text.
BLOCKS = {
    *("p", "div", "pre", "screen", "br", "title", "h1", "h2", "h3", "h4", "h5", "h6"),
    *("ul", "ol", "dl", "li", "dt", "dd", "item", "table", "tr", "td", "th"),
}
SKIPPED_TAGS = {"script", "style", "head", "nav", "header", "footer", "aside", "noscript", "info", "media"}
# "MAC" marks the variant of a shortcut that is shown on macOS beside the default one.
SKIPPED_CLASSES = {"MAC", "navheader", "navfooter", "toc", "docnav", "edition", "legalnotice", "index"}


class _TextExtractor(HTMLParser):
    """The readable text of HTML or Mallard XML, one line a block; navigation, scripts and hidden variants left out."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._pieces: list[str] = []
        self._skipped_tag: str | None = None
        self._skipped_depth = 0
        self._pre = 0

    def flush(self) -> None:
        """End the current line."""
        text = "".join(self._pieces)
        self._pieces.clear()
        lines = text.splitlines() if self._pre else [" ".join(text.split())]
        self.lines += [line.rstrip() for line in lines if line.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped_tag is not None:
            self._skipped_depth += tag == self._skipped_tag
            return
        classes = (dict(attrs).get("class") or "").split()
        if tag in SKIPPED_TAGS or SKIPPED_CLASSES.intersection(classes):
            self._skipped_tag, self._skipped_depth = tag, 1
            return
        if tag in BLOCKS:
            self.flush()
        self._pre += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS and self._skipped_tag is None:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if self._skipped_tag is not None:
            self._skipped_depth -= tag == self._skipped_tag
            if self._skipped_depth == 0:
                self._skipped_tag = None
            return
        if tag in BLOCKS:
            self.flush()
        if tag == "pre":
            self._pre = max(0, self._pre - 1)

    def handle_data(self, data: str) -> None:
        if self._skipped_tag is None:
            self._pieces.append(data)


def extract_text(markup: str) -> str:
    """The readable text of an HTML or Mallard page, one block per line."""
    extractor = _TextExtractor()
    extractor.feed(markup)
    extractor.close()
    extractor.flush()
    return "\n".join(extractor.lines)


def in_language(line: str, language: str) -> bool:
    """Whether enough of `line` is written in the script of `language` (always true for en, es and code)."""
    if language not in SCRIPTS:
        return True
    if language == "zh" and KANA.search(line):
        return False
    characters = len(line) - line.count(" ")
    return len(SCRIPTS[language].findall(line)) >= MIN_SCRIPT_SHARE * max(characters, 1)


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def _require_apt() -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ValueError(
                f"corpus build: '{tool}' is not on PATH; run it on Debian or Ubuntu (a container will do) "
                "and copy the result."
            )


def _known_to_apt(package: str, cwd: Path) -> bool:
    return bool(_run(["apt-cache", "show", package], cwd).stdout.strip())


def _prepare_apt(package: str, cwd: Path) -> None:
    """Check that apt exists, and fetch its lists where they lack `package`, as in a fresh container."""
    _require_apt()
    if not _known_to_apt(package, cwd):
        _run(["apt-get", "update"], cwd)


def _download(package: str, folder: Path) -> Path:
    """Download one package into `folder`; the archive's path. ValueError when apt cannot."""
    result = _run(["apt-get", "download", package], folder)
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if result.returncode != 0 or len(archives) != 1:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"corpus build: apt-get download {package} failed ({reason}); check the network and repeat.")
    return archives[0]


def _read_documents(paths: Iterable[Path], convert: Callable[[str], str]) -> Iterator[str]:
    """The converted text of each file that is UTF-8, long enough, and not a link."""
    for path in paths:
        if path.is_symlink() or not path.is_file():
            continue
        try:
            text = convert(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if len(text) >= MIN_DOCUMENT_CHARACTERS:
            yield text


def _write_documents(path: Path, documents: Iterable[tuple[str, str]]) -> int:
    """Write (text, source) pairs as JSONL, atomically; the bytes of text."""
    total = 0
    with replacing(path) as file:
        for text, source in documents:
            total += len(text.encode())
            file.write((json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n").encode())
    return total


def _write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _extract_package(source: Source, parts: Path) -> None:
    """Download, unpack and extract one package into `parts`; its record is written last, so it marks completion."""
    with tempfile.TemporaryDirectory(dir=parts) as temporary:
        folder = Path(temporary)
        archive = _download(source.package, folder)
        root = folder / "root"
        unpacked = _run(["dpkg-deb", "-x", str(archive), str(root)], folder)
        if unpacked.returncode != 0:
            raise ValueError(f"corpus build: {archive.name} cannot be unpacked ({unpacked.stderr.strip()}); repeat.")
        version = _run(["dpkg-deb", "-f", str(archive), "Version"], folder).stdout.strip()
        sizes = {
            language: _write_documents(
                parts / f"{source.package}.{language}.jsonl",
                ((text, source.package) for text in _read_documents(sorted(root.glob(pattern)), extract_text)),
            )
            for language, pattern in source.globs.items()
        }
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    record = SourceRecord(source.package, version, source.licence, digest, sizes)
    _write_json(parts / f"{source.package}.json", asdict(record))


def _extract_standard_library(parts: Path) -> None:
    """The running interpreter's own modules as code documents; the sha256 is over the written part."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if not CODE_EXCLUDED.intersection(path.relative_to(root).parts))
    part = parts / "python-stdlib.code.jsonl"
    size = _write_documents(part, ((text, "python-stdlib") for text in _read_documents(paths, str)))
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    record = SourceRecord("python-stdlib", platform.python_version(), "PSF-2.0", digest, {"code": size})
    _write_json(parts / "python-stdlib.json", asdict(record))


def _deduplicated(language: str, paths: list[Path], seen: set[bytes]) -> Iterator[tuple[str, str]]:
    """(text, source) of each document, without lines already seen (whole documents for code, whose lines repeat)."""
    for path in paths:
        for row in path.open(encoding="utf-8"):
            document = json.loads(row)
            units = [document["text"]] if language == "code" else document["text"].split("\n")
            kept = []
            for unit in units:
                key = hashlib.blake2b(unit.encode(), digest_size=12).digest()
                if key not in seen and in_language(unit, language):
                    seen.add(key)
                    kept.append(unit)
            text = "\n".join(kept)
            if len(text) >= MIN_DOCUMENT_CHARACTERS:
                yield text, document["source"]


def _capped(documents: Iterable[tuple[str, str]], max_bytes: int) -> Iterator[tuple[str, str]]:
    """Documents in the order of their hash (a fixed shuffle, so every source keeps its share) up to `max_bytes`."""
    total = 0
    for text, source in sorted(documents, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        total += len(text.encode())
        if total > max_bytes:
            return
        yield text, source


def _assemble(out: Path, parts: Path, names: list[str], max_bytes: int) -> dict[str, int]:
    """Deduplicate, cap and write the final files; the bytes of text in each. English first: it removes the
    untranslated lines of the other languages."""
    sizes: dict[str, int] = {}
    seen: set[bytes] = set()
    for language in PARTS:
        paths = [path for name in names if (path := parts / f"{name}.{language}.jsonl").exists()]
        documents = _capped(_deduplicated(language, paths, seen), max_bytes)
        sizes[language] = _write_documents(out / f"{language}.jsonl", documents)
        if not sizes[language]:
            raise ValueError(
                f"corpus build: no text for '{language}': apt knows none of its packages; run apt-get update."
            )
    return sizes


def build(
    out: Path,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    sources: tuple[Source, ...] = SOURCES,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, int]:
    """Build the corpus in `out`, at most `max_bytes` of text per language; the bytes of text of each file.

    Extracted packages are kept in `OUT/.parts`, so an interrupted build goes on where it stopped. `progress` is called
    with (what, steps done, steps in all). Raises ValueError when apt is missing or a download fails.
    """
    if max_bytes < 1:
        raise ValueError(f"corpus build: max_bytes is {max_bytes}, it must be positive.")
    out = out.expanduser().resolve()  # apt and dpkg run in folders of their own
    parts = out / ".parts"
    parts.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda what, done, total: None)
    missing: list[str] = []
    pending = [source for source in sources if not (parts / f"{source.package}.json").exists()]
    if pending:
        _prepare_apt(pending[0].package, out)
    for source in pending:
        report(source.package, sources.index(source), len(sources) + 2)
        if _known_to_apt(source.package, out):
            _extract_package(source, parts)
        else:
            missing.append(source.package)
    report("python-stdlib", len(sources), len(sources) + 2)
    _extract_standard_library(parts)
    report("deduplicating", len(sources) + 1, len(sources) + 2)
    names = [source.package for source in sources if source.package not in missing] + ["python-stdlib"]
    sizes = _assemble(out, parts, names, max_bytes)
    records = [json.loads((parts / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    _write_json(out / "SOURCES.json", {"bytes": sizes, "sources": records, "missing": missing})
    report("done", len(sources) + 2, len(sources) + 2)
    return sizes


def write_problems(out: Path, *, count: int, seed: int = 0, replies: bool = False) -> int:
    """Write `count` problems of the training split, or only the `replies` to them, as `{"text", "source"}` rows; the
    bytes of text."""
    from axk1.tasks import generate

    drawn = islice(generate("train", seed), count)
    parts = ((*(() if replies else (p.question,)), p.reasoning, p.answer) for p in drawn)
    return _write_documents(out, (("\n".join(texts), "problems") for texts in parts))


def write_prompts(out: Path, *, count: int, seed: int = 0) -> None:
    """Write `count` different questions of the training split as `{"id", "prompt", "domain"}` rows."""
    from axk1.tasks import different, generate

    drawn = enumerate(islice(different(generate("train", seed)), count))
    rows = ({"id": str(number), "prompt": problem.question, "domain": problem.task} for number, problem in drawn)
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
