"""How the next token is chosen: options with the official defaults, the scores they make, the draws from them.

Shapes: T positions, V vocabulary, L tokens of a sequence.
"""

import ctypes
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from axk1.generation.history import History
from axk1.modeling.finite import check_chosen


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


class TopP:
    """transformers' ``TopPLogitsWarper``, to the bit, without sorting the vocabulary where few tokens hold the mass.

    A token stays if the more probable ones have less than ``top_p`` together. The best ``CANDIDATES`` say so for all,
    unless these do not reach ``top_p``, or rounding or equal probabilities could decide; then all are sorted.
    """

    CANDIDATES = 128
    MARGIN = 1e-5  # of a sum of probabilities; a hundred times what rounding moves it by

    def __init__(self, top_p: float) -> None:
        self._top_p, self._sorting = top_p, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """``scores`` ``[T, V]``, minus infinity where a token does not stay; ``input_ids`` are not looked at."""
        count = min(self.CANDIDATES, scores.shape[-1])
        best = scores.softmax(-1).topk(count, dim=-1)
        sums = best.values.double().cumsum(-1)
        above = sums - best.values
        stays = above < self._top_p
        last = stays.sum(-1, keepdim=True).clamp(min=1) - 1  # of NaN, none stays
        ends = best.values.gather(-1, torch.cat([last, (last + 1).clamp(max=count - 1)], -1))
        certain = (sums[:, -1] > self._top_p + self.MARGIN) & (ends[:, 0] > ends[:, 1])
        if not bool((certain & ((above - self._top_p).abs() > self.MARGIN).all(-1)).all()):
            return self._sorting(input_ids, scores)  # pyright: ignore[reportArgumentType]
        kept = scores.gather(-1, best.indices).masked_fill(~stays, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter_(-1, best.indices, kept)


class Scorer:
    """Turns a sequence's logits into the scores that a token is taken from, in the order of transformers' ``generate``.

    Logit bias, repetition penalty, presence and frequency penalty, the sequence's own processors; then, unless greedy,
    temperature, top-k, top-p, min-p. Each position is scored with the tokens before it.

    Args:
        sampling: the options.
        processors: called with ``[1, L]`` ids and ``[1, V]`` scores. They must depend on these only: a position can be
            scored again, or never become part of the reply.
    """

    def __init__(self, sampling: Sampling, processors: Sequence[LogitsProcessor] = ()) -> None:
        self._sampling, self._processors = sampling, list(processors)
        biases: Any = {(token,): float(bias) for token, bias in sampling.logit_bias.items()}
        self._bias = SequenceBiasLogitsProcessor(biases) if biases else None
        penalty = float(sampling.repetition_penalty)
        self._repetition = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1 else None
        self._warpers: list[Any] = []
        if not sampling.greedy:
            if sampling.temperature != 1:
                self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopP(sampling.top_p))
            if sampling.min_p:
                self._warpers.append(MinPLogitsWarper(sampling.min_p))
        penalties = sampling.presence_penalty or sampling.frequency_penalty or self._repetition or self._bias
        self.plain = not (penalties or self._warpers or self._processors)
        """Whether the scores are the logits."""

    def __call__(self, logits: Tensor, history: History, ahead: int = 0) -> Tensor:
        """Scores ``[T, V]`` fp32 of ``logits`` ``[T, V]``.

        The logits at t follow the tokens of ``history`` and its first ``ahead + t`` drafts.
        """
        scores: Any = logits.float()
        if self.plain:
            return scores
        sampling = self._sampling
        if self._bias is not None:
            scores = self._bias(history.prefix().expand(len(scores), -1), scores)  # pyright: ignore
        if self._repetition is not None:
            ids, _ = history.prefixes(len(scores), ahead)
            scores = self._repetition(ids, scores)  # pyright: ignore[reportArgumentType]
        if sampling.presence_penalty or sampling.frequency_penalty:
            ids, generated = history.prefixes(len(scores), ahead)
            counts = torch.zeros_like(scores).scatter_add_(1, ids, generated.to(scores.dtype))
            scores = scores - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty
        if self._processors:
            scores = torch.cat([self._process(scores[t : t + 1], history, ahead + t) for t in range(len(scores))])
        for warper in self._warpers:
            scores = warper(None, scores)
        return scores

    def _process(self, scores: Any, history: History, ahead: int) -> Tensor:
        ids: Any = history.prefix(ahead)
        for processor in self._processors:
            scores = processor(ids, scores)
        return scores


def row_seeds(seed: int, count: int) -> list[int]:
    """A seed for each of ``count`` sequences: the first one's is ``seed`` itself, the others' are mixed from both
    numbers, so that neighbouring seeds have no sequences in common."""
    return [seed, *(_mixed(seed, number) for number in range(1, count))]


def _mixed(seed: int, number: int) -> int:
    """Splitmix64 of both numbers, below 2**63."""
    mask = (1 << 64) - 1
    value = seed
    for part in (0, number):
        value = (value + part + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value >> 1


class Draws:
    """The randomness of a sequence: exponential noise ``[V]`` for each of its tokens.

    A token is the largest of probability / noise, which is how ``torch.multinomial`` draws one. With a seed the
    sequence has a generator of its own and its n-th token always meets its n-th noise, however many tokens a step
    yields and whoever its neighbours are. Without, the noise comes from torch's global generator.
    """

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self._device = device
        self._generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        self._ahead: deque[Tensor] = deque()

    @property
    def seeded(self) -> bool:
        """Whether a token's noise is fixed beforehand."""
        return self._generator is not None

    def noise(self, count: int, vocabulary: int, skip: int = 0) -> Tensor:
        """``[count, vocabulary]`` fp32 for the next ``count`` tokens after ``skip``; seeded, the same until
        ``advance``."""
        if self._generator is None:
            return torch.empty(count, vocabulary, device=self._device).exponential_()
        while len(self._ahead) < skip + count:
            new = torch.empty(vocabulary, device=self._device).exponential_(generator=self._generator)
            self._ahead.append(new)
        if count == 1:
            return self._ahead[skip][None]
        return torch.stack([self._ahead[skip + i] for i in range(count)])

    def advance(self, count: int) -> None:
        """The sequence has taken this many tokens."""
        for _ in range(count if self._ahead else 0):
            self._ahead.popleft()


def choose(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Tokens ``[...]`` int64 from scores ``[..., V]``: the best, or with noise ``[..., V]`` a draw.

    Raises:
        ValueError: where scores are NaN or plus infinity, or leave no token: nothing can be chosen from these.
    """
    values = scores if noise is None else scores.softmax(-1)
    tokens = (values if noise is None else values / noise).argmax(-1)  # of NaN and others, argmax takes the NaN
    check_chosen(values.expand(*tokens.shape, values.shape[-1]).gather(-1, tokens[..., None]))
    return tokens


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


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of ``tokens``, which were taken at the first positions of ``logits`` ``[T, V]``."""
    if not tokens:
        return []
    logprobs = logits[: len(tokens)].float().log_softmax(-1)
    chosen = torch.tensor(tokens, device=logits.device)
    values = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    best = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprobs(token, value, list(zip(*pair, strict=True)))
        for token, value, pair in zip(tokens, values, tops, strict=True)
    ]


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
