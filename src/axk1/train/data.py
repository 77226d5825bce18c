"""Training examples from files: texts and conversations as JSONL, plain text.

A line of JSONL is ``{"text": ...}``, learned whole, or ``{"messages": [...]}``, whose last message is the assistant's
and is learned; ``reasoning_content`` in it makes it a Think reply (or ``"think": true``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerFast

from axk1.chat.prompt import plain_ids, prompt_ids
from axk1.files import read_text
from axk1.train.examples import Example

TURN_END = "<|im_end|>"


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line of a JSONL file that is not blank.

    Raises:
        ValueError: naming the line that is none, or a file that cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("is no JSON object")
                yield number, value
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: {error}. Mend or remove the line.") from None


def file_examples(path: Path, tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[Example]:
    """The examples of one file, in its order; texts in pieces of at most ``length`` tokens.

    Conversations longer than that are left out, since a reply cannot be learned without its prompt.

    Raises:
        ValueError: naming the line, for what is neither a text nor a conversation, and a file that holds nothing.
    """
    none = True
    if path.suffix != ".jsonl":
        yield from text_pieces(read_text(path), tokenizer, length)
        return
    for number, value in read_lines(path):
        try:
            for example in _examples(value, tokenizer, length):
                none = False
                yield example
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if none:
        raise ValueError(f"{path} holds no example of at most {length} tokens.")


def endless_examples(path: Path, tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> Iterator[Example]:
    """The examples of a file over and over, each time in another order; the same for the same seed.

    Raises:
        ValueError: as :func:`file_examples`.
    """
    rng, examples = Random(f"{path.name}/{seed}"), list(file_examples(path, tokenizer, length))
    while True:
        rng.shuffle(examples)
        yield from examples


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


def _examples(value: dict[str, Any], tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[Example]:
    if ("text" in value) == ("messages" in value):
        raise ValueError("give either 'text' or 'messages'.")
    if "text" in value:
        if not isinstance(value["text"], str):
            raise ValueError("'text' must be text.")
        yield from text_pieces(value["text"], tokenizer, length)
        return
    example = conversation(value, tokenizer)
    if len(example.input_ids) <= length:
        yield example


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
