"""What is neither a chat nor a completion: models, tokens, health and metrics."""

from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

import axk1
from axk1.serve.errors import Refusal
from axk1.serve.routes.common import Body, Int, budgets
from axk1.serve.service import Service
from axk1.serve.thinking import choose


class TokenizeBody(Body):
    """A text, or a conversation as the template renders it."""

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Token ids."""

    tokens: list[Annotated[Int, Field(ge=0)]]


def add_routes(routes: FastAPI, service: Service) -> None:
    """Adds these routes."""

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> JSONResponse:
        """Whether it answers: not before the model is there, and not any more once it was asked to end."""
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Of the package."""
        return {"version": axk1.__version__}

    @routes.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model, under all its names."""
        return {"object": "list", "data": [_model(service, name) for name in service.settings.names]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model under one of its names."""
        return _model(service, service.model(name))

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody, http: Request) -> dict[str, Any]:
        """The tokens of a text, or of the prompt for a conversation."""
        service.model(body.model)
        ids = await _tokens(service, body, http)
        strings = {"token_strs": [service.texts.name(id) for id in ids]} if body.return_token_strs else {}
        return {"count": len(ids), "max_model_len": service.engine.max_tokens, "tokens": ids, **strings}

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of tokens, control tokens included."""
        service.model(body.model)
        if any(id >= service.vocabulary for id in body.tokens):
            raise Refusal(f"A token id is outside of the vocabulary of {service.vocabulary}.", param="tokens")
        return {"prompt": service.tokenizer.decode(body.tokens, skip_special_tokens=False)}


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "axk1",
        "root": service.settings.names[0],
        "parent": None,
        "max_model_len": service.engine.max_tokens,
        "exact": service.engine.exact,
        "think": service.settings.think,
    }


async def _tokens(service: Service, body: TokenizeBody, http: Request) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise Refusal("Give a prompt or messages.", param="prompt")
    if body.prompt is not None:
        return service.encode(body.prompt, body.add_special_tokens is not False)
    thinking = choose(service.settings.think, template=body.chat_template_kwargs, budgets=budgets(body))
    return await service.prompt(http, body.messages, thinking.think, body.tools)
