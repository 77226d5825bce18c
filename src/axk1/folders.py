"""Where files of the user's own are kept."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder ``axk1/NAME`` of the user's cache: ``XDG_CACHE_HOME`` unless that is empty, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "axk1" / name
