"""SECURITY.md names files that exist, and promises what the code keeps."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_files_that_it_names_exist():
    named = re.findall(r"`([\w/]+\.(?:py|txt|md))`", TEXT)
    assert named
    for name in named:
        assert (ROOT / name).is_file() or (ROOT / "src" / name).is_file(), name


def test_no_hashes_are_claimed_that_are_not_there():
    assert "`hashes.txt`" in TEXT and "--hash=sha256:" in (ROOT / "hashes.txt").read_text(encoding="utf-8")
