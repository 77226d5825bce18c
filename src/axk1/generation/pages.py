"""The memory of decoding: pages of latents, allocated one by one as sequences grow.

A page holds the latents and rotary keys of ``PAGE`` neighbouring tokens in all layers, those of MTP modules included:
position p of a sequence lies in its page p // PAGE, row p % PAGE. Nothing is copied when a sequence joins, grows or
leaves, and what is allocated is what is used, up to the end of each sequence's last page.

A page is held by the tables of sequences, mostly by one. A page that nobody writes any more may be held by several, and
may be kept when none holds it, for sequences to come.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from axk1.config import AXK1Config

PAGE = 64
"""Tokens of a page."""


class PoolFull(RuntimeError):
    """No page is left."""


class Table:
    """The pages of one sequence, in order. Made and changed by :class:`Pool` only."""

    __slots__ = ("__weakref__", "_tensor", "addresses", "changes", "pages", "reserved")

    def __init__(self) -> None:
        self.pages: list[Tensor] = []
        self.addresses: list[int] = []
        """Of each page's first byte."""
        self.reserved = 0
        """Pages that were promised and are not allocated yet."""
        self.changes = 0
        """How often ``pages`` has changed."""
        self._tensor: tuple[int, Tensor] | None = None

    @property
    def tensor(self) -> Tensor:
        """``addresses`` as ``[1, P]`` int64 on the CPU."""
        if self._tensor is None or self._tensor[0] != self.changes:
            self._tensor = self.changes, torch.tensor([self.addresses], dtype=torch.int64)
        return self._tensor[1]


class Pool:
    """All pages of a generation, each ``[layers, PAGE, C + R]``: C is ``kv_lora_rank``, R ``qk_rope_head_dim``.

    Args:
        config: gives the layers, trunk and MTP modules, and both widths.
        dtype: of the cache.
        device: where the pages lie.
        limit: pages at most; None: as many as memory holds.
        poison: fills pages with NaN before they are used and when they are freed, so that a test sees whoever reads
            what it has not written.
    """

    def __init__(
        self,
        config: AXK1Config,
        dtype: torch.dtype,
        device: torch.device,
        limit: int | None = None,
        poison: bool = False,
    ) -> None:
        layers = config.num_hidden_layers + config.num_nextn_predict_layers
        self.shape = layers, PAGE, config.kv_lora_rank + config.qk_rope_head_dim
        self.dtype, self.device, self.limit, self.poison = dtype, device, limit, poison
        self.in_use = 0
        """Pages that are allocated."""
        self.reserved = 0
        """Pages that tables were promised and have not allocated yet."""
        self.spare = 0
        """Pages that are kept and in no table."""
        self.returns = 0
        """How often pages, or promises of some, have been given back."""
        self._holders: dict[int, int] = {}
        self._kept: dict[int, Tensor] = {}

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
        return self.missing(count) == 0

    def missing(self, count: int) -> int:
        """Of ``count`` more pages, those that are not left: so many that are kept have to go first."""
        return 0 if self.limit is None else max(self.in_use + self.reserved + count - self.limit, 0)

    def allocate(self) -> Tensor:
        """A page, not initialised, at an address that 64 divides.

        Raises:
            PoolFull: all are in use or promised.
        """
        if not self.can_allocate():
            raise PoolFull(f"All {self.limit} pages of the pool are in use; raise its limit or let a sequence end.")
        return self._allocate()

    def free(self, pages: list[Tensor]) -> None:
        """Takes back all of ``pages`` from one who holds them, and empties the list."""
        for page in pages:
            self._release(page)
        pages.clear()
        self.returns += 1

    def open(self, tokens: int = 0) -> Table:
        """The table of a new sequence, which is promised the pages of ``tokens`` tokens.

        Raises:
            PoolFull: so many are not left.
        """
        table = Table()
        self.promise(table, tokens)
        return table

    def promise(self, table: Table, tokens: int) -> None:
        """Promises ``table`` what it needs, beyond what it has, for ``tokens`` tokens.

        Raises:
            PoolFull: so many are not left.
        """
        count = pages_of(tokens) - len(table.pages) - table.reserved
        if count <= 0:
            return
        if not self.can_allocate(count):
            raise PoolFull(f"A sequence of {tokens} tokens needs {count} pages; fewer of the {self.limit} are left.")
        table.reserved += count
        self.reserved += count

    def grow(self, table: Table, tokens: int) -> None:
        """Gives ``table`` all pages of ``tokens`` tokens.

        Raises:
            PoolFull: beyond what it was promised there are none left.
        """
        for _ in range(len(table.pages), pages_of(tokens)):
            page = self._allocate() if table.reserved else self.allocate()
            self._redeem(table)
            self._append(table, page)

    def close(self, table: Table) -> None:
        """Takes back the pages of ``table``, and what it was promised."""
        self.free(table.pages)
        table.addresses.clear()
        table.changes += 1
        self.reserved -= table.reserved
        table.reserved = 0

    def keep(self, page: Tensor) -> None:
        """Lets ``page``, which a table holds and nobody will write, outlive its tables."""
        self._kept[page.data_ptr()] = page

    def drop(self, page: Tensor) -> None:
        """Undoes ``keep``."""
        address = page.data_ptr()
        del self._kept[address]
        if address not in self._holders:
            self.spare -= 1
            self._discard(page)

    def is_spare(self, page: Tensor) -> bool:
        """Whether no table holds ``page``, which is kept."""
        return page.data_ptr() not in self._holders

    def share(self, table: Table, page: Tensor) -> None:
        """Gives ``table`` the kept ``page`` as its next, in place of one that it was promised if it was any."""
        self._redeem(table)
        self._hold(page)
        self._append(table, page)

    def replace(self, table: Table, at: int, page: Tensor) -> None:
        """Gives ``table`` the kept ``page`` in place of its own one at ``at``, which has the same content."""
        own = table.pages[at]
        self._hold(page)
        table.pages[at], table.addresses[at] = page, page.data_ptr()
        table.changes += 1
        self._release(own)
        self.returns += 1

    def audit(self, tables: Iterable[Table]) -> None:
        """Counts everything again.

        Args:
            tables: all that there are.

        Raises:
            RuntimeError: pages were lost, or are held by somebody else.
        """
        tables = list(tables)
        holders = Counter(page.data_ptr() for table in tables for page in table.pages)
        spare = sum(address not in holders for address in self._kept)
        counted = {
            "holders": dict(holders),
            "in use": len(holders) + spare,
            "reserved": sum(table.reserved for table in tables),
            "spare": spare,
        }
        booked = {"holders": self._holders, "in use": self.in_use, "reserved": self.reserved, "spare": self.spare}
        wrong = [name for name, value in counted.items() if value != booked[name]]
        if wrong or (self.limit is not None and self.in_use + self.reserved > self.limit):
            raise RuntimeError(f"The pool's books are wrong ({', '.join(wrong) or 'limit'}): {booked}, not {counted}.")

    def _allocate(self) -> Tensor:
        page = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if self.poison:
            page.fill_(torch.nan)
        self.in_use += 1
        self._holders[page.data_ptr()] = 1
        return page

    def _redeem(self, table: Table) -> None:
        """One page that ``table`` was promised is being given to it."""
        if table.reserved:
            table.reserved -= 1
            self.reserved -= 1

    def _append(self, table: Table, page: Tensor) -> None:
        table.pages.append(page)
        table.addresses.append(page.data_ptr())
        table.changes += 1

    def _hold(self, page: Tensor) -> None:
        address = page.data_ptr()
        self.spare -= address not in self._holders
        self._holders[address] = self._holders.get(address, 0) + 1

    def _release(self, page: Tensor) -> None:
        address = page.data_ptr()
        self._holders[address] -= 1
        if self._holders[address]:
            return
        del self._holders[address]
        if address in self._kept:
            self.spare += 1
        else:
            self._discard(page)

    def _discard(self, page: Tensor) -> None:
        self.in_use -= 1
        if self.poison:
            page.fill_(torch.nan)


def pages_of(tokens: int) -> int:
    """Pages that ``tokens`` tokens of a sequence take."""
    return -(-tokens // PAGE)
