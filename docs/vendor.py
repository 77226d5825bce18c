"""The libraries of the page, which other people wrote: fetched from npm by hash, unmodified, with their licences.

They lie in ``src/axk1/serve/page/vendor`` and are committed, so that a checkout and a wheel need no npm.
``manifest.json`` there names each package with its version, the hash of its archive on npm, and the hash of every file
that was taken from it. ``make vendor`` fetches the archives, compares all hashes and writes the files; for another
version change the number in the manifest, run ``python docs/vendor.py --update``, and read what has changed.
"""

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from axk1.files import replacing, write_text

FOLDER = Path(__file__).parents[1] / "src/axk1/serve/page/vendor"
MANIFEST = FOLDER / "manifest.json"
_TIMEOUT = 120


def read_manifest() -> dict[str, Any]:
    """Packages by name: ``version``, ``licence``, ``integrity``, ``files`` (path in the package, sha256) by name."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def sha256(content: bytes) -> str:
    """The hash of a file's content, as the manifest has it."""
    return hashlib.sha256(content).hexdigest()


def refresh(update: bool = False) -> None:
    """Fetches every package and writes its files; with ``update`` the hashes are taken from what was fetched.

    Raises:
        ValueError: a hash is not that of the manifest, and nothing of that package was written.
    """
    packages = read_manifest()
    for name, package in packages.items():
        archive = _fetch(f"{name}@{package['version']}")
        _compare(package, "integrity", _integrity(archive), update, name)
        contents = _extract(archive, [file["from"] for file in package["files"].values()])
        for target, file in package["files"].items():
            _compare(file, "sha256", sha256(contents[file["from"]]), update, f"{name}: {target}")
        for target, file in package["files"].items():
            with replacing(FOLDER / target) as written:
                written.write(contents[file["from"]])
    if update:
        write_text(MANIFEST, json.dumps(packages, indent=2) + "\n")


def _fetch(what: str) -> bytes:
    """A package's archive, by the ordinary client: it knows the registry that this machine uses."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", what], cwd=folder, check=True, timeout=_TIMEOUT, capture_output=True)
        (archive,) = Path(folder).glob("*.tgz")
        return archive.read_bytes()


def _integrity(archive: bytes) -> str:
    """As npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()


def _extract(archive: bytes, names: list[str]) -> dict[str, bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as members:
            opened = {name: members.extractfile(f"package/{name}") for name in names}
            return {name: member.read() for name, member in opened.items() if member is not None}


def _compare(entry: dict[str, Any], key: str, found: str, update: bool, what: str) -> None:
    if update:
        entry[key] = found
    elif entry[key] != found:
        raise ValueError(f"{what}: the {key} is {found}, not {entry[key]} as in {MANIFEST.name}; nothing was written.")


if __name__ == "__main__":
    refresh(update="--update" in sys.argv[1:])
