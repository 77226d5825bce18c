"""The application: routes, guard, errors, and the engine that lives as long as it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from sse_starlette.sse import AppStatus
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from transformers import PreTrainedTokenizerFast

import axk1
from axk1.engine.interface import Engine
from axk1.serve import errors
from axk1.serve.guard import Guard
from axk1.serve.routes import chat, completions, messages, responses, system
from axk1.serve.service import Service
from axk1.serve.settings import Settings

PAGE = Path(__file__).parent / "page"
"""The page's files; the server does without where there are none."""
POLICY = (
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
"""Nothing from elsewhere, nothing inline, and only DOMPurify may turn text into HTML."""


def make_app(
    engine: Engine, tokenizer: PreTrainedTokenizerFast, stop_ids: Collection[int], settings: Settings
) -> FastAPI:
    """The application over ``engine``, which it starts with itself and drains at its end."""
    AppStatus.disable_automatic_graceful_drain()  # a stream that runs when the server is asked to end may finish
    service = Service(engine, tokenizer, stop_ids, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        watch = asyncio.create_task(service.metrics.watch_loop())
        service.ready = True
        yield
        service.ready = False
        watch.cancel()
        await asyncio.to_thread(engine.close, True, settings.drain)

    app = FastAPI(
        title="axk1",
        version=axk1.__version__,
        docs_url=None,  # they load their scripts from other addresses
        redoc_url=None,
        lifespan=lifespan,
        responses=errors.DOCUMENTED,
        redirect_slashes=False,
    )
    app.state.service = service
    for room in (chat, completions, responses, messages, system):
        room.add_routes(app, service)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body)
    app.add_middleware(Guard, settings=settings, pages=_mount_page(app))
    errors.install(app)
    return app


class _Page(StaticFiles):
    """Files of the page, which may load nothing from elsewhere."""

    def file_response(self, *args, **kwargs) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-cache"  # files of two versions do not fit together
        return response


def _mount_page(app: FastAPI) -> tuple[str, ...]:
    """Lets ``/`` lead to the page; the paths that a browser asks for."""
    if not (PAGE / "index.html").is_file():
        return ()
    app.mount("/page", _Page(directory=PAGE, html=True), name="page")
    app.add_api_route("/", lambda: RedirectResponse("/page/"), include_in_schema=False)
    files = (path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file())
    return ("/", "/page/", *(f"/page/{name}" for name in files))
