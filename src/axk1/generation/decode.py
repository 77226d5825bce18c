"""The one place where tokens are generated: chat, generate, benchmarks and servers all iterate over :func:`decode`."""

import threading
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from axk1.generation.sampling import Sampling


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
    processors: Sequence[LogitsProcessor] = (),
) -> Generator[list[int], None, None]:
    """Generates for a batch of prompts, a token a row at each step.

    A row ends with one of ``stop_ids``; after that it yields ``pad_id``. The iterator ends when all rows have, or after
    ``max_new_tokens`` steps. Closing it stops the model within one step.

    Args:
        model: a causal language model with ``generate``.
        prompts: token ids, any lengths; padded on the left here.
        sampling: how tokens are chosen. With a seed, the draws do not depend on or disturb the global generator.
        processors: applied to the logits before temperature, top-p and the like.

    Yields:
        The next token id of every row.
    """
    queue: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
    cancelled = threading.Event()
    input_ids, attention_mask = pad_left(prompts, pad_id, model.device)
    config = _generation_config(sampling, max_new_tokens, stop_ids, pad_id)

    def stop_when_cancelled(input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        return torch.full((input_ids.shape[0],), cancelled.is_set(), device=input_ids.device)

    def run() -> None:
        try:
            with _seeded(sampling.seed, model.device):
                model.generate(  # pyright: ignore[reportCallIssue]
                    input_ids,
                    attention_mask=attention_mask,
                    generation_config=config,
                    logits_processor=LogitsProcessorList(processors),
                    stopping_criteria=StoppingCriteriaList([stop_when_cancelled]),
                    streamer=_QueueStreamer(queue),
                )
            queue.put(None)
        except BaseException as error:  # raised again by the reader
            queue.put(error)

    thread = threading.Thread(target=run, name="axk1-decode", daemon=True)
    thread.start()
    try:
        while (step := queue.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        cancelled.set()
        thread.join()


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``input_ids`` and ``attention_mask``, both int64 [batch, longest prompt], padded on the left."""
    width = max(map(len, prompts))
    rows = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    mask = torch.arange(width) >= width - lengths
    return torch.tensor(rows, device=device), mask.long().to(device)


class _QueueStreamer(BaseStreamer):
    """Hands each step's tokens to the reader. ``generate`` puts the prompt first."""

    def __init__(self, queue: SimpleQueue):
        self._queue = queue
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self._queue.put(value.tolist())
        self._prompt_seen = True

    def end(self) -> None:
        pass


def _generation_config(
    sampling: Sampling, max_new_tokens: int, stop_ids: Collection[int], pad_id: int
) -> GenerationConfig:
    """Every option written out, because ``generate`` fills a missing one from the checkpoint's own file."""
    return GenerationConfig(
        do_sample=not sampling.greedy,
        temperature=1.0 if sampling.greedy else sampling.temperature,
        top_p=1.0 if sampling.greedy else sampling.top_p,
        top_k=0 if sampling.greedy else sampling.top_k,
        min_p=None if sampling.greedy or not sampling.min_p else sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids),
        pad_token_id=pad_id,
        num_beams=1,
        use_cache=True,
    )


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        yield
