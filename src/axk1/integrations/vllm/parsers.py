"""Reasoning and tool calls as A.X K1's chat template writes them, read by ``axk1.chat`` behind vLLM's interfaces."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.reasoning.basic_parsers import BaseThinkingReasoningParser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

from axk1.chat.parser import THINK_CLOSE, THINK_OPEN, ReasoningParser, parse
from axk1.chat.tools import ToolCall as Call
from axk1.chat.tools import ToolCallParser, extract_tool_calls


class AXK1ReasoningParser(BaseThinkingReasoningParser):
    """Splits a reply as :mod:`axk1.chat.parser` does, by the mode in the chat template's ``enable_thinking`` (off)."""

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.think = bool((kwargs.get("chat_template_kwargs") or {}).get("enable_thinking", False))
        self._stream = ReasoningParser(think=True)  # vLLM asks for deltas only while the reasoning is open

    @property
    def start_token(self) -> str:
        """The tag that a Think prompt ends in."""
        return THINK_OPEN

    @property
    def end_token(self) -> str:
        """The tag that closes the reasoning, and that a Non-Think prompt ends in."""
        return THINK_CLOSE

    def adjust_request(self, request: Any) -> Any:
        """Keeps the tags in the text, which are special tokens."""
        request.skip_special_tokens = False
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Reasoning and answer of a whole reply; None for a part that is empty."""
        parsed = parse(model_output, self.think)
        return parsed.reasoning or None, parsed.answer or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What has become certain with ``delta_text``."""
        parts = {delta.kind: delta.text for delta in self._stream.feed(delta_text)}
        return DeltaMessage(reasoning=parts.get("reasoning"), content=parts.get("answer")) if parts else None

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the reasoning was closed by the new tokens, or by a tag spelled in several of them."""
        return self.end_token_id in delta_ids or self._stream.closed

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Tokens of a reply before its closing tag; the opening one belongs to the prompt."""
        ids = list(token_ids)
        if not self.think:
            return 0
        return ids.index(self.end_token_id) if self.end_token_id in ids else len(ids)


class AXK1ToolParser(Hermes2ProToolParser):
    """Reads tool calls as :mod:`axk1.chat.tools` does: a call is given out whole, and what is no call stays text."""

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self._stream = ToolCallParser()

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """The calls of a whole answer, and the text around them."""
        text, calls = extract_tool_calls(model_output)
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[ToolCall(function=FunctionCall(name=call.name, arguments=_arguments(call))) for call in calls],
            content=text or None,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Text, and calls that ``delta_text`` completed."""
        found = self._stream.feed(delta_text)
        text = "".join(part for part in found if isinstance(part, str))
        calls = [self._delta(part) for part in found if isinstance(part, Call)]
        return DeltaMessage(content=text or None, tool_calls=calls) if found else None

    def _delta(self, call: Call) -> DeltaToolCall:
        index, arguments = len(self.prev_tool_call_arr), _arguments(call)
        self.prev_tool_call_arr.append({"name": call.name, "arguments": arguments})
        self.streamed_args_for_tool.append(arguments)
        function = DeltaFunctionCall(name=call.name, arguments=arguments)
        return DeltaToolCall(index=index, type="function", id=make_tool_call_id(), function=function)


def _arguments(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)
