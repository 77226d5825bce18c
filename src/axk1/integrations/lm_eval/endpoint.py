"""Any OpenAI-compatible server as what answers, through lm-eval's client of chat completions."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import aiohttp
import requests
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion

from axk1.chat.reply import Reply

if TYPE_CHECKING:
    from axk1.chat.messages import Message

SECONDS = 7_200
"""Of waiting for one reply: reasoning may be long, and a server's queue, too."""
TRIES = 3


class Said(str):
    """The answer as lm-eval's client hands it on, with the reply that it is of."""

    reply: Reply


class Endpoint(LocalChatCompletion):
    """A server at an address: vLLM, SGLang, ``axk1 serve`` or another one.

    The mode is the template's ``enable_thinking``. ``OPENAI_API_KEY`` is sent where it is set.

    Args:
        url: the server's address, with ``/v1`` or without.
        model: its name there; None where the server has only one.
        concurrency: requests at once.

    Raises:
        ValueError: the server does not answer, or has several models, or not this one.
    """

    def __init__(self, url: str, model: str | None = None, concurrency: int = 8) -> None:
        root = url.rstrip("/").removesuffix("/chat/completions")
        self.root = root if root.endswith("/v1") else f"{root}/v1"
        super().__init__(
            base_url=f"{self.root}/chat/completions",
            model="",
            num_concurrent=concurrency,
            max_retries=TRIES,
            timeout=SECONDS,
        )
        self.model = self._choose(model)

    def reply_batch(
        self, conversations: Sequence[Sequence[Message]], *, think: bool | Sequence[bool] = False, **options: Any
    ) -> list[Reply]:
        """A reply to each conversation, ``concurrency`` of them at once.

        Options are ``sampling``, ``seeds`` and ``max_new_tokens`` of :meth:`axk1.chat.Chat.reply_batch`; drafts are the
        server's own choice.

        Raises:
            ValueError: the server gives no reply.
        """
        modes = [think] * len(conversations) if isinstance(think, bool) else think
        seeds = options.get("seeds") or [None] * len(conversations)
        bodies = [
            request_body(conversation, mode, seed, **options)
            for conversation, mode, seed in zip(conversations, modes, seeds, strict=True)
        ]
        asked = [
            Instance("generate_until", {}, (JsonChatStr(json.dumps(body)), {}), number)
            for number, body in enumerate(bodies)
        ]
        try:
            return [said.reply for said in self.generate_until(asked)] if asked else []
        except (OSError, aiohttp.ClientError) as error:
            raise ValueError(f"{self.base_url} gave no reply ({error}); see what the server says of it.") from error

    def _create_payload(self, messages: Any, *given: Any, **named: Any) -> dict[str, Any]:
        """The request's body; what lm-eval would send besides, we decide."""
        return {"model": self.model, **messages}

    def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
        """The answers of one response."""
        found = []
        for choice in outputs["choices"]:
            reply = reply_of(choice, outputs.get("usage") or {})
            said = Said(reply.answer)
            said.reply = reply
            found.append(said)
        return found

    def _choose(self, wanted: str | None) -> str:
        try:
            response = requests.get(f"{self.root}/models", headers=self.header, timeout=60)
            response.raise_for_status()
            names = [entry["id"] for entry in response.json()["data"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.root}/models names no models ({error}); is a server running there?") from None
        if wanted in names or (wanted is None and len(names) == 1):
            return wanted or names[0]
        said = "--served-model is missing" if wanted is None else f'--served-model is "{wanted}"'
        raise ValueError(f"{said}; {self.root} has {', '.join(names)}.")


def request_body(
    messages: Sequence[Message],
    think: bool,
    seed: int | None,
    *,
    sampling: Any,
    max_new_tokens: int | None = None,
    **others: Any,
) -> dict[str, Any]:
    """What chat completions are asked with; without a limit the reply may have what the context holds."""
    body: dict[str, Any] = {
        "messages": list(messages),
        "temperature": sampling.temperature,
        "chat_template_kwargs": {"enable_thinking": think},
    }
    if not sampling.greedy:
        body["top_p"] = sampling.top_p
    if seed is not None:
        body["seed"] = seed % 2**31  # engines take 32 bits
    if max_new_tokens is not None:
        body["max_tokens"] = max_new_tokens
    return body


def reply_of(choice: dict[str, Any], usage: dict[str, Any]) -> Reply:
    """A choice of chat completions as a reply.

    Servers without a parser of reasoning leave it in the answer, before ``</think>``. Where ``usage`` does not count
    reasoning apart, all tokens are the answer's; it counts the tags and the token that ends the turn, too.
    """
    message = choice["message"]
    answer, reasoning = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning") or ""
    if not reasoning and "</think>" in answer:
        reasoning, _, answer = answer.removeprefix("<think>").partition("</think>")
    total = usage.get("completion_tokens") or 0
    apart = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return Reply(
        reasoning=reasoning,
        answer=answer,
        tool_calls=[],
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        closed=bool(answer),
        prompt_tokens=usage.get("prompt_tokens") or 0,
        reasoning_tokens=apart,
        answer_tokens=total - apart,
        seconds=0.0,
    )
