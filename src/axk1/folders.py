"""Where files of the user's own are kept."""

import os
import tempfile
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder ``axk1/NAME`` of the user's cache: ``XDG_CACHE_HOME`` unless that is empty, else ``~/.cache``; for a
    user without a home folder, one of the user's own among the temporary files."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # as in a container whose user has a number and no name
        user = os.getuid() if hasattr(os, "getuid") else "user"
        cache = Path(tempfile.gettempdir()) / f"axk1-{user}"
    return Path(cache).resolve() / "axk1" / name
