"""A hub of one dataset on this machine, as far as the library ``datasets`` asks it: for tests of what is streamed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


@contextmanager
def data_hub(name: str, folder: Path) -> Iterator[tuple[str, list[tuple[str, str, int]]]]:
    """Serves the files of ``folder`` as the dataset ``name``; its address for ``HF_ENDPOINT``, and what was asked for:
    method, path, and bytes of files that were sent."""
    asked: list[tuple[str, str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_POST(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            asked.append(("POST", self.path, 0))
            if not urlsplit(self.path).path.startswith(f"/api/datasets/{name}/paths-info/"):
                return self._missing("RepoNotFound")
            wanted = json.loads(given)["paths"] if given.startswith("{") else unquote(given)
            self._json([entry for entry in entries() if entry["path"] in wanted])

        def _answer(self, with_body: bool) -> None:
            path, sent = unquote(urlsplit(self.path).path), 0
            if path in (f"/api/datasets/{name}", f"/api/datasets/{name}/revision/{COMMIT}"):
                files = [{"rfilename": entry["path"]} for entry in entries() if entry["type"] == "file"]
                self._json({"id": name, "sha": COMMIT, "private": False, "siblings": files, "tags": []})
            elif path.startswith(f"/api/datasets/{name}/tree/{COMMIT}"):
                under = path.partition(COMMIT)[2].strip("/")
                self._json([entry for entry in entries() if entry["path"].startswith(under)])
            elif path.startswith(f"/datasets/{name}/resolve/{COMMIT}/"):
                sent = self._file(folder / path.partition(COMMIT + "/")[2], with_body)
            else:
                self._missing("RepoNotFound")
            asked.append((self.command, self.path, sent))

        def _file(self, file: Path, with_body: bool) -> int:
            if not file.is_file():
                self._missing("EntryNotFound")
                return 0
            body = whole = file.read_bytes()
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if wanted:
                first, _, last = wanted.partition("-")
                body = whole[int(first) : int(last) + 1 if last else None]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha1(whole).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if wanted:
                end = int(first) + len(body) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(whole)}")
            self.end_headers()
            if with_body:
                self.wfile.write(body)
            return len(body) if with_body else 0

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _missing(self, code: str) -> None:
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def entries() -> list[dict[str, Any]]:
        found = []
        for path in sorted(folder.rglob("*")):
            kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
            found.append(
                {**kind, "path": str(path.relative_to(folder)), "oid": hashlib.sha1(path.name.encode()).hexdigest()}
            )
        return found

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
