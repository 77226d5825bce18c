"""From messages to token ids: the template's own markers become control tokens, what anyone wrote becomes text."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from axk1.chat.messages import Message, check_messages, check_tools, described, texts
from axk1.tokenizer.guard import UNREADABLE, tokenizer_errors
from axk1.tokenizer.render import render


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    think: bool = False,
    tools: Any = None,
    encode: Callable[[str], list[int]] | None = None,
) -> list[int]:
    """The prompt for a reply to ``messages``, ending in ``<think>`` or ``</think>``.

    A marker such as ``<|im_end|>`` inside a message is encoded like any other text: no message can end its own turn.

    Args:
        encode: what to use in place of :func:`text_ids`, with the same ids.

    Raises:
        ValueError: for messages or tools that are not right, or that the template refuses.
    """
    checked, functions = check_messages(messages), described(check_tools(tools))

    def rendered(messages: list[Message], tools: Any) -> str:
        return render(tokenizer, messages, tools=tools, add_generation_prompt=True, enable_thinking=think)

    markers = _markers(tokenizer)
    written = [*texts(checked), *texts(functions)]
    if not any(markers.search(text) for text in written):
        text = rendered(checked, functions)
        return text_ids(tokenizer, text) if encode is None else encode(text)
    joint = _unused(written)

    def broken(text: str) -> str:
        return markers.sub(lambda found: found[0][0] + joint + found[0][1:], text)

    text = rendered(_map(checked, broken), _map(functions, broken))
    with tokenizer_errors(UNREADABLE):
        return _encode(tokenizer, text, markers, joint)


def text_ids(tokenizer: PreTrainedTokenizerFast, text: str, special: bool = False) -> list[int]:
    """The tokens of ``text`` as it is, markers included, with the tokenizer's own around them if ``special``.

    Raises:
        ValueError: the tokenizer cannot read it.
    """
    with tokenizer_errors(UNREADABLE):
        return tokenizer.encode(text, add_special_tokens=special)


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text that somebody wrote: a marker in it is text.

    Raises:
        ValueError: the tokenizer cannot read it.
    """
    if not _markers(tokenizer).search(text):
        return text_ids(tokenizer, text)
    with tokenizer_errors(UNREADABLE):
        return _encode(tokenizer, text, re.compile(r"(?!)"), _unused([text]))


def _markers(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    """The control tokens as text: the special ones, and those in angle brackets such as ``<think>``."""
    added = tokenizer.added_tokens_decoder.values()
    names = (t.content for t in added if t.special or (t.content.startswith("<") and t.content.endswith(">")))
    return any_of(frozenset(names))


@lru_cache(maxsize=16)
def any_of(names: frozenset[str]) -> re.Pattern[str]:
    """A pattern of any of ``names``, the longest where several fit; of nothing where there is none."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def _encode(tokenizer: PreTrainedTokenizerFast, text: str, markers: re.Pattern[str], joint: str) -> list[int]:
    """Ids of a rendered prompt: a whole marker is its control token; a broken one, joined again, is text."""
    backend = tokenizer.backend_tokenizer
    plain = Tokenizer(backend.model)  # the same vocabulary, without tokens that are searched for in the text
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer  # pyright: ignore
    ids, start = [], 0
    for found in markers.finditer(text):
        ids += plain.encode(text[start : found.start()].replace(joint, ""), add_special_tokens=False).ids
        ids.append(tokenizer.convert_tokens_to_ids(found[0]))
        start = found.end()
    return ids + plain.encode(text[start:].replace(joint, ""), add_special_tokens=False).ids


def _unused(written: Sequence[str]) -> str:
    """A character of the private use area that is in none of the texts."""
    used = set().union(*written)
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with ``change`` applied to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map(item, change) for key, item in value.items()}
    return [_map(item, change) for item in value] if isinstance(value, list | tuple) else value
