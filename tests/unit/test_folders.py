"""Where kernels and benchmark weights are kept."""

from pathlib import Path

import pytest

from axk1.folders import user_cache


@pytest.mark.parametrize("named", [None, "", "elsewhere"])
def test_the_users_cache(named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable names no folder: it means the same as none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / named) if named else "")
    assert user_cache("kernels") == tmp_path / (named or ".cache") / "axk1" / "kernels"


def test_a_user_without_a_home_has_a_cache_among_the_temporary_files(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert tmp_path in user_cache("kernels").parents
