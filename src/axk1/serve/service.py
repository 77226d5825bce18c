"""The one thing that all routes share: engine, tokenizer and settings, and the replies that are on their way."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from axk1.chat.pieces import Pieces
from axk1.chat.prompt import prompt_ids, text_ids
from axk1.engine.interface import Engine
from axk1.serve.blocks import Whole
from axk1.serve.errors import Refusal, check_count, log, refusing
from axk1.serve.grammar import Grammars
from axk1.serve.guard import tenant_of
from axk1.serve.metrics import Metrics
from axk1.serve.replies import Choice, Failed, Order, Running, Step
from axk1.serve.settings import Settings
from axk1.serve.thinking import Closing
from axk1.serve.tokens import TokenTexts

SEED_END = 2**63


class Service:
    """What the routes work with.

    Args:
        engine: started and closed with the server.
        tokenizer: the checkpoint's, with its chat template.
        stop_ids: tokens that end a turn.
        settings: names and limits.
    """

    def __init__(
        self, engine: Engine, tokenizer: PreTrainedTokenizerFast, stop_ids: Collection[int], settings: Settings
    ) -> None:
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.stop_ids = frozenset(stop_ids)
        self.vocabulary = len(tokenizer)
        self.texts = TokenTexts(tokenizer)
        self.metrics = Metrics(engine, settings.names[0])
        self.ready = False
        self.created = int(time.time())
        self._pieces = Pieces(tokenizer)
        self._closing = Closing(tokenizer, settings.closing)
        self._grammars = Grammars(tokenizer, self.stop_ids)
        self._running: dict[str, Running] = {}

    def model(self, asked: Any) -> str:
        """The model's name, for replies.

        Raises:
            Refusal: another model is asked for.
        """
        if asked is not None and asked not in self.settings.names:
            names = ", ".join(self.settings.names)
            raise Refusal(
                f"The model {str(asked)[:200]!r} is not served; use {names}.",
                404,
                param="model",
                code="model_not_found",
            )
        return asked or self.settings.names[0]

    async def prompt(
        self, http: HttpRequest, messages: Any, think: bool, tools: Any = None, salt: str = ""
    ) -> list[int]:
        """The prompt of a conversation, in another thread, for it may be long.

        Args:
            salt: what is kept of it is for requests with the same one.

        Raises:
            Refusal: for messages or tools that are not right.
        """
        if isinstance(messages, list):
            check_count(len(messages), self.settings.max_messages, "messages")
        self.check_tools(tools)
        with refusing("messages"):
            encode = partial(self._pieces.encode, owner=_tenant(http, salt))
            return await asyncio.to_thread(prompt_ids, self.tokenizer, messages, think, tools, encode)

    def check_tools(self, tools: Any) -> None:
        """Refuses too many tools, before anybody looks at one.

        Raises:
            Refusal: there are more than this server takes.
        """
        if isinstance(tools, list):
            check_count(len(tools), self.settings.max_tools, "tools", "tools")

    def encode(self, text: str, special: bool) -> list[int]:
        """The tokens of ``text`` as it is, with the tokenizer's own around them if ``special``.

        Raises:
            Refusal: it is no text that can be encoded.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refusal("The prompt is not valid Unicode: it has a lone surrogate.", param="prompt") from None
        with refusing("prompt"):
            return text_ids(self.tokenizer, text, special)

    async def start(self, prefix: str, orders: Order | list[Order], http: HttpRequest) -> Running:
        """Gives orders to the engine; several are the prompts of one request, and their choices are numbered on.

        Raises:
            Refusal: for what can never be answered, or not now.
        """
        orders = orders if isinstance(orders, list) else [orders]
        choices: list[Choice] = []
        try:
            for order in orders:
                order = replace(order, tenant=_tenant(http, order.tenant))
                choices += await self._choices(order, len(choices))
        except BaseException:
            for choice in choices:
                choice.generation.cancel()
            raise
        running = Running(prefix, orders, choices, tenant_of(http))
        if self.settings.log_prompts:
            for order in orders:
                log.info("%s: %r", running.id, self.tokenizer.decode(order.prompt))
        self._running[running.id] = running
        return running

    async def _choices(self, order: Order, first: int) -> list[Choice]:
        if order.choices > self.settings.max_choices:
            most = self.settings.max_choices
            raise Refusal(f"n is {order.choices}; this server gives {most} choices at most.", param="n")
        check_count(len(order.stop), self.settings.max_stops, "stop strings", "stop")
        order = self._fitted(order)
        processors = await self._processors(order)
        thinking = order.thinking
        reasoning = self._closing.reasoning(thinking.budget) if thinking.think else None
        choices: list[Choice] = []
        try:
            with refusing():
                for request in order.requests(processors, reasoning, self.stop_ids):
                    choices.append(Choice(first + len(choices), order, self.engine.submit(request), self.tokenizer))
        except BaseException:
            for choice in choices:
                choice.generation.cancel()
            raise
        return choices

    def _fitted(self, order: Order) -> Order:
        """``order`` with a seed, with no more tokens than the engine takes."""
        room = self.engine.max_tokens - len(order.prompt)
        if room < 1 and not (room == 0 and order.max_new_tokens == 0):
            raise Refusal(
                f"The prompt has {len(order.prompt)} tokens; {self.engine.max_tokens} fit, reply included.",
                code="context_length_exceeded",
            )
        if any(not 0 <= id < self.vocabulary for id in order.prompt):
            raise Refusal(f"The prompt has token ids outside of the vocabulary of {self.vocabulary}.", param="prompt")
        if any(not 0 <= id < self.vocabulary for id in order.sampling.logit_bias):
            raise Refusal("logit_bias names token ids outside of the vocabulary.", param="logit_bias")
        seed = order.sampling.seed if order.sampling.seed is not None else secrets.randbelow(SEED_END)
        wanted = order.max_new_tokens
        return replace(
            order,
            sampling=replace(order.sampling, seed=seed),
            max_new_tokens=None if wanted is None else min(wanted, room),
        )

    async def _processors(self, order: Order) -> list[list[LogitsProcessor]]:
        if order.grammar is None:
            return [[] for _ in range(order.choices)]
        if order.ignore_end or order.min_new_tokens:
            raise Refusal("A reply that follows a schema or grammar ends with it; leave out ignore_eos and min_tokens.")
        matcher = await asyncio.to_thread(self._grammars.compile, order.grammar)
        length, think = len(order.prompt), order.thinking.think
        return [[self._grammars.processor(matcher, length, think)] for _ in range(order.choices)]

    async def steps(self, running: Running) -> AsyncIterator[Step]:
        """The steps of a reply, which is on the list of those that can be steered until its end.

        Raises:
            Refusal: the engine could not finish it.
        """
        last: dict[int, tuple[float, int]] = {}
        try:
            async for step in running.steps():
                now, tokens = time.monotonic(), running.choices[step.index].tokens
                if step.index in last:
                    before, had = last[step.index]
                    self.metrics.between(now - before, tokens - had)
                last[step.index] = now, tokens
                yield step
        except Failed as error:
            raise self._failure(error) from error
        finally:
            self.release(running)

    def release(self, running: Running) -> None:
        """Ends a reply, wherever it is; nothing happens where it has ended."""
        running.cancel()
        if self._running.pop(running.id, None) is None:
            return
        for choice in running.choices:
            failed = choice.incomplete or choice.generation.finish_reason == "error"
            reason = choice.finish or ("error" if failed else "abort")
            self.metrics.ended(reason, choice.generation.times, len(choice.order.prompt), choice.tokens)

    def _failure(self, error: Failed) -> Refusal:
        cause = error.__cause__
        if cause is None:
            return Refusal("The server is shutting down.", 503, code="shutting_down", retry_after=10)
        log.error("A reply failed", exc_info=cause)
        if isinstance(cause, ValueError):
            return Refusal(" ".join(str(cause).split()))
        return Refusal("The model failed; the server's log tells more.", 500)

    async def collect(self, running: Running, http: HttpRequest) -> list[Whole]:
        """The choices of a reply, whole; cancelled when the client leaves.

        Raises:
            ClientDisconnect: it left.
            Refusal: the engine could not finish it.
        """
        wholes = [Whole() for _ in running.choices]

        async def read() -> None:
            async for step in self.steps(running):
                wholes[step.index].add(step)

        reading, leaving = asyncio.ensure_future(read()), asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ClientDisconnect
            await reading
        finally:
            for task in (reading, leaving):
                task.cancel()
            await asyncio.gather(reading, leaving, return_exceptions=True)
            self.release(running)  # where it left before the reading began
        return wholes

    def answer_now(self, id: str, http: HttpRequest) -> None:
        """Ends the reasoning of a running reply.

        Raises:
            Refusal: there is none of this id, or it is another client's.
        """
        running = self._running.get(id)
        if running is None or running.tenant != tenant_of(http):
            raise Refusal(f"No reply {id[:100]!r} is being written.", 404, param="id", code="not_running")
        running.answer_now()


def _tenant(http: HttpRequest, salt: str) -> str:
    """Who shares prefixes and pieces of prompts with a request."""
    return f"{tenant_of(http)}/{salt}"


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
