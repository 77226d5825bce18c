"""Byte ranges of files at HTTP addresses: goes on where a connection broke, and is never silently wrong.

huggingface_hub says which files a repository has, where they are, and their sums. Its ``HfFileSystem`` is not used to
read: a body that ends early or belongs to another version is handed on there as it comes (huggingface_hub 2.4).
"""

from __future__ import annotations

import re
import time
import urllib.request as http
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from axk1.checkpoint.errors import CheckpointError

TRIES = 8
"""Requests in a row that may bring nothing."""
FIRST_WAIT = 0.5
"""Seconds before the second request; each further wait is twice as long, up to ``LONGEST_WAIT``."""
LONGEST_WAIT = 60.0
TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_TAGS = ("X-Linked-Etag", "ETag", "Last-Modified")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SHA256 = re.compile(r'(?:W/)?"?(?P<sum>[0-9a-f]{64})"?')


class _Redirect(http.HTTPRedirectHandler):
    """Follows redirects; another host gets no token."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            request.remove_header("Authorization")
        return request


def _opener() -> http.OpenerDirector:
    """Of HTTP and HTTPS only: no address leads to a file of this machine."""
    opener = http.OpenerDirector()
    handlers = (http.ProxyHandler, http.HTTPHandler, http.HTTPSHandler, http.HTTPDefaultErrorHandler, _Redirect)
    for handler in (*handlers, http.HTTPErrorProcessor, http.UnknownHandler):
        opener.add_handler(handler())
    return opener


class RemoteFile:
    """A file at an address. Reads that follow each other share one request.

    Args:
        url: of the file.
        headers: sent with each request, a token perhaps.
        size, sha256: where something else than the server's answer says them.
        pinned: the address names a content that cannot change, so entity tags are not compared.

    Attributes:
        tag: the entity tag, or the time of the last change; None where the server sends neither.
    """

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        size: int | None = None,
        sha256: str | None = None,
        pinned: bool = False,
    ) -> None:
        self.url, self.headers, self.pinned = url, headers or {}, pinned
        self.tag: str | None = None
        self._size, self._sha256 = size, sha256
        self._response: HTTPResponse | None = None
        self._at = -1
        self._open_url = _opener().open

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        if self._size is None:
            self.read_into(0, memoryview(bytearray(1)))
        assert self._size is not None
        return self._size

    @property
    def sha256(self) -> str | None:
        """The sum that the file must have, where somebody says it: the hub does, as the entity tag of large files."""
        if self._sha256 is None and self.tag and (match := _SHA256.fullmatch(self.tag)):
            return match["sum"]
        return self._sha256

    @property
    def identity(self) -> list[object]:
        """What must be unchanged for parts that were read earlier to be worth keeping."""
        return [self.size, self.sha256 or self.tag]

    def exists(self) -> bool:
        """Whether the server has the file."""
        try:
            self._connect(0)
        except HTTPError as error:
            if error.code in (404, 410):
                return False
            self._check_reason(error)
        except (URLError, HTTPException, OSError):
            pass  # whoever reads it tries again, and says why
        return True

    def read_into(self, start: int, view: memoryview) -> None:
        """Fills ``view`` with the bytes from ``start`` on.

        Raises:
            CheckpointError: they cannot be had, or the file changed; says what to do.
        """
        done, failed = 0, 0
        while done < len(view):
            try:
                if self._response is None or self._at != start + done:
                    self._connect(start + done)
                assert self._response is not None
                got = self._response.readinto(view[done:])
                if not got:
                    raise ConnectionResetError("the connection was closed early")
                done, failed, self._at = done + got, 0, self._at + got
            except (HTTPException, OSError) as error:  # HTTPError and URLError are OSErrors
                self.close()
                self._check_reason(error)
                failed += 1
                if failed >= TRIES:
                    raise self._error(f"cannot be read ({_reason(error)}), {TRIES} times: try again later") from error
                time.sleep(_wait(error, failed))

    def close(self) -> None:
        """Ends the request that is open, if any."""
        if self._response is not None:
            self._response.close()
        self._response, self._at = None, -1

    def _connect(self, start: int) -> None:
        self.close()
        headers = {**self.headers, "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
        response = self._open_url(http.Request(self.url, headers=headers), timeout=TIMEOUT)
        self._response, self._at = response, start
        self._check_answer(start, response)

    def _check_answer(self, start: int, response: HTTPResponse) -> None:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and match and int(match[1]) == start:
            size = int(match[3])
        elif response.status == 200 and start == 0 and response.headers.get("Content-Length", "").isdigit():
            size = int(response.headers["Content-Length"])
        else:
            raise self._error("is not served in ranges, which reading in parts needs: download it first")
        tag = next((found for name in _TAGS if (found := response.headers.get(name))), None)
        if self._size not in (None, size) or (self.tag not in (None, tag) and not self.pinned):
            raise self._error(
                f"changed on the server while it was read (it had {self._size:,} bytes and tag {self.tag}, now "
                f"{size:,} and {tag}): begin again, in a new folder"
            )
        self._size, self.tag = size, tag

    def _check_reason(self, error: Exception) -> None:
        """Raises where another request would do no better."""
        if not isinstance(error, HTTPError) or error.code in _TRANSIENT:
            return
        advice = {
            401: "log in with `hf auth login`",
            403: "ask for access, or log in with `hf auth login`",
            404: "check the name",
            416: "it is shorter than its header says; begin again, in a new folder",
        }
        raise self._error(f"is refused with HTTP {error.code}: {advice.get(error.code, 'check the address')}")

    def _error(self, text: str) -> CheckpointError:
        self.close()
        return CheckpointError(f"{text}.", self.url)


def _wait(error: Exception, failed: int) -> float:
    """Seconds: what the server asks for, else longer and longer."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) else ""
    return min(float(asked), 300.0) if asked.isdigit() else min(FIRST_WAIT * 2 ** (failed - 1), LONGEST_WAIT)


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = error.reason if isinstance(error, URLError) else error
    return str(reason) or type(reason).__name__
