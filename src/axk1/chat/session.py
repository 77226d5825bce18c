"""A model and its tokenizer, answering messages in Think or Non-Think: whole, streamed, or a batch at once."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from axk1.chat.budget import UNLIMITED, ThinkingBudget
from axk1.chat.messages import Message, check_stop
from axk1.chat.parser import Delta
from axk1.chat.prompt import prompt_ids
from axk1.chat.reply import Reply, ReplyBuilder, token_scores
from axk1.generation.decode import Steps, decode
from axk1.generation.gate import Gate
from axk1.generation.sampling import Logprobs, Sampling
from axk1.generation.speculate import Drafts, DraftStatistics
from axk1.load import load as load_checkpoint

TURN_ENDS = ("<|im_end|>", "<|endoftext|>")


class ContextFullError(ValueError):
    """A prompt fills the model's context."""


def load(path: str | Path | None = None, **how: Any) -> "Chat":
    """A chat with a checkpoint; arguments and errors are those of :func:`axk1.load.load`."""
    return Chat(*load_checkpoint(path, **how))


class ReplyStream(Iterator[Delta]):
    """A reply being generated: iterate for its deltas, then read ``reply``.

    ``cancel`` may be called at any time, from a signal handler too: the iteration ends after the current token, and
    ``reply`` holds what was written so far, with finish reason ``cancelled``.
    """

    def __init__(self, batch: "_Batch"):
        (self._builder,) = batch.builders
        self._batch = batch
        self._cancelled = False
        self._deltas = self._run(batch.steps)

    def _run(self, steps: Steps) -> Iterator[Delta]:
        with closing(steps):
            for (tokens,) in steps:
                for token in tokens:
                    yield from self._builder.push(token)
                    if self._builder.finish_reason or self._cancelled:
                        break
                if self._builder.finish_reason or self._cancelled:
                    break
        yield from self._builder.finish("cancelled" if self._cancelled else "length")

    def __next__(self) -> Delta:
        return next(self._deltas)

    def cancel(self) -> None:
        """Asks the generation to stop."""
        self._cancelled = True

    @property
    def reply(self) -> Reply:
        """The finished reply; RuntimeError while deltas are still to come."""
        return self._batch.replies()[0]

    @property
    def statistics(self) -> DraftStatistics:
        """Steps, drafts and rates so far."""
        return self._batch.statistics


class _Batch:
    """Replies being generated together: the steps, and what becomes of each row's tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        builders: list[ReplyBuilder],
        steps: Steps,
        logprobs: Logprobs | None,
        statistics: DraftStatistics,
    ):
        self.tokenizer, self.builders, self.steps = tokenizer, builders, steps
        self.logprobs, self.statistics = logprobs, statistics

    def run(self) -> list[Reply]:
        """All replies, once all have ended."""
        with closing(self.steps):
            for step in self.steps:
                for builder, tokens in zip(self.builders, step, strict=True):
                    for token in tokens:
                        builder.push(token)
                if all(builder.finish_reason for builder in self.builders):
                    break
        for builder in self.builders:
            builder.finish("length")
        return self.replies()

    def replies(self) -> list[Reply]:
        """The finished replies; RuntimeError before."""
        replies = [builder.reply() for builder in self.builders]
        if self.logprobs is None:
            return replies
        rows = zip(replies, self.builders, self.logprobs.rows, strict=True)
        return [replace(r, logprobs=token_scores(self.tokenizer, row[: b.tokens])) for r, b, row in rows]


class Chat:
    """Answers messages with a checkpoint's model, tokenizer and chat template.

    Args:
        model: a causal language model (``axk1.AXK1ForCausalLM``, or transformers' own).
        tokenizer: a fast tokenizer with a chat template that knows ``enable_thinking``.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context_length: int = model.config.max_position_embeddings
        self.stop_ids = _stop_ids(model, tokenizer)
        self.gate = Gate()
        """What automatic drafts go by, learnt over all replies."""
        pad_id = tokenizer.pad_token_id
        self._pad_id: int = pad_id if isinstance(pad_id, int) else min(self.stop_ids)

    def prompt(
        self, messages: Sequence[Message], think: bool = False, tools: Sequence[dict] | None = None
    ) -> list[int]:
        """The token ids the model is given, ending in ``<think>`` or ``</think>``.

        Raises:
            ValueError: for messages or tools that are not right, or that the template refuses.
        """
        return prompt_ids(self.tokenizer, messages, think, tools)

    def reply(self, messages: Sequence[Message], *, think: bool = False, **options: Any) -> Reply:
        """Answers one conversation; the options are those of :meth:`reply_batch`."""
        return self.reply_batch([messages], think=think, **options)[0]

    def stream(self, messages: Sequence[Message], *, think: bool = False, **options: Any) -> ReplyStream:
        """Answers one conversation as it is written; the options are those of :meth:`reply_batch`."""
        return ReplyStream(self._start([messages], think, **options))

    def reply_batch(
        self, conversations: Sequence[Sequence[Message]], *, think: bool | Sequence[bool] = False, **options: Any
    ) -> list[Reply]:
        """Answers many conversations in one batch.

        Args:
            conversations: lists of messages ``{"role": ..., "content": ...}``.
            think: the mode, for all or one each.
            budget: reasoning tokens at most; -1 unlimited, 0 none (the prompt is then the Non-Think one).
            sampling: how tokens are chosen; the official defaults when left out. With a seed each row draws its own.
            seeds: one each, in place of those made of ``sampling.seed``.
            max_new_tokens: reasoning and answer together; what the context still holds when left out.
            stop: strings before which the answer is cut.
            tools: JSON-schema functions for the template; only then are tool calls taken out of the answer.
            drafts: MTP speculation; by default as much as measurably pays, where the model has an MTP module.
            logprobs: how many of the most probable tokens to give in each place; none are given when left out.

        Raises:
            ValueError: for an option out of range, or a prompt that fills the context.
        """
        return self._start(conversations, think, **options).run() if conversations else []

    def _start(
        self,
        conversations: Sequence[Sequence[Message]],
        think: bool | Sequence[bool],
        *,
        budget: int = UNLIMITED,
        sampling: Sampling | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] | str = (),
        tools: Sequence[dict] | None = None,
        seeds: Sequence[int] | None = None,
        drafts: Drafts | None = None,
        logprobs: int | None = None,
    ) -> _Batch:
        _check_budget(budget)
        modes = _modes(think, len(conversations))
        modes = [mode and budget != 0 for mode in modes]
        prompts = [self.prompt(messages, mode, tools) for messages, mode in zip(conversations, modes, strict=True)]
        width = max(map(len, prompts))
        max_new_tokens = self.check_room(width, any(modes), budget, max_new_tokens)
        drafts = drafts or Drafts()
        recorded, statistics = None if logprobs is None else Logprobs(logprobs), DraftStatistics()
        steps = decode(
            self.model,
            prompts,
            sampling or Sampling(),
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            pad_id=self._pad_id,
            processors=[
                [ThinkingBudget(self.tokenizer, len(prompt), [budget])] if mode and budget != UNLIMITED else []
                for prompt, mode in zip(prompts, modes, strict=True)
            ],
            seeds=seeds,
            drafts=replace(drafts, gate=drafts.gate or self.gate),
            logprobs=recorded,
            statistics=statistics,
        )
        builders = [
            ReplyBuilder(self.tokenizer, mode, len(prompt), self.stop_ids, check_stop(stop), tools is not None)
            for mode, prompt in zip(modes, prompts, strict=True)
        ]
        return _Batch(self.tokenizer, builders, steps, recorded, statistics)

    def check_room(self, prompt_tokens: int, think: bool, budget: int, max_new_tokens: int | None = None) -> int:
        """How many new tokens may follow a prompt, with an answer after ``budget`` of them.

        Raises:
            ValueError: where the prompt or the budget leaves none.
        """
        room = self.room(prompt_tokens, max_new_tokens)
        if think and budget >= room:
            raise ValueError(
                f"A budget of {budget} reasoning tokens leaves no room for an answer in {room} new tokens; "
                "lower the budget or raise max_new_tokens."
            )
        return room

    def room(self, prompt_tokens: int, max_new_tokens: int | None = None) -> int:
        """How many new tokens may follow a prompt: what the context still holds, or ``max_new_tokens`` if that is less.

        Raises:
            ValueError: when the prompt fills the context, or ``max_new_tokens`` is below 1.
        """
        room = self.context_length - prompt_tokens
        if room < 1:
            raise ContextFullError(
                f"The prompt has {prompt_tokens} tokens and the model's context holds {self.context_length}; "
                "shorten the conversation."
            )
        if max_new_tokens is None:
            return room
        if not _is_whole(max_new_tokens) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, at least 1.")
        return min(max_new_tokens, room)


def _check_budget(budget: object) -> None:
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < UNLIMITED:
        raise ValueError(f"budget is {budget!r}; it must be -1 (unlimited), 0 (no reasoning) or more.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _modes(think: object, count: int) -> list[bool]:
    """The mode of each of ``count`` conversations."""
    modes = [think] * count if isinstance(think, bool) else think
    if not isinstance(modes, list | tuple) or not all(isinstance(mode, bool) for mode in modes):
        raise ValueError(f"think is {think!r}; it must be true or false, or a list of these.")
    if len(modes) != count:
        raise ValueError(f"think has {len(modes)} entries for {count} conversations.")
    return list(modes)


def _stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids that end a turn: ``<|im_end|>``, ``<|endoftext|>``, and what the checkpoint's generation config names."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    ids = {named} if isinstance(named, int) else set(named or ())
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary[token] for token in TURN_ENDS if token in vocabulary}
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ValueError("The tokenizer has no <|im_end|> and no end-of-sequence token, so a reply could never end.")
    return frozenset(ids)
