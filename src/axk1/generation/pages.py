"""The memory of decoding: pages of latents, each of one sequence, allocated one by one as the sequence grows.

A page holds the latents and rotary keys of ``PAGE`` neighbouring tokens in all layers, those of MTP modules included:
position p of a sequence lies in its page p // PAGE, row p % PAGE. Nothing is copied when a sequence joins, grows or
leaves, and what is allocated is what is used, up to the end of each sequence's last page.
"""

import torch
from torch import Tensor

from axk1.config import AXK1Config

PAGE = 64
"""Tokens of a page."""


class PoolFull(RuntimeError):
    """No page is left."""


class Table:
    """The pages of one sequence, in order. Made and changed by :class:`Pool` only."""

    __slots__ = ("__weakref__", "_tensor", "addresses", "pages", "reserved")

    def __init__(self, reserved: int = 0) -> None:
        self.pages: list[Tensor] = []
        self.addresses: list[int] = []
        """Of each page's first byte."""
        self.reserved = reserved
        """Pages that were promised and are not allocated yet."""
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """``addresses`` as ``[1, P]`` int64 on the CPU."""
        if self._tensor is None or self._tensor.shape[1] != len(self.addresses):
            self._tensor = torch.tensor([self.addresses], dtype=torch.int64)
        return self._tensor


class Pool:
    """All pages of a generation, each ``[layers, PAGE, C + R]``: C is ``kv_lora_rank``, R ``qk_rope_head_dim``.

    Args:
        config: gives the layers, trunk and MTP modules, and both widths.
        dtype: of the cache.
        device: where the pages lie.
        limit: pages at most; None: as many as memory holds.
    """

    def __init__(self, config: AXK1Config, dtype: torch.dtype, device: torch.device, limit: int | None = None) -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.shape = layers, PAGE, config.kv_lora_rank + config.qk_rope_head_dim
        self.dtype, self.device, self.limit = dtype, device, limit
        self.in_use = 0
        """Pages that are allocated."""
        self.reserved = 0
        """Pages that tables were promised and have not allocated yet."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        layers, tokens, width = self.shape
        return layers * tokens * width * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.in_use * self.page_bytes

    def can_allocate(self, count: int = 1) -> bool:
        """Whether ``count`` pages are left that nobody was promised."""
        return self.limit is None or self.in_use + self.reserved + count <= self.limit

    def allocate(self) -> Tensor:
        """A page, not initialised, at an address that 64 divides.

        Raises:
            PoolFull: all are in use or promised.
        """
        if not self.can_allocate():
            raise PoolFull(f"All {self.limit} pages of the pool are in use; raise its limit or let a sequence end.")
        self.in_use += 1
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def free(self, pages: list[Tensor]) -> None:
        """Takes back all of ``pages``, and empties the list."""
        self.in_use -= len(pages)
        pages.clear()

    def open(self, tokens: int = 0) -> Table:
        """The table of a new sequence, which is promised the pages of ``tokens`` tokens.

        Raises:
            PoolFull: so many are not left.
        """
        count = pages_of(tokens)
        if count and not self.can_allocate(count):
            raise PoolFull(f"A sequence of {tokens} tokens needs {count} pages; fewer of the {self.limit} are left.")
        self.reserved += count
        return Table(count)

    def grow(self, table: Table, tokens: int) -> None:
        """Gives ``table`` all pages of ``tokens`` tokens.

        Raises:
            PoolFull: beyond what it was promised there are none left.
        """
        for _ in range(len(table.pages), pages_of(tokens)):
            if table.reserved:
                table.reserved -= 1
                self.reserved -= 1
            page = self.allocate()
            table.pages.append(page)
            table.addresses.append(page.data_ptr())

    def close(self, table: Table) -> None:
        """Takes back the pages of ``table``, and what it was promised."""
        self.free(table.pages)
        table.addresses.clear()
        self.reserved -= table.reserved
        table.reserved = 0


def pages_of(tokens: int) -> int:
    """Pages that ``tokens`` tokens of a sequence take."""
    return -(-tokens // PAGE)
