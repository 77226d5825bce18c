"""Refusals, and the shape in which each dialect's clients expect them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from axk1.engine.interface import EngineClosed, EngineFull

log = logging.getLogger("axk1.serve")
ANTHROPIC = "/v1/messages"
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    503: "overloaded_error",
}
_BODY = {"application/json": {"schema": {"type": "object", "required": ["error"]}}}
_MEANINGS = {
    400: "What is wrong with the request, in one sentence.",
    401: "The key is missing or wrong.",
    403: "The Host or Origin header is not allowed.",
    404: "There is no such address, model or running reply.",
    405: "The address does not take this method.",
    413: "The body is too large.",
    503: "The server is full or ending; Retry-After tells when to come again.",
}
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"description": meaning, "content": _BODY} for status, meaning in _MEANINGS.items()
}
"""The errors of all routes, for the description of the API."""


class Refusal(Exception):
    """What the server does not do, and why.

    Args:
        message: one sentence.
        status: of HTTP.
        param: the field it is about.
        code: a name that programs can compare.
        retry_after: seconds after which trying again is worth it.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.retry_after = retry_after


def check_count(count: int, most: int, what: str, param: str | None = None) -> None:
    """Refuses more than ``most`` of something.

    Raises:
        Refusal: there are more.
    """
    if count > most:
        raise Refusal(f"There are {count} {what}; {most} are taken.", param=param)


@contextmanager
def refusing(param: str | None = None) -> Iterator[None]:
    """Turns the ``ValueError`` of what a request asks for into a 400, and a full engine into a 503."""
    try:
        yield
    except ValueError as error:
        raise Refusal(" ".join(str(error).split()), param=param) from error
    except EngineFull as error:
        raise Refusal(str(error), 503, code="engine_full", retry_after=error.retry_after) from error
    except EngineClosed as error:
        raise Refusal("The server is shutting down.", 503, code="shutting_down", retry_after=10) from error


def shape(path: str, refusal: Refusal) -> dict[str, Any]:
    """The body of an error, as clients of the route at ``path`` read it."""
    kind = _KINDS.get(refusal.status, "api_error")
    if path.startswith(ANTHROPIC):
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def respond(path: str, refusal: Refusal) -> JSONResponse:
    """The response for a refusal."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(max(1, round(refusal.retry_after)))}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(shape(path, refusal), refusal.status, headers)


def install(app: FastAPI) -> None:
    """Lets ``app`` answer every error in the shape of the route's dialect."""

    async def refused(request: Request, error: Any) -> JSONResponse:
        return respond(request.url.path, error)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return respond(request.url.path, _from_validation(error, request.headers.get("content-type", "")))

    async def http(request: Request, error: Any) -> JSONResponse:
        response = respond(request.url.path, Refusal(_sentence(error), error.status_code))
        response.headers.update(error.headers or {})
        return response

    async def broken(request: Request, error: Exception) -> JSONResponse:
        log.exception("A request to %s failed", request.url.path, exc_info=error)
        return respond(request.url.path, Refusal("The server made a mistake; its log tells more.", 500))

    async def left(request: Request, error: Any) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def deep(request: Request, error: Any) -> JSONResponse:
        return respond(request.url.path, Refusal("The body has too many objects and lists in each other."))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RecursionError, deep)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _from_validation(error: RequestValidationError, content_type: str) -> Refusal:
    """The first of the faults of a body, as one sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if not where and "json" not in content_type:
        what = f"as {content_type}" if content_type else "without a type"
        return Refusal(f'The body came {what}: send JSON with the header "Content-Type: application/json".')
    message = first["msg"].removesuffix(".")
    return Refusal(f"{where}: {message}." if where else f"The body: {message}.", param=where or None)


def _sentence(error: HTTPException) -> str:
    known = {
        404: "There is nothing at this address.",
        405: "This address does not take this method.",
        413: "The body is larger than this server takes.",
    }
    return known.get(error.status_code, str(error.detail))
