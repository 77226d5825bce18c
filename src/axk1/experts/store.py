"""The cache between a model and its experts' files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from axk1.allocator import free_memory
from axk1.checkpoint.compressed import read_plan
from axk1.checkpoint.files import open_checkpoint
from axk1.config import AXK1Config
from axk1.experts.places import ExpertTable, Layout, expert_layout
from axk1.experts.resident import ResidentExperts
from axk1.kernels import native
from axk1.kernels.streamed import StreamedExperts

READERS = 2
"""Threads that read, each one expert at a time."""
DECAY = 0.95
"""What a use counts a step of its layer later: see ``LOG.md``."""
RESERVE = 512 * 2**20
"""Bytes that stay free beside the cache, for states and latents."""
GIB = 2**30


@dataclass(frozen=True)
class Counters:
    """What a store has done; totals since it was made."""

    asked: int
    """Experts that steps asked for: of every layer and step, each once."""
    hits: int
    """How many of these were in the cache."""
    reads: int
    """How many were read."""
    bytes: int
    """Of these reads."""
    stalls: int
    """Times that a step waited for a read."""
    stall_seconds: float
    read_seconds: float
    """Of all reading threads together."""

    @property
    def hit_rate(self) -> float:
        """Hits of what was asked for, 0 to 1."""
        return self.hits / self.asked if self.asked else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self) | {"hit_rate": round(self.hit_rate, 4)}

    def __str__(self) -> str:
        rate = self.bytes / self.read_seconds / 1e9 if self.read_seconds else 0.0
        return (
            f"Experts: {self.asked:,} asked for, {self.hit_rate:.1%} in the cache; {self.bytes / 1e9:.2f} GB read in "
            f"{self.reads:,} pieces ({rate:.2f} GB/s a thread); steps waited {self.stall_seconds:.2f} s."
        )


class ExpertStore:
    """The routed experts of one checkpoint, read as steps ask for them.

    Args:
        layout: where they are.
        cache_bytes: what the cache may take; the memory is taken at once.
        readers: threads that read.
        decay: what a use counts one step of its layer later.

    Raises:
        ValueError: a cache that holds fewer experts than a token needs, or more than there is memory for; a file that
            cannot be read.
    """

    def __init__(
        self, layout: Layout, cache_bytes: int, least: int, readers: int = READERS, decay: float = DECAY
    ) -> None:
        self.layout = layout
        self.slots = min(cache_bytes // layout.slot_bytes, len(layout.experts))
        if self.slots < least:
            raise ValueError(
                f"--expert-cache {_gib(cache_bytes)} holds {self.slots} experts of {layout.slot_bytes:,} bytes, and a "
                f"token needs {least} in a layer: give {_gib(least * layout.slot_bytes)} or more."
            )
        _check_room(self.slots * layout.slot_bytes)
        self.stream = native.Stream(self.slots, layout.slot_bytes, readers, decay)
        for file in layout.files:
            self.stream.add_file(str(file))
        for (layer, expert), place in layout.experts.items():
            self.stream.add(layer, expert, place)

    @property
    def bytes(self) -> int:
        """Of memory: the cache, however full it is."""
        return self.slots * self.layout.slot_bytes

    def counters(self) -> Counters:
        """What it has done so far."""
        found = self.stream.counters()
        times = {"stall_seconds": found.stalled / 1e9, "read_seconds": found.reading / 1e9}
        return Counters(found.asked, found.hits, found.reads, found.bytes, found.stalls, **times)


def stream_experts(model: nn.Module, folder: Path, cache_bytes: int, **how: Any) -> ExpertStore:
    """Gives a model that was loaded with ``without_experts=True`` those in ``folder``, where it was loaded from.

    Args:
        how: ``readers`` and ``decay`` of :class:`ExpertStore`.

    Raises:
        ValueError: see :class:`ExpertStore`; or there are no compiled kernels here.
        CheckpointError: experts in a format that is not streamed.
    """
    if not native.available():
        raise ValueError("--expert-cache needs the compiled kernels, which are not there: see `axk1 info --paths`.")
    config = cast(AXK1Config, model.config)
    embedding = cast(Any, model).model.embed_tokens.weight
    table = ExpertTable(open_checkpoint(folder), read_plan(config, folder), embedding.dtype)
    store = ExpertStore(expert_layout(table, config), cache_bytes, config.num_experts_per_tok, **how)
    for module in model.modules():
        if isinstance(module, StreamedExperts):
            module.stream, module.resident = store.stream, ResidentExperts(table, config, module.layer)
    model.expert_store = store  # pyright: ignore[reportArgumentType] - no module: kept alive with the model
    return store


def store_of(model: nn.Module) -> ExpertStore | None:
    """The store that ``model`` reads its experts from; None where they are in memory."""
    return getattr(model, "expert_store", None)


def _check_room(size: int) -> None:
    free = free_memory()
    if size > free - RESERVE:
        raise ValueError(
            f"--expert-cache {_gib(size)} does not fit: {_gib(free)} are free beside the rest of the model, and "
            f"{_gib(RESERVE)} of these are for states and latents; give at most {_gib(max(free - RESERVE, 0))}."
        )


def _gib(size: int) -> str:
    """In GiB, or MiB where that is little."""
    return f"{size / GIB:.1f}GiB" if size >= GIB else f"{size / 2**20:.0f}MiB"
