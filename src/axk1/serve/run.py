"""Runs the server in this process until it is asked to end: then it drains."""

import logging
import socket
from collections.abc import Callable, Collection

import uvicorn
from transformers import PreTrainedTokenizerFast

from axk1.engine.interface import Engine
from axk1.serve.app import make_app
from axk1.serve.settings import Settings

_LONGEST_HEADERS = 64 * 1024


def run(
    engine: Engine,
    tokenizer: PreTrainedTokenizerFast,
    stop_ids: Collection[int],
    settings: Settings,
    host: str,
    port: int,
    ready: Callable[[str], object],
) -> None:
    """Listens on ``host`` and ``port`` (0: a free one) until SIGTERM or SIGINT; running replies may finish.

    Args:
        ready: called with the address, once the server answers there.

    Raises:
        OSError: the address cannot be had.
    """
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("axk1.serve").setLevel(logging.INFO)
    app = make_app(engine, tokenizer, stop_ids, settings)
    server = Server(app, settings, ready)
    server.run(sockets=[listen(host, port)])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        OSError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # no such name, or one that no name can be
        raise OSError(
            f"--host is {host!r}, which is no address of this machine: {getattr(error, 'strerror', None) or error}"
        ) from error
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{error.strerror}: {host} port {port}") from error
    return bound


class Server(uvicorn.Server):
    """Uvicorn, which tells its address once it answers.

    Args:
        app: the application.
        settings: how long a drain may take.
        ready: called with the address.
    """

    def __init__(self, app: object, settings: Settings, ready: Callable[[str], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # pyright: ignore[reportArgumentType]
                log_level="warning",
                access_log=False,
                http="h11",
                ws="none",
                h11_max_incomplete_event_size=_LONGEST_HEADERS,
                server_header=False,
                timeout_graceful_shutdown=max(round(settings.drain), 1),
            )
        )
        self._ready = ready
        self.address = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self._ready(self.address)
