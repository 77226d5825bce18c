"""Who may ask: the Host and Origin headers, and the key; decided by the routed path, before anything is read.

A page elsewhere cannot reach a server on the reader's own machine: not by asking (Origin), and not by giving its own
name the address of this machine (Host). There are no CORS headers.
"""

import hashlib
import hmac
from ipaddress import ip_address

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from axk1.serve.errors import Refusal, respond
from axk1.serve.settings import Settings

OPEN = {"/health", "/ready"}
"""Paths that need no key: they tell whether there is a server."""


class Guard:
    """Lets pass what the settings allow.

    Args:
        app: what is guarded.
        settings: hosts, origins and keys.
        pages: paths of the page, which a browser asks for without a key; they hold nothing secret.
    """

    def __init__(self, app: ASGIApp, settings: Settings, pages: tuple[str, ...] = ()) -> None:
        self.app, self._pages = app, pages
        self._most = settings.max_body
        self._hosts = {host.lower() for host in settings.hosts}
        self._origins = {origin.lower().rstrip("/") for origin in settings.origins}
        self._keys = [_digest(key.get_secret_value()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._host(headers) or self._origin(headers) or self._key(scope, headers) or self._size(headers)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await respond(scope["path"], refusal)(scope, receive, send)

    def _size(self, headers: Headers) -> Refusal | None:
        """Refuses a body that says itself that it is too large; others are cut off while they are read."""
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:18]) > self._most:
            return Refusal(f"The body has {length[:18]} bytes; {self._most} are taken.", 413)
        return None

    def _host(self, headers: Headers) -> Refusal | None:
        named = headers.getlist("host")
        host = _without_port(named[0].lower()) if len(named) == 1 else ""
        if "*" in self._hosts or host in self._hosts or _is_address(host):
            return None
        return Refusal("The Host header names no host of this server (axk1 serve --allow-host).", 403)

    def _origin(self, headers: Headers) -> Refusal | None:
        origin = headers.get("origin")
        if origin is None or origin.lower() in self._origins:
            return None
        if origin.lower() in {f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")}:
            return None
        return Refusal("This page may not ask this server (axk1 serve --allow-origin).", 403)

    def _key(self, scope: Scope, headers: Headers) -> Refusal | None:
        """Checks the key in constant time, and notes whose it is."""
        scope.setdefault("state", {})["tenant"] = ""
        if not self._keys or scope["path"] in OPEN or scope["path"] in self._pages:
            return None
        sent = _digest(_sent(headers))
        matches = [hmac.compare_digest(sent, key) for key in self._keys]
        if not any(matches):
            return Refusal("The API key is missing or wrong.", 401, code="invalid_api_key")
        scope["state"]["tenant"] = str(matches.index(True) + 1)
        return None


def tenant_of(request: Request) -> str:
    """Whose request it is: nobody sees another's prefixes or running replies."""
    return request.state.tenant


def _sent(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_address(host: str) -> bool:
    """Whether ``host`` is an address: a browser that shows one was sent there by it, not by another's name."""
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    """``host`` as IPv6 addresses and names are written, without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
