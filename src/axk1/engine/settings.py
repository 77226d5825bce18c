"""How an engine runs, and how much memory it takes where nobody says."""

import math
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import PreTrainedModel

from axk1.allocator import free_memory
from axk1.config import AXK1Config
from axk1.generation.pages import PAGE, Pool, pages_of
from axk1.generation.speculate import Drafts

SHARE = 0.5
"""Of the memory that is free now."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine runs. None of this changes a request's tokens where the engine is exact.

    Args:
        pages: of 64 tokens, at most, for running requests and kept prompts; None: what :func:`default_pages` says.
        streams: requests that run at once, at most.
        waiting: requests that wait, at most; more are refused.
        prompt_tokens: of all prompts together in a step, at most; half as many of long prompts, while replies wait for
            such a step. Fewer make their pauses shorter, and longer in all, since most of a small piece's time goes
            into fetching weights and its context.
        drafts: MTP speculation; by default as much as measurably pays, none where the model has no MTP module.
        stream_interval: seconds between two looks of a reader at its reply, at least, but for the first token and the
            end: what a look costs, the steps lose. 0: a look for each step.
        prefixes: whether pages of prompts are kept for requests to come.
        poison: fills pages with NaN before and after they are used: for tests.

    Raises:
        ValueError: for a value out of range.
    """

    pages: int | None = None
    streams: int = 32
    waiting: int = 256
    prompt_tokens: int = 512
    drafts: Drafts = field(default_factory=Drafts)
    stream_interval: float = 0.025
    prefixes: bool = True
    poison: bool = False

    def __post_init__(self) -> None:
        rules = {
            "pages": (self.pages is None or self.pages >= 1, "1 or more, or None"),
            "streams": (self.streams >= 1, "1 or more"),
            "waiting": (self.waiting >= 0, "0 or more"),
            "prompt_tokens": (self.prompt_tokens >= PAGE, f"{PAGE} or more"),
            "stream_interval": (0 <= self.stream_interval < math.inf, "0 or more seconds"),
        }
        for name, (valid, rule) in rules.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")


def default_pages(model: PreTrainedModel, streams: int) -> int:
    """Pages for an engine of so many streams: twice what these can fill, so that prompts can be kept beside, or what
    half of the free memory holds, if that is less. 1 at least."""
    config = cast(AXK1Config, model.config)
    wanted = 2 * streams * pages_of(config.max_position_embeddings)
    if not hasattr(config, "kv_lora_rank"):
        return wanted
    page = Pool(config, model.dtype, model.device).page_bytes
    return max(min(wanted, int(SHARE * _free_bytes(model.device)) // page), 1)


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
