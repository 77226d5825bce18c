"""The kernels' cache: what others may have written is not loaded, what is cut off is built again, compilers end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from axk1.kernels import build
from axk1.kernels.build import BuildError
from axk1.kernels.instructions import SETS

WRITES = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"'
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kernels are built on Linux and macOS")


def library() -> Path:
    return build._compiled(SETS[0])


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the script that stands in for the compiler; its path, and with it the cache's folder, stays."""
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def write(script: str) -> None:
        (tmp_path / "cxx").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "cxx").chmod(0o755)

    write(WRITES)
    return write


def test_a_library_is_built_once_and_again_when_it_is_cut_off(compiler) -> None:
    path = library()
    compiler("exit 1")
    assert library() == path and path.read_text() == "library\n"
    path.write_text("lib")
    with pytest.raises(BuildError, match="did not compile"):
        library()
    compiler(WRITES)
    assert library().read_text() == "library\n"


@pytest.mark.parametrize("planted", ["folder", "library", "sum"])
def test_what_others_may_have_written_is_not_loaded(compiler, planted: str) -> None:
    path = library()
    {"folder": path.parent, "library": path, "sum": path.with_suffix(".sha256")}[planted].chmod(0o777)
    with pytest.raises(BuildError, match="belongs to another user or is writable by others"):
        library()


def test_another_users_library_is_not_loaded(compiler, monkeypatch) -> None:
    path = library()
    if path.stat().st_uid == 0:
        os.chown(path, 1, 1)
    else:
        monkeypatch.setattr(build.os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(BuildError, match="belongs to another user"):
        library()


def test_a_compiler_that_hangs_or_writes_no_text_is_said(compiler, monkeypatch) -> None:
    compiler("printf '\\377 nonsense' >&2; exit 1")
    with pytest.raises(BuildError, match="\ufffd nonsense"):
        library()
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.2)
    compiler("exec sleep 30")
    with pytest.raises(BuildError, match=r"did not compile the kernels: .*timed out after 0\.2 seconds"):
        library()


def test_a_cache_that_cannot_be_made_is_one_sentence(compiler, tmp_path) -> None:
    (tmp_path / "axk1").touch()
    with pytest.raises(BuildError) as caught:
        library()
    assert "Errno" not in str(caught.value) and str(caught.value).endswith(". XDG_CACHE_HOME names another.")
