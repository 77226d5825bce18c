"""Token sequences with a loss mask: documents of plain text, and conversations in either mode.

A conversation is rendered by the tokenizer's chat template exactly as the model will meet it: the prompt up to the
generation prompt (no loss), then the reply (loss). Both are tokenised apart, as they are when the model generates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase

from axk1.tasks import Problem, dialogues, generate, messages
from axk1.tasks.probe import resembles
from axk1.tasks.situations import both_editions, retold
from axk1.tokenizer.documents import TextFile, read_documents
from axk1.tokenizer.render import render

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "당신은 친절한 도우미입니다.",
    "你是一个乐于助人的助手。",
    "あなたは親切なアシスタントです。",
    "Eres un asistente servicial.",
)
_BATCH = 512


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is learned."""

    input_ids: list[int]
    learned: list[bool]


def text_examples(
    folder: Path, tokenizer: PreTrainedTokenizerBase, length: int, seed: int, parts: Sequence[str]
) -> Iterator[Example]:
    """Pieces of at most ``length`` tokens of the corpus's documents (``axk1 corpus build``), all learned; endless.

    The parts take turns, document by document in a shuffled order, so that every language has its share.

    Raises:
        ValueError: a part is missing from ``folder``.
    """
    rng, end = Random(f"text/{seed}"), [tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    streams = {part: _documents(folder / f"{part}.jsonl", rng) for part in parts}
    while True:
        # the beginning of each: long documents would crowd out the others
        documents = [next(streams[part])[: length * 16] for part in parts for _ in range(8)]
        for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:  # pyright: ignore[reportGeneralTypeIssues]
            ids = ids + end
            for start in range(0, len(ids), length):
                piece = ids[start : start + length]
                yield Example(piece, [True] * len(piece))


def _documents(path: Path, rng: Random) -> Iterator[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: build the corpus with `axk1 corpus build {path.parent}`.")
    texts = list(read_documents(TextFile(path, path.stem)))
    if not texts:
        raise ValueError(f"{path} holds no text: build the corpus with `axk1 corpus build {path.parent}`.")
    while True:
        rng.shuffle(texts)
        yield from texts


def problem_examples(
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    think: float,
    dialogue: float,
    learn_prompt: bool,
    tasks: Mapping[str, float] | None = None,
    templates: float = 1.0,
) -> Iterator[Example]:
    """Training problems as conversations, none of them like one of the probe set; endless.

    Args:
        think: share of Think replies, the others are Non-Think.
        dialogue: share of conversations with two turns, of which the second is learned.
        learn_prompt: learn the question too (language modelling stage).
        tasks: share of each task in conversations of one turn; None or empty: the usual shares.
        templates: share of the first edition's problems, the others are situations.
    """
    rng = Random(f"examples/{seed}")
    single, double = _problems(seed, tasks or None, templates), _dialogues(seed, templates)
    rendered = (
        _render(tokenizer, next(double) if rng.random() < dialogue else (next(single),), rng, rng.random() < think)
        for _ in iter(int, 1)
    )
    while batch := list(islice(rendered, _BATCH)):
        prompts = _tokenize(tokenizer, (prompt for prompt, _ in batch))
        replies = _tokenize(tokenizer, (reply for _, reply in batch))
        for prompt, reply in zip(prompts, replies, strict=True):
            yield Example(prompt + reply, [learn_prompt] * len(prompt) + [True] * len(reply))


def _problems(seed: int, tasks: Mapping[str, float] | None, templates: float) -> Iterator[Problem]:
    if templates == 1:
        return generate("train", seed, weights=tasks)
    drawn = both_editions("train", seed, templates=templates, weights=tasks)
    return (problem for problem in drawn if not resembles(problem.question))


def _dialogues(seed: int, templates: float) -> Iterator[tuple[Problem, Problem]]:
    pairs = dialogues("train", seed)
    return pairs if templates == 1 else ((first, retold(second)) for first, second in pairs)


def _render(tokenizer: PreTrainedTokenizerBase, turns: tuple, rng: Random, think: bool) -> tuple[str, str]:
    conversation = [message for problem in turns for message in messages(problem)]
    if rng.random() < 0.05:
        conversation.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    prompt = render(tokenizer, conversation[:-1], add_generation_prompt=True, enable_thinking=think)
    reply = conversation[-1]
    reasoning = f"{reply['reasoning_content']}</think>" if think else ""
    return prompt, f"{reasoning}{reply['content']}<|im_end|>"


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]
