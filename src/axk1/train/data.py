"""Training examples of records: texts and conversations.

A record is ``{"text": ...}``, learned whole, or ``{"messages": [...]}``, whose last message is the assistant's and is
learned; ``reasoning_content`` in it makes it a Think reply (or ``"think": true``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from axk1.chat.prompt import plain_ids, prompt_ids
from axk1.train.examples import Example

TURN_END = "<|im_end|>"


def record_examples(
    value: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    text: str = "text",
    messages: str = "messages",
) -> Iterator[Example]:
    """The examples of one record: pieces of a text, or a conversation if it has at most ``length`` tokens.

    Args:
        text, messages: the names that these have in the record; "" is none.

    Raises:
        ValueError: it is neither a text nor a conversation.
    """
    given = {name: value[column] for name, column in (("text", text), ("messages", messages)) if _holds(value, column)}
    if len(given) != 1:
        names = [f"'{column}'" for column in (text, messages) if column]
        raise ValueError(f"give either {' or '.join(names)}." if len(names) > 1 else f"give {names[0]}.")
    if "text" in given:
        if not isinstance(given["text"], str):
            raise ValueError(f"'{text}' must be text.")
        yield from text_pieces(given["text"], tokenizer, length)
        return
    think = {"think": value["think"]} if _holds(value, "think") else {}
    example = conversation({"messages": _without_none(given["messages"]), **think}, tokenizer)
    if len(example.input_ids) <= length:
        yield example


def _holds(value: Mapping[str, Any], column: str) -> bool:
    """A table has a value in every column, which is None where there is none."""
    return bool(column) and value.get(column) is not None


def _without_none(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [{k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each for each in messages]


def text_pieces(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[Example]:
    """A document in pieces of at most ``length`` tokens, its end included, all learned."""
    ids = [*plain_ids(tokenizer, text), tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    for start in range(0, len(ids), length):
        piece = ids[start : start + length]
        yield Example(piece, [True] * len(piece))


def reply_example(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, Any]], think: bool, reasoning: str, answer: str
) -> Example:
    """The prompt of ``messages``, not learned, and the reply to it as the model writes it, learned."""
    prompt = prompt_ids(tokenizer, messages, think)  # pyright: ignore[reportArgumentType]
    marks = [tokenizer.convert_tokens_to_ids(name) for name in ("</think>", TURN_END)]
    thought = [*plain_ids(tokenizer, reasoning), marks[0]] if think else []
    reply = [*thought, *plain_ids(tokenizer, answer), marks[1]]
    return Example(prompt + reply, [False] * len(prompt) + [True] * len(reply))


def conversation(value: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> Example:
    """The example of a line with ``messages``.

    Raises:
        ValueError: they do not end with a reply that can be learned.
    """
    messages = value["messages"]
    if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(each, dict) for each in messages):
        raise ValueError("'messages' must be a list of a question at least and a reply.")
    *before, reply = messages
    answer, reasoning = reply.get("content"), reply.get("reasoning_content") or ""
    if reply.get("role") != "assistant" or not isinstance(answer, str) or not isinstance(reasoning, str):
        raise ValueError("the last of 'messages' must be the assistant's, with text as its content.")
    think = value.get("think", bool(reasoning))
    if not isinstance(think, bool) or (reasoning and not think):
        raise ValueError("'think' must be true or false, and true where there is reasoning_content.")
    return reply_example(tokenizer, before, think, reasoning, answer)
