"""Replies to a fixed set of prompts: chat, generate and benchmarks all iterate over :func:`decode`."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from typing import Any

from transformers import LogitsProcessor, PreTrainedModel

from axk1.generation import batch
from axk1.generation.loop import PREFILL_TOKENS, Loop
from axk1.generation.sampling import Logprobs, Sampling, row_seeds
from axk1.generation.speculate import NO_DRAFTS, Drafts, DraftStatistics

Steps = Generator[list[list[int]], None, None]


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    processors: Sequence[Sequence[LogitsProcessor]] = (),
    drafts: Drafts = NO_DRAFTS,
    seeds: Sequence[int] | None = None,
    logprobs: Logprobs | None = None,
    statistics: DraftStatistics | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
) -> Steps:
    """Generates for a set of prompts, some tokens of each at each step.

    A reply ends with one of ``stop_ids``, which is part of it, or after ``max_new_tokens``. The iterator ends when all
    replies have. Closing it stops at once, since the model runs only while the next step is waited for.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, any lengths, none empty.
        sampling: how tokens are chosen.
        max_new_tokens: for each reply.
        pad_id: not used: nothing is padded.
        processors: for each prompt, processors of its own (:class:`axk1.generation.sampling.Scorer`).
        drafts: MTP speculation; none by default.
        seeds: for each prompt, in place of ``row_seeds(sampling.seed, ...)``. With seeds the output depends on them
            alone, not on the global generator, on neighbours or on drafts.
        logprobs: collects the log-probabilities of the tokens, for whoever made it.
        statistics: filled in as the call goes.
        prefill_tokens: tokens of prompts run at once.

    Yields:
        For each prompt, in order, its new token ids: none once its reply has ended, and while its prompt is being
        read; one per step without drafts; up to ``drafts + 1`` with them.

    Raises:
        ValueError: an empty prompt, no room for a token, lists of another length than ``prompts``, or drafts from a
            model that has no MTP module.
    """
    if not prompts:
        return
    each_seed: Sequence[int | None] = seeds or _seeds(sampling, len(prompts))
    for name, given in (("processors", processors), ("seeds", each_seed)):
        if given and len(given) != len(prompts):
            raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} prompts.")
    shared: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop_ids": frozenset(stop_ids),
        "top_logprobs": None if logprobs is None else logprobs.top,
        "device": model.device,
    }
    sequences = [
        batch.Sequence(prompt, sampling, processors=own, seed=seed, **shared)
        for prompt, own, seed in zip(prompts, processors or [()] * len(prompts), each_seed, strict=True)
    ]
    drafts = replace(drafts, exact=drafts.exact and len(prompts) == 1)
    loop = Loop(model, drafts, prefill_tokens=prefill_tokens, statistics=statistics)
    if logprobs is not None:
        logprobs.rows = [sequence.logprobs for sequence in sequences]
    yield from _steps(loop, sequences)


def _seeds(sampling: Sampling, count: int) -> Sequence[int | None]:
    """A seed for each of ``count`` prompts, where ``sampling`` has one."""
    return [None] * count if sampling.seed is None else row_seeds(sampling.seed, count)


def _steps(loop: Loop, sequences: list[batch.Sequence]) -> Steps:
    """Runs ``loop`` until all of ``sequences`` have ended; they leave it however this ends."""
    for sequence in sequences:
        loop.add(sequence)
    try:
        while len(loop):
            new = loop.step()
            for sequence in new:
                if sequence.error is not None:
                    raise sequence.error
            yield [new.get(sequence, []) for sequence in sequences]
    finally:
        for sequence in sequences:
            loop.cancel(sequence)
