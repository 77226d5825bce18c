"""Builds a reply from generated token ids: text, reasoning and answer, stop strings, counts."""

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from axk1.chat.parser import Delta, ReasoningParser, partial_suffix
from axk1.chat.tools import ToolCall, extract_tool_calls

if TYPE_CHECKING:
    from axk1.generation.sampling import TokenLogprobs

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token as text, its id, and its log-probability before penalties and temperature."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenToken(TokenScore):
    """A token of a reply; ``top`` holds the most probable ones in its place, best first."""

    top: list[TokenScore]


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply.

    ``finish_reason`` is ``stop`` (the model ended its turn, or a stop string came), ``length`` (no tokens left) or
    ``cancelled``. ``closed`` is False when the text ended inside the reasoning; then ``answer`` is empty. The token
    counts leave out the closing ``</think>`` and the token that ends the turn. ``seconds`` runs from the request to
    this reply's last token. ``logprobs``, where asked for, has every token but the one that ends the turn.
    """

    reasoning: str
    answer: str
    tool_calls: list[ToolCall]
    finish_reason: FinishReason
    closed: bool
    prompt_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    seconds: float
    logprobs: list[ChosenToken] | None = None

    def record(self) -> dict[str, Any]:
        """The reply for JSON; without ``logprobs`` where there are none."""
        record = asdict(self)
        if self.logprobs is None:
            del record["logprobs"]
        return record

    def message(self) -> dict[str, Any]:
        """This reply as an assistant turn. The template drops the reasoning from earlier turns; giving it apart, even
        empty, tells the template that a ``</think>`` in the answer is a quotation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.answer, "reasoning_content": self.reasoning}
        if self.tool_calls:
            functions = ({"name": call.name, "arguments": call.arguments} for call in self.tool_calls)
            message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
        return message


def token_scores(tokenizer: PreTrainedTokenizerFast, tokens: "Sequence[TokenLogprobs]") -> list[ChosenToken]:
    """``tokens`` with their text (of a part of a character: a replacement character)."""

    def text(id: int) -> str:
        return cast(str, tokenizer.decode([id], skip_special_tokens=False))

    return [
        ChosenToken(text(t.id), t.id, t.logprob, [TokenScore(text(id), id, logprob) for id, logprob in t.top])
        for t in tokens
    ]


class StopStrings:
    """Cuts streamed text before the first stop string, however the string is split across chunks."""

    def __init__(self, stop: Sequence[str]):
        if any(not text for text in stop):
            raise ValueError("A stop string is empty; leave it out.")
        self._stop = list(stop)
        self._held = ""
        self.found = False
        self.matched: str | None = None
        """The one that was found."""

    def feed(self, text: str) -> str:
        """The text that is certain to come before a stop string; sets ``found`` when one is complete."""
        text = self._held + text
        # The first to be complete wins, as it would if the text came character by character.
        complete = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if complete:
            _, at, self.matched = min(complete)
            self.found, self._held = True, ""
            return text[:at]
        certain = len(text) - max((partial_suffix(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text still held back."""
        held, self._held = self._held, ""
        return held


class TokenStream:
    """Text of tokens as they come. Characters that are not complete yet are held back.

    Args:
        tokenizer: the checkpoint's tokenizer.
        skip_special: whether control tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, skip_special: bool = False):
        self._tokenizer, self._skip = tokenizer.backend_tokenizer, skip_special
        self._stream = DecodeStream(skip_special_tokens=skip_special)
        self._ids: list[int] = []
        self._decoded = 0  # characters

    def __len__(self) -> int:
        """Tokens taken."""
        return len(self._ids)

    def push(self, token: int) -> str:
        """The text that became certain with ``token``."""
        self._ids.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self._decoded += len(text)
        return text

    def finish(self) -> str:
        """What is left: a cut-off character."""
        return self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)[self._decoded :]


class ReplyBuilder:
    """Takes the tokens of one row as they are generated and gives out deltas; at the end, the :class:`Reply`.

    Args:
        tokenizer: the checkpoint's tokenizer.
        think: the mode of the prompt.
        prompt_tokens: length of the prompt.
        stop_ids: token ids that end the turn.
        stop: stop strings, searched in the answer only (reasoning may pass over them).
        tools: whether tool calls are to be taken out of the answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        think: bool,
        prompt_tokens: int,
        stop_ids: Collection[int],
        stop: Sequence[str] = (),
        tools: bool = False,
    ):
        self._tokens = TokenStream(tokenizer)  # <think> and <tool_call> may be special tokens
        self._parser = ReasoningParser(think)
        self._stop = StopStrings(stop)
        self._stop_ids = stop_ids
        self._tools = tools
        self._prompt_tokens = prompt_tokens
        self._parts: dict[str, list[str]] = {"reasoning": [], "answer": []}
        self._counts = {"reasoning": 0, "answer": 0}
        self._start = self._end = time.perf_counter()
        self.finish_reason: FinishReason | None = None

    @property
    def tokens(self) -> int:
        """Tokens taken, without the one that ended the turn."""
        return len(self._tokens)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far, without the tag that closes it."""
        return self._counts["reasoning"]

    @property
    def closed(self) -> bool:
        """Whether the reasoning is over (always, in Non-Think)."""
        return self._parser.closed

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the reply."""
        return self._stop.matched

    def push(self, token: int) -> list[Delta]:
        """Takes the next token; sets ``finish_reason`` when it ends the reply. What comes after that is passed over: a
        step may yield more tokens than the reply needs."""
        if self.finish_reason is not None:
            return []
        if token in self._stop_ids:
            return self.finish("stop")
        was_closed = self._parser.closed
        deltas = self._take(self._parser.feed(self._tokens.push(token)))
        if was_closed or not self._parser.closed:  # else this token completed </think>: it belongs to neither
            self._counts["answer" if was_closed else "reasoning"] += 1
        return deltas + (self.finish("stop") if self._stop.found else [])

    def finish(self, reason: FinishReason) -> list[Delta]:
        """Ends the reply and gives out what was held back. Does nothing when it has ended already."""
        if self.finish_reason is not None:
            return []
        self.finish_reason = reason
        self._end = time.perf_counter()
        deltas: list[Delta] = []
        if not self._stop.found:
            deltas = self._take(self._parser.feed(self._tokens.finish()) + self._parser.finish())
        if not self._stop.found and (held := self._stop.finish()):
            self._parts["answer"].append(held)
            deltas.append(Delta("answer", held))
        return deltas

    def _take(self, deltas: list[Delta]) -> list[Delta]:
        """Passes the answer through the stop strings and keeps what is given out."""
        kept = []
        for delta in deltas:
            text = self._stop.feed(delta.text) if delta.kind == "answer" else delta.text
            if text:
                self._parts[delta.kind].append(text)
                kept.append(Delta(delta.kind, text))
        return kept

    def reply(self) -> Reply:
        """The finished reply.

        Raises:
            RuntimeError: before the reply has ended.
        """
        if self.finish_reason is None:
            raise RuntimeError("The reply has not ended yet.")
        answer, calls = "".join(self._parts["answer"]), []
        if self._tools:
            answer, calls = extract_tool_calls(answer)
        return Reply(
            reasoning="".join(self._parts["reasoning"]),
            answer=answer,
            tool_calls=calls,
            finish_reason=self.finish_reason,
            closed=self._parser.closed,
            prompt_tokens=self._prompt_tokens,
            reasoning_tokens=self._counts["reasoning"],
            answer_tokens=self._counts["answer"],
            seconds=self._end - self._start,
        )
