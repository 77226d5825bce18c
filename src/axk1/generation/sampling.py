"""How the next token is chosen: options with the official defaults, the scores they make, the draws from them.

Shapes: B rows, T positions, V vocabulary, L length of a row's tokens.
"""

import ctypes
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from axk1.generation.history import History


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy and ignores ``top_p``, ``top_k``, ``min_p``, ``seed``.

    ``repetition_penalty`` divides the logits of all tokens in prompt and reply, as transformers does;
    ``presence_penalty`` and ``frequency_penalty`` are taken off the logits of the reply's tokens, once and for each
    time, as the OpenAI API does; ``logit_bias`` is added to the logits of single token ids, before anything else.

    Raises:
        ValueError: for a value that is no number, or outside its range once it is the fp32 or int64 that tensors hold.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = {
            "temperature": (_in_fp32(self.temperature, 1e-30, 1e30, or_zero=True), "0 (greedy), or 1e-30 to 1e30"),
            "top_p": (_in_fp32(self.top_p, 1e-30, 1), "above 0 (1e-30 or more) and at most 1"),
            "top_k": (_is_int(self.top_k, 2**63), "a whole number, 0 (off) or more and below 2**63"),
            "min_p": (_in_fp32(self.min_p, 0, 1), "between 0 and 1"),
            "repetition_penalty": (_in_fp32(self.repetition_penalty, 1e-30, 1e30), "above 0, from 1e-30 to 1e30"),
            "seed": (self.seed is None or _is_int(self.seed, 2**63), "a whole number, 0 or more and below 2**63"),
            "presence_penalty": (_in_fp32(self.presence_penalty, -1e30, 1e30), "finite, at most 1e30 in size"),
            "frequency_penalty": (_in_fp32(self.frequency_penalty, -1e30, 1e30), "finite, at most 1e30 in size"),
            "logit_bias": (_are_biases(self.logit_bias), "finite numbers (at most 1e30 in size) by token id"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


def _in_fp32(value: object, least: float, most: float, or_zero: bool = False) -> bool:
    """Whether ``value`` is a number that, once it is fp32, lies between the two."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        number = ctypes.c_float(value).value  # pyright: ignore[reportArgumentType] - whatever has __float__
    except OverflowError:
        return False
    zero = or_zero and value == 0
    return zero or ctypes.c_float(least).value <= number <= ctypes.c_float(most).value


def _is_int(value: object, end: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < end


def _are_biases(biases: object) -> bool:
    if not isinstance(biases, Mapping):
        return False
    return all(_is_int(token, 2**31) and _in_fp32(bias, -1e30, 1e30) for token, bias in biases.items())


GREEDY = Sampling(temperature=0.0)


class Scorer:
    """Turns logits into the scores that a token is taken from, in the order of transformers' ``generate``.

    Logit bias, repetition penalty, presence and frequency penalty, each row's own processors; then, unless greedy,
    temperature, top-k, top-p, min-p. Each position is scored with the tokens before it in its own row, no padding.

    Args:
        sampling: the options.
        processors: for each row, what is applied to it alone, called with ``[1, L]`` ids and ``[1, V]`` scores. They
            must depend on these only: a position can be scored again, or never become part of the reply.
    """

    def __init__(self, sampling: Sampling, processors: Sequence[Sequence[LogitsProcessor]]) -> None:
        self._sampling = sampling
        self._processors = [list(row) for row in processors]
        biases: Any = {(token,): float(bias) for token, bias in sampling.logit_bias.items()}
        self._bias = SequenceBiasLogitsProcessor(biases) if biases else None
        penalty = float(sampling.repetition_penalty)
        self._repetition = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self._warpers = LogitsProcessorList()
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                self._warpers.append(MinPLogitsWarper(sampling.min_p))

        penalties = sampling.presence_penalty or sampling.frequency_penalty or self._repetition or self._bias
        self.plain = not (penalties or self._warpers or any(self._processors))
        """Whether the scores are the logits."""

    def __call__(self, logits: Tensor, history: History, ahead: int = 0) -> Tensor:
        """Scores ``[B, T, V]`` fp32 of ``logits`` ``[B, T, V]``.

        The logits at position t follow ``history.lengths + ahead + t`` tokens, which ``history`` holds.
        """
        if self.plain:
            return logits if logits.dtype == torch.float32 else logits.float()
        shape = logits.shape
        scores = logits.float().reshape(-1, shape[-1])
        sampling = self._sampling
        if self._bias is not None:
            scores = self._bias(history.ids, scores)  # pyright: ignore[reportArgumentType]
        if self._repetition is not None:
            ids, _ = history.prefixes(shape[1], ahead)
            scores = self._repetition(ids, scores)  # pyright: ignore[reportArgumentType]
        if sampling.presence_penalty or sampling.frequency_penalty:
            ids, generated = history.prefixes(shape[1], ahead)
            counts = torch.zeros_like(scores).scatter_add_(1, ids, generated.to(scores.dtype))
            scores = scores - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty
        if any(self._processors):
            scores = self._process_rows(scores.view(shape), history, ahead).view(scores.shape)
        return self._warpers(history.ids, scores).view(shape)  # pyright: ignore[reportArgumentType]

    def _process_rows(self, scores: Tensor, history: History, ahead: int) -> Tensor:
        scores = scores.clone()
        for row, processors in enumerate(self._processors):
            for position in range(scores.shape[1] if processors and history.running[row] else 0):
                ids = history.row(row, ahead + position)
                for processor in processors:
                    scores[row, position] = processor(ids, scores[row, position][None])[0]  # pyright: ignore
        return scores

    def select(self, rows: Sequence[int]) -> None:
        """Keeps ``rows``, in their order."""
        self._processors = [self._processors[row] for row in rows]


def row_seeds(seed: int, count: int) -> list[int]:
    """A seed for each of ``count`` rows: the first row's is ``seed`` itself, the others' are mixed from both numbers,
    so that neighbouring seeds have no rows in common."""
    return [seed, *(_mixed(seed, row) for row in range(1, count))]


def _mixed(seed: int, row: int) -> int:
    """Splitmix64 of both numbers, below 2**63."""
    mask = (1 << 64) - 1
    value = seed
    for part in (0, row):
        value = (value + part + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value >> 1


class Draws:
    """The randomness of a batch: exponential noise ``[V]`` for each token of each row.

    A token is the largest of probability / noise, which is how ``torch.multinomial`` draws one. With seeds each row has
    a generator of its own and its n-th token always meets its n-th noise, however many tokens a step yields and whoever
    its neighbours are. Without, the noise comes from torch's global generator.
    """

    def __init__(self, seeds: Sequence[int] | None, device: torch.device) -> None:
        self._device = device
        self._generators = None
        if seeds is not None:
            self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._ahead: list[deque[Tensor]] = [deque() for _ in seeds or ()]

    @property
    def seeded(self) -> bool:
        """Whether a token's noise is fixed beforehand."""
        return self._generators is not None

    def noise(self, batch: int, count: int, vocabulary: int) -> Tensor:
        """``[batch, count, vocabulary]`` fp32 for each row's next ``count`` tokens; seeded, the same until
        ``advance``."""
        if self._generators is None:
            return torch.empty(batch, count, vocabulary, device=self._device).exponential_()
        for generator, ahead in zip(self._generators, self._ahead, strict=True):
            while len(ahead) < count:
                ahead.append(torch.empty(vocabulary, device=self._device).exponential_(generator=generator))
        return torch.stack([ahead[i] for ahead in self._ahead for i in range(count)]).view(batch, count, vocabulary)

    def advance(self, counts: Sequence[int]) -> None:
        """Each row has taken this many tokens."""
        for ahead, count in zip(self._ahead, counts, strict=False):
            for _ in range(count):
                ahead.popleft()

    def select(self, rows: Sequence[int]) -> None:
        """Keeps ``rows``, in their order."""
        if self._generators is not None:
            self._generators = [self._generators[row] for row in rows]
            self._ahead = [self._ahead[row] for row in rows]


def choose(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Tokens ``[...]`` int64 from scores ``[..., V]``: the best, or with noise ``[..., V]`` a draw.

    Raises:
        ValueError: where scores are NaN or plus infinity, or leave no token: nothing can be chosen from these.
    """
    values = scores if noise is None else scores.softmax(-1)
    tokens = (values if noise is None else values / noise).argmax(-1)  # of NaN and others, argmax takes the NaN
    check_chosen(values.expand(*tokens.shape, values.shape[-1]).gather(-1, tokens[..., None]))
    return tokens


def check_chosen(values: Tensor) -> None:
    """Refuses a choice by ``values`` ``[...]``: the scores or probabilities of the chosen tokens.

    Raises:
        ValueError: when one of them is not finite.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(
            "The model's scores for the next token are not finite (NaN or infinity), so none can be chosen: check the "
            "weights (axk1 verify), compute in float32 or bfloat16, or take off penalties and biases."
        )


def margins(scores: Tensor, noise: Tensor | None) -> Tensor:
    """By how much ``choose`` preferred its token ``[...]``, in units of ``scores`` ``[..., V]``."""
    best = (scores if noise is None else scores - noise.log()).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A generated token's log-probability, and the most probable tokens in its place with theirs, best first."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Logprobs:
    """Collects log-probabilities while :func:`axk1.generation.decode.decode` runs: ``rows[i]`` are those of prompt i.

    They are the model's own (natural logarithm, over the whole vocabulary), before penalties, temperature and the like.

    Args:
        top: how many of the most probable tokens to keep in each place.

    Raises:
        ValueError: ``top`` is negative.
    """

    def __init__(self, top: int = 0) -> None:
        if top < 0:
            raise ValueError(f"logprobs is {top}; it must be 0 or more.")
        self.top = top
        self.rows: list[list[TokenLogprobs]] = []

    def record(self, numbers: Sequence[int], logits: Tensor, tokens: Sequence[Sequence[int]]) -> None:
        """Adds ``tokens[row]``, taken at the first positions of ``logits`` ``[B, T, V]``, to ``rows[numbers[row]]``."""
        places = [(row, t) for row, new in enumerate(tokens) for t in range(len(new))]
        if not places:
            return
        row, position = torch.tensor(places, device=logits.device).unbind(1)
        chosen = torch.tensor([token for new in tokens for token in new], device=logits.device)
        logprobs = logits[row, position].float().log_softmax(-1)
        values = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        best = logprobs.topk(min(self.top, logprobs.shape[-1]), dim=-1)
        tops = [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        for (row, t), value, top in zip(places, values, tops, strict=True):
            self.rows[numbers[row]].append(TokenLogprobs(tokens[row][t], value, top))
