"""Checkpoints of the Hugging Face hub: ``owner/name`` or ``owner/name@revision`` to a folder of the hub's cache."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.filesize import decimal

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.md", "*.model", "LICENSE*", "NOTICE*"]
"""What is downloaded: weights, configuration, tokenizer and texts; no code and no pickle."""
_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?", re.ASCII)


class HubId(NamedTuple):
    """A repository of the hub, and the branch, tag or commit of it."""

    name: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """``owner/name`` or ``owner/name@revision``; None for what can only be a path."""
        match = _ID.fullmatch(text)
        if match is None or text.startswith((".", "/", "~")):
            return None
        return cls(match["name"], match["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def hub_folder(wanted: HubId, download: bool = True, say: Callable[[str], object] | None = None) -> Path:
    """The folder of ``wanted`` in the hub's cache, downloaded where it is not complete there; a cut-off one resumes.

    Args:
        download: ``False`` looks into the cache only.
        say: is told what is downloaded, and where to, before it starts; standard error when left out.

    Raises:
        ValueError: no such repository, no network, or no room on the disk; the message says how to download.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from tqdm import tqdm

    if not download or constants.is_offline_mode():
        return _cached(wanted, "is not in the hub's cache on this machine")
    try:
        _check_room(wanted, _snapshot(wanted, dry_run=True), Path(constants.HF_HUB_CACHE), say or _to_stderr)
        return Path(_snapshot(wanted, tqdm_class=tqdm))  # the hub's own bars are off where ours are to be seen
    except (DryRunError, LocalEntryNotFoundError):
        return _cached(wanted, "is not in the hub's cache on this machine, and the hub cannot be reached")
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(how_to_download(wanted, f"cannot be had from the hub ({reason})")) from error


def hub_config(wanted: HubId) -> Path:
    """``config.json`` of ``wanted``, from the hub's cache or downloaded into it: kilobytes, and no weights.

    Raises:
        ValueError: no such repository, or neither a copy here nor a network.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(wanted.name, "config.json", revision=wanted.revision))
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{wanted} is no folder here, its config.json is not in the hub's cache, and the hub cannot be reached; "
            "give the path of a config.json."
        ) from None
    except (HfHubHTTPError, HFValidationError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The config.json of {wanted} cannot be had from the hub ({reason}).") from error


def _snapshot(wanted: HubId, **how: Any) -> Any:
    """The folder in the cache; with ``dry_run`` the files that it takes."""
    from huggingface_hub import snapshot_download

    return snapshot_download(wanted.name, revision=wanted.revision, allow_patterns=PATTERNS, **how)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _cached(wanted: HubId, otherwise: str) -> Path:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(wanted, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise ValueError(how_to_download(wanted, otherwise)) from None


def _check_room(wanted: HubId, files: list, cache: Path, say: Callable[[str], object]) -> None:
    """Refuses a download that the disk has no room for; says what is coming where there is something to come."""
    needed = sum(file.file_size for file in files if file.will_download)
    if not needed:
        return
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{wanted} needs {decimal(needed)} more in {cache}, where {decimal(free)} are free: make room, "
            "or set HF_HOME to a larger disk."
        )
    say(f"Downloading {wanted}: {decimal(needed)} to {cache}. If it is cut off, the same command goes on.")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def how_to_download(wanted: HubId, what: str) -> str:
    """A sentence: ``what`` there is about ``wanted``, and how to get it."""
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    return (
        f"{wanted} is no folder here and {what}. Where there is a network, run `hf download {wanted.name}{revision}`, "
        "then copy the cache (HF_HOME) or give the path of the folder."
    )
