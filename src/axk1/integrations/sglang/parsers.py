"""Reasoning and tool parser ``axk1``: SGLang's interface around ``axk1.chat``, so that all engines parse alike."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from sglang.srt.function_call.core_types import StreamingParseResult as ToolResult
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.function_call.hermes_detector import HermesDetector
from sglang.srt.function_call.parser_names import TOOL_CALL_PARSER_NAMES
from sglang.srt.parser.reasoning_parser import BaseReasoningFormatDetector, StreamingParseResult
from sglang.srt.parser.reasoning_parser import ReasoningParser as SGLangReasoningParser
from sglang.srt.parser.reasoning_parser_names import REASONING_PARSER_NAMES

from axk1.chat.parser import THINK_CLOSE, THINK_OPEN, Delta, ReasoningParser
from axk1.chat.tools import ToolCall, ToolCallParser, extract_tool_calls
from axk1.integrations.sglang import REASONING_PARSER, TOOL_CALL_PARSER


def register_parsers() -> None:
    """Adds both parsers to SGLang's tables and to the choices of its command line."""
    SGLangReasoningParser.DetectorMap[REASONING_PARSER] = AXK1ReasoningDetector
    FunctionCallParser.ToolCallParserEnum[TOOL_CALL_PARSER] = AXK1ToolDetector
    for names, name in ((REASONING_PARSER_NAMES, REASONING_PARSER), (TOOL_CALL_PARSER_NAMES, TOOL_CALL_PARSER)):
        if name not in names:
            names.append(name)


class AXK1ReasoningDetector(BaseReasoningFormatDetector):
    """``{reasoning}</think>{answer}`` in Think mode; in Non-Think all text is the answer, tags included.

    Requests think when they say ``chat_template_kwargs={"enable_thinking": true}`` (or the server does, by
    ``--default-chat-template-kwargs``): SGLang then passes ``force_reasoning``.
    """

    def __init__(
        self,
        stream_reasoning: bool = True,
        force_reasoning: bool = False,
        continue_final_message: bool = False,
        previous_content: str = "",
        force_nonempty_content: bool = False,
    ) -> None:
        super().__init__(
            THINK_OPEN,
            THINK_CLOSE,
            force_reasoning=force_reasoning,
            stream_reasoning=stream_reasoning,
            continue_final_message=continue_final_message,
            previous_content=previous_content,
            thinks_internally=True,  # the template opens the reasoning, so SGLang must not
            reasoning_default="explicit_enable_thinking",
            force_nonempty_content=force_nonempty_content,
        )
        self._parser = ReasoningParser(think=self._in_reasoning)
        self._withheld = ""

    def _detect_and_parse_impl(self, text: str) -> StreamingParseResult:
        parser = ReasoningParser(think=self._in_reasoning)
        result = _result(parser.feed(text) + parser.finish())
        self._in_reasoning = not parser.closed
        return result

    def _parse_streaming_increment_impl(self, new_text: str) -> StreamingParseResult:
        result = _result(self._parser.feed(new_text))
        self._in_reasoning = not self._parser.closed
        if not self.stream_reasoning:
            self._withheld += result.reasoning_text
            result.reasoning_text = ""
            if not self._in_reasoning:
                result.reasoning_text, self._withheld = self._withheld, ""
        return result

    def finish(self) -> StreamingParseResult:
        """What was held back when the reply ended."""
        result = _result(self._parser.finish())
        result.reasoning_text, self._withheld = self._withheld + result.reasoning_text, ""
        if self._force_nonempty_content and self._in_reasoning:
            result.normal_text, result.reasoning_text = self._accumulated_reasoning + result.reasoning_text, ""
            self._accumulated_reasoning = ""
        return result


class AXK1ToolDetector(HermesDetector):
    """``<tool_call>`` blocks; a call is given out once its block is closed, so that a broken one stays text.

    The grammar for forced calls (``structure_info``) is SGLang's for hermes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parser = ToolCallParser()

    def detect_and_parse(self, text: str, tools: list[Any]) -> ToolResult:
        """A finished answer: the text around the calls, and the calls."""
        answer, calls = extract_tool_calls(text)
        actions = [{"name": call.name, "arguments": call.arguments} for call in calls]
        return ToolResult(normal_text=answer, calls=self.parse_base_json(actions, tools))

    def parse_streaming_increment(self, new_text: str, tools: list[Any]) -> ToolResult:
        """A piece of an answer; text is held back only while it may belong to a call."""
        return self._emit(self._parser.feed(new_text), tools)

    def finish(self, tools: list[Any]) -> ToolResult:
        """What was held back when the answer ended: blocks that are no calls are text."""
        return self._emit(self._parser.finish(), tools)

    def _emit(self, parts: list[str | ToolCall], tools: list[Any]) -> ToolResult:
        result = ToolResult()
        for part in parts:
            if isinstance(part, str):
                result.normal_text += part
                continue
            action = {"name": part.name, "arguments": part.arguments}
            for item in self.parse_base_json(action, tools):
                item.tool_index = len(self.prev_tool_call_arr)  # in the reply, as SGLang numbers streamed calls
                result.calls.append(item)
                self.prev_tool_call_arr.append(action)
                self.streamed_args_for_tool.append(item.parameters)
        return result


def _result(deltas: list[Delta]) -> StreamingParseResult:
    parts = {kind: "".join(d.text for d in deltas if d.kind == kind) for kind in ("reasoning", "answer")}
    return StreamingParseResult(normal_text=parts["answer"], reasoning_text=parts["reasoning"])
