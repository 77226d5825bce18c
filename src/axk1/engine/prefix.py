"""Pages of prompts that sequences share: a tree for each tenant, whose branches are pages of 64 tokens.

Only full pages that were read as a prompt are kept: pages that a reply was written to hold other bits. The last token
of a prompt is never taken from here, since somebody has to compute the logits after it. Pages are compared by their
tokens, all of them, from the first of the prompt on.

The MTP module's layer of a page is computed from the page's tokens and the one after them. So the page of a sequence
that drafts is told apart by that token too, and one that drafts takes no page of one that did not. The trunk's layers
hold the same bits in all of them, so a sequence that does not draft takes any.

A page is kept after the sequences that hold it have left. When pages are needed, those that were used last go last. A
sequence that filled a page which the tree has by now goes on with the tree's: whoever holds a page holds those before.
"""

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import Tensor

from axk1.generation.batch import Sequence
from axk1.generation.pages import PAGE, Pool

_BYTES = 4 * PAGE
"""Of the tokens of a page, as 32-bit integers."""


@dataclass(slots=True, eq=False)
class _Node:
    """A page after those of its parents."""

    parent: "_Node | None" = None
    key: bytes = b""
    next: int | None = None
    """The token after the page, where the MTP module has run over it."""
    page: Tensor | None = None
    """None: the root, before the first page."""
    children: dict[bytes, "dict[int | None, _Node]"] = field(default_factory=dict)
    """By the tokens of the page, and its ``next``."""


class PrefixTree:
    """:class:`axk1.generation.prompts.Prefixes` of one loop.

    Args:
        pool: where the pages come from.
        unit: pages that are taken together, as the others would change how the prompt is cut.
    """

    def __init__(self, pool: Pool, unit: int = 1) -> None:
        self._pool, self._unit = pool, unit
        self._roots: dict[str, _Node] = {}
        self._order: OrderedDict[_Node, None] = OrderedDict()
        """All nodes, those used last at the end; each one's parent comes after it."""
        self._keys: WeakKeyDictionary[Sequence, list[bytes]] = WeakKeyDictionary()

    def __len__(self) -> int:
        """Pages kept."""
        return len(self._order)

    @property
    def tenants(self) -> int:
        """Tenants that have pages here."""
        return len(self._roots)

    def find(self, sequence: Sequence) -> None:
        """Gives the pages that come next in the prompt of ``sequence``, as far as they are there, to its table."""
        table = sequence.table
        if table is None or sequence.tenant not in self._roots or sequence.prompt_top is not None:
            return
        if sequence.cached != len(table.pages) * PAGE:
            return  # in the middle of a page of its own
        path = self._path(sequence)
        new = path[len(table.pages) :]
        new = new[: len(new) - len(new) % self._unit]
        if not new:
            return
        for node in new:
            assert node.page is not None
            self._pool.share(table, node.page)
        sequence.found += len(new) * PAGE
        sequence.cached = sequence.clean = len(table.pages) * PAGE
        sequence.module = sequence.cached if sequence.drafting else sequence.module
        self._touch(path)

    def store(self, sequence: Sequence) -> None:
        """Keeps the pages that ``sequence`` has filled with its prompt."""
        table, tenant = sequence.table, sequence.tenant
        if table is None or tenant is None:
            return
        read = min(sequence.cached, sequence.module) if sequence.drafting else sequence.cached
        count = min(read // PAGE, _most(sequence))
        path = self._path(sequence)[:count]
        if not count or (len(path) == count and path[-1].page is table.pages[count - 1]):
            return
        keys = self._pages(sequence)
        node = path[-1] if path else self._roots.setdefault(tenant, _Node())
        for at, shared in enumerate(path):
            if shared.page is not table.pages[at]:
                assert shared.page is not None
                self._pool.replace(table, at, shared.page)
        for at in range(len(path), count):
            node = self._insert(node, keys[at], _next(sequence, at), table.pages[at])
            path.append(node)
        self._touch(path)

    def next_page(self, sequence: Sequence) -> Hashable:
        """The same for all sequences that would fill the same page next; None: nobody else could use it."""
        at = sequence.cached // PAGE
        if sequence.tenant is None or at >= _most(sequence) or sequence.prompt_top is not None:
            return None
        return sequence.tenant, tuple(self._pages(sequence)[: at + 1]), _next(sequence, at)

    def evict(self, count: int) -> None:
        """Gives back ``count`` of the pages that no sequence holds, or all if there are fewer; those used last go
        last."""
        for node in list(self._spare(count)):
            self._remove(node)

    def clear(self) -> None:
        """Gives back all pages that no sequence holds."""
        self.evict(len(self))

    def _spare(self, count: int) -> Iterator[_Node]:
        for node in self._order:
            if count == 0:
                return
            if node.page is not None and self._pool.is_spare(node.page):
                yield node
                count -= 1

    def _remove(self, node: _Node) -> None:
        assert not node.children and node.parent is not None and node.page is not None
        variants = node.parent.children[node.key]
        del variants[node.next], self._order[node]
        if not variants:
            del node.parent.children[node.key]
        self._pool.drop(node.page)
        if node.parent.parent is None and not node.parent.children:
            self._roots = {tenant: root for tenant, root in self._roots.items() if root is not node.parent}

    def _insert(self, parent: _Node, key: bytes, following: int | None, page: Tensor) -> _Node:
        node = _Node(parent, key, following, page)
        parent.children.setdefault(key, {})[following] = node
        self._order[node] = None
        self._pool.keep(page)
        return node

    def _path(self, sequence: Sequence) -> list[_Node]:
        """The nodes of the pages that ``sequence`` begins with, as far as they are there."""
        assert sequence.tenant is not None
        node, path = self._roots.get(sequence.tenant), []
        for at, key in enumerate(self._pages(sequence)[: _most(sequence)]):
            variants = node.children.get(key) if node is not None else None
            node = _chosen(variants, _next(sequence, at)) if variants else None
            if node is None:
                break
            path.append(node)
        return path

    def _touch(self, path: list[_Node]) -> None:
        for node in reversed(path):
            self._order.move_to_end(node)

    def _pages(self, sequence: Sequence) -> list[bytes]:
        """The tokens of each page of the prompt."""
        keys = self._keys.get(sequence)
        if keys is None:
            tokens = array("i", sequence.tokens[: sequence.history.prompt]).tobytes()
            keys = [tokens[first : first + _BYTES] for first in range(0, len(tokens), _BYTES)]
            self._keys[sequence] = keys
        return keys


def _most(sequence: Sequence) -> int:
    """Pages of the prompt of ``sequence`` that can be shared."""
    return (sequence.history.prompt - 1) // PAGE


def _next(sequence: Sequence, at: int) -> int | None:
    """The token after page ``at``, for a sequence that drafts."""
    return sequence.tokens[(at + 1) * PAGE] if sequence.drafting else None


def _chosen(variants: dict[int | None, _Node], following: int | None) -> _Node | None:
    """The page for a sequence that drafts and whose next token is this; for one that does not, any."""
    if following in variants:
        return variants[following]
    return None if following is not None else next(iter(variants.values()))
