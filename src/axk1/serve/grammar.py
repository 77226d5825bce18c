"""Answers that follow a schema or a grammar, by llguidance: a processor of one request's scores.

The grammar begins where the reasoning ends. It follows the ids that it is called with: where drafts were rejected, it
goes back.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from axk1.chat.parser import THINK_CLOSE, partial_suffix
from axk1.chat.prompt import plain_ids
from axk1.chat.tools import TOOL_CLOSE, TOOL_OPEN
from axk1.serve.errors import Refusal
from axk1.serve.schemas import check_pattern, prepared
from axk1.serve.settings import Settings
from axk1.serve.tokens import TokenTexts

_FORM: dict[str, Any] = {"whitespace_pattern": r"(?: |\n {0,32})?"}
"""White space between the parts of JSON: a space, or a new line and its indent; models may write it without end."""
_CALL_FORM: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As the chat template shows calls."""
_WINDOW = 32
"""Tokens that are decoded to see whether ``</think>`` has been spelled."""


def json_grammar(schema: Any, limits: Settings) -> str:
    """The grammar of JSON that fits ``schema`` (true: any object).

    Raises:
        Refusal: it is larger or deeper than ``limits`` allow, or its values never end.
    """
    schema = {"type": "object"} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise Refusal(f"A schema must be an object; got {type(schema).__name__}.", param="response_format")
    plain = {key: value for key, value in prepared(schema, limits).items() if key != "x-guidance"}
    return LLMatcher.grammar_from_json_schema(json.dumps(plain), overrides=_FORM)  # pyright: ignore


def regex_grammar(pattern: str, limits: Settings) -> str:
    """The grammar of texts that a regular expression matches whole."""
    check_pattern(pattern, limits)
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(choices: Sequence[str], limits: Settings) -> str:
    """The grammar of one of several texts."""
    if not choices or sum(map(len, choices)) > limits.max_schema:
        raise Refusal(f"A choice needs texts, of {limits.max_schema} characters at most.", param="structured_outputs")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))


def lark_grammar(text: str, limits: Settings) -> str:
    """A grammar in llguidance's form of Lark."""
    if len(text) > limits.max_schema:
        raise Refusal(f"The grammar has {len(text)} characters; {limits.max_schema} are taken.")
    for pattern in re.findall(r"/((?:[^/\\\n]|\\.)+)/", text):
        check_pattern(pattern, limits)
    return LLMatcher.grammar_from_lark(text)


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    limits: Settings,
    *,
    parallel: bool,
    answer: Any = None,
    text: bool = False,
) -> str:
    """The grammar of calls of ``tools`` (one, or with ``parallel`` some), as the chat template writes them.

    Args:
        answer: a schema that the answer may follow in place of calls.
        text: whether there may be text around calls, or no call at all.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    opening, closing = (tag if tag in added else json.dumps(tag) for tag in (TOOL_OPEN, TOOL_CLOSE))
    names = " | ".join(f"call{i}" for i in range(len(tools)))
    calls = 'call ("\\n" call)*' if parallel else "call"
    start = f"start: {calls}"
    if text:
        start = "start: TEXT? (call TEXT?)*" if parallel else "start: TEXT? call?"
    rules = [f"call{i}: %json {json.dumps(_call_schema(tool, limits))}" for i, tool in enumerate(tools)]
    rules.append(f'call: {opening} "\\n" ( {names} ) "\\n" {closing}')
    rules.append(r"TEXT: /(.|\n)+/")
    if answer is not None:
        start += " | answer"
        rules.append(f"answer: %json {json.dumps({**prepared(answer, limits), 'x-guidance': _FORM})}")
    return LLMatcher.grammar_from_lark("\n".join([start, *rules]))


def _call_schema(tool: Mapping[str, Any], limits: Settings) -> dict[str, Any]:
    function = tool["function"]
    parameters = prepared(function.get("parameters") or {"type": "object"}, limits)
    arguments = {key: value for key, value in parameters.items() if key not in ("x-guidance", "$defs", "definitions")}
    if "properties" in arguments:
        arguments.setdefault("additionalProperties", False)  # what is declared is what a call is for
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": {"type": "object", **arguments}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "x-guidance": _CALL_FORM,
        **shared,
    }


class _Vocabulary:
    """A tokenizer as llguidance takes one. Its own way, by ``tokenizer.json``, makes the end of a turn of the text
    ``<|im_end|>`` where a schema leaves nothing else to write; here a text is text."""

    bos_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerFast, end: int) -> None:
        texts = TokenTexts(tokenizer)
        self.tokens = [texts.bytes(id) for id in range(len(tokenizer))]
        self.special_token_ids = sorted(tokenizer.added_tokens_decoder)
        self.eos_token_id = end
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return plain_ids(self._tokenizer, text.decode())


class Grammars:
    """Compiles grammars for a tokenizer.

    Args:
        tokenizer: the checkpoint's tokenizer.
        stop_ids: tokens that may follow a complete answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)
        words = TokenizerWrapper(_Vocabulary(tokenizer, next(iter(self._stop_ids), 0)))
        self._llguidance = LLTokenizer(words, n_vocab=len(tokenizer), eos_token=self._stop_ids)

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher at the grammar's start. It takes milliseconds, outside of Python's lock.

        Raises:
            Refusal: llguidance does not take it (the message is its own), or no text fits it but the empty one.
        """
        matcher = LLMatcher(self._llguidance, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:500]
            raise Refusal(f"The schema or grammar is not supported: {reason}", param="response_format")
        first = matcher.deep_copy()
        allowed = bytearray(first.compute_logit_bias())
        if first.is_error():
            raise Refusal("Nothing fits the schema or grammar: no token can begin it.", param="response_format")
        for id in self._stop_ids:
            allowed[id] = 0
        if not any(allowed):
            raise Refusal("Only an empty text fits the grammar, so there is nothing to write.", param="response_format")
        return matcher

    def processor(self, matcher: LLMatcher, prompt: int, think: bool) -> "Grammar":
        """A processor for one request with ``prompt`` tokens."""
        return Grammar(self._tokenizer, matcher, prompt, think, self._stop_ids)


class Grammar(LogitsProcessor):
    """Leaves only tokens that the grammar allows, once the reasoning is closed; before, the reply cannot end.

    A grammar can come to where nothing may follow: a rule that only leads to itself, a state that llguidance has no
    room for. The reply ends there, as nothing else can be written, and ``check`` refuses it. That is not done at once:
    drafts may lead there that the reply never takes.

    Args:
        tokenizer: the checkpoint's tokenizer.
        matcher: at the start of the grammar; it is copied.
        prompt: tokens before the reply.
        think: whether the reply begins with reasoning.
        stop_ids: tokens that end a reply.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        matcher: LLMatcher,
        prompt: int,
        think: bool,
        stop_ids: Sequence[int],
    ) -> None:
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)
        self._start, self._matcher = matcher, matcher.deep_copy()
        self._first = prompt  # where the answer begins, if it has
        self._prompt, self._think, self._closed = prompt, think, not think
        self._seen = torch.empty(0, dtype=torch.int64)
        self._looked = prompt  # tokens in which the closing tag was looked for
        self._taken = 0  # tokens of the answer that the matcher has consumed
        self._stuck: dict[int, str] = {}  # what llguidance said, by numbers of tokens after which nothing can follow

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` [1, L] int64, ``scores`` [1, V] float; returns new scores."""
        ids = input_ids[0].cpu()
        self._stuck.pop(len(ids), None)  # the last to ask has the tokens of the reply
        self._follow(ids)
        scores = scores.clone()
        if not self._closed:
            scores[0, [*self._stop_ids, *self._overshooting(ids)]] = float("-inf")
        elif self._matters(ids):
            allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
            self._note(len(ids))
            scores[0, : len(allowed)].masked_fill_(~allowed.to(scores.device), float("-inf"))
            scores[0, len(allowed) :] = float("-inf")
        return scores

    def _matters(self, ids: Tensor) -> bool:
        """Whether the grammar says what follows ``ids``: not where a draft does not fit, or ends the reply."""
        fits = self._first + self._taken == len(ids) and not (self._taken and int(ids[-1]) in self._stop_ids)
        return fits or self._matcher.is_error()

    def check(self, reply: int) -> None:
        """Looks whether a reply of so many tokens, the last of which ended it, was complete.

        Raises:
            ValueError: the grammar allowed nothing to follow, so it had to end.
        """
        if reason := self._stuck.get(self._prompt + reply - 1):
            raise ValueError(f"The reply came to where nothing fits its schema or grammar (llguidance: {reason}).")

    def _note(self, length: int) -> None:
        """Remembers whether nothing can follow ``length`` tokens."""
        if self._matcher.is_error():
            self._stuck[length] = self._matcher.get_error().split(maxsplit=1)[0]
            self._matcher, self._taken = self._start.deep_copy(), 0  # it cannot go back any more

    def _follow(self, ids: Tensor) -> None:
        """Brings the matcher to the end of ``ids``, or to the first draft that does not fit."""
        both = min(len(ids), len(self._seen))
        differ = (ids[:both] != self._seen[:both]).nonzero()
        self._back(int(differ[0]) if len(differ) else both)
        self._seen = ids.clone()
        if not self._closed:
            self._look(ids)
        if self._closed:
            new = ids[self._first + self._taken :].tolist()
            self._taken += self._matcher.try_consume_tokens(new) if new else 0

    def _back(self, common: int) -> None:
        """Forgets all but ``common`` tokens."""
        surplus = self._taken - max(common - self._first, 0)
        if surplus > 0:
            self._matcher.rollback(surplus)
            self._taken -= surplus
        if self._think and self._closed and common < self._first:
            self._closed = False
        self._looked = min(self._looked, max(common, self._prompt))

    def _look(self, ids: Tensor) -> None:
        """Finds the first token after which the reasoning is closed."""
        while self._looked < len(ids) and not self._closed:
            self._looked += 1
            start = max(self._prompt, self._looked - _WINDOW)
            if THINK_CLOSE in self._text(ids[start : self._looked]):
                self._closed, self._first = True, self._looked

    def _overshooting(self, ids: Tensor) -> list[int]:
        """Tokens that would complete a spelled ``</think>`` and begin the answer too, where no grammar sees it."""
        tail = self._text(ids[max(self._prompt, len(ids) - _WINDOW) :])
        begun = partial_suffix(tail, THINK_CLOSE)
        if not begun:
            return []
        rest = THINK_CLOSE[begun:]
        return [id for text, id in self._tokenizer.get_vocab().items() if text.startswith(rest) and text != rest]

    def _text(self, ids: Tensor) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)  # pyright: ignore
