"""Prompts that are to be read: which sequences get pages, and which read how much in the next step."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from axk1.generation.batch import Sequence
from axk1.generation.pages import Pool, Table, pages_of

NOTED_TOKENS = 128
"""Tokens of a prompt in a step at most where the logits of all of them are wanted: what bounds the memory of these."""


class Prefixes(Protocol):
    """Pages of prompts that were read before, for those that begin in the same way."""

    def find(self, sequence: Sequence) -> None:
        """Gives the pages that come next in the prompt of ``sequence``, as far as they are there, to its table."""
        ...

    def store(self, sequence: Sequence) -> None:
        """Takes note of the pages that ``sequence`` has filled with its prompt."""
        ...

    def next_page(self, sequence: Sequence) -> Hashable:
        """The same for all sequences that would fill the same page next; None: nobody else could use it."""
        ...

    def evict(self, count: int) -> None:
        """Gives back ``count`` of the pages that no sequence holds."""
        ...


class Prompts:
    """Sequences that wait for pages, and those that have some and are reading.

    Nobody overtakes a sequence that waits. Of those that read the oldest has at least half of a step's tokens, so that
    others never hold it up; the rest goes to those that have the least left, so that a long prompt does not hold up
    short ones for long. Long is a prompt that no single step could read.

    Args:
        pool: where pages come from; None: there are none.
        tokens: of prompts in a step at most.
    """

    def __init__(self, pool: Pool | None, tokens: int) -> None:
        self.pool, self.tokens = pool, tokens
        self.piece: int | None = tokens
        """A prompt is cut at multiples of this only, and read in order; None: wherever it suits, and fairly."""
        self.most: int | None = None
        """Sequences that have pages, at most."""
        self.prefixes: Prefixes | None = None
        self.waiting: deque[Sequence] = deque()
        self.reading: list[Sequence] = []
        self._refused: tuple[Sequence, int] | None = None

    def __len__(self) -> int:
        return len(self.waiting) + len(self.reading)

    def add(self, sequence: Sequence) -> None:
        """The last of those that wait; or, with pages, of those that read."""
        if sequence.table is None:
            self.waiting.append(sequence)
        else:
            self.reading.append(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Whether it was here."""
        for queue in (self.waiting, self.reading):
            if sequence in queue:
                queue.remove(sequence)
                return True
        return False

    def admit(self, replying: int, may_draft: Callable[[], bool]) -> None:
        """Lets those read that have been waiting, in order, as long as there is room for all that each may need."""
        while self.waiting and (self.most is None or replying + len(self.reading) < self.most):
            sequence = self.waiting[0]
            if self.pool is not None and self._refused == (sequence, self.pool.returns):
                return  # nothing has been given back since
            sequence.drafting = sequence.may_draft and may_draft()
            if not self._open(sequence):
                return
            self.reading.append(self.waiting.popleft())

    def _open(self, sequence: Sequence) -> bool:
        """Gives ``sequence`` the pages that are there, and a promise of the others, if there is room for them."""
        pool = self.pool
        if pool is None:
            sequence.table = Table()
            return True
        sequence.table = table = pool.open()
        if self.prefixes is not None:
            self.prefixes.find(sequence)
        missing = pool.missing(pages_of(sequence.end) - len(table.pages))
        if missing <= pool.spare:
            if missing and self.prefixes is not None:
                self.prefixes.evict(missing)
            pool.promise(table, sequence.end)
            return True
        pool.close(table)
        sequence.table, sequence.drafting = None, False
        sequence.cached = sequence.clean = sequence.module = sequence.found = 0
        self._refused = sequence, pool.returns
        return False

    def pieces(self, replying: int = 0) -> list[tuple[Sequence, int]]:
        """The sequences that read next, and how many tokens each. A page that several need is read by one of them.

        Where prompts can be cut anywhere, long ones have half of a step's tokens while sequences are ``replying``.
        """
        shares, claimed, left = [], set(), self._room
        left_long = left // 2 if replying and self.piece is None else left
        for sequence, most in self._order():
            if self.prefixes is not None:
                self.prefixes.find(sequence)
                page = self.prefixes.next_page(sequence)
                if page is not None and page in claimed:
                    continue
                claimed.add(page)
            is_long = self._is_long(sequence)
            size = self._size(sequence, min(left, most, left_long if is_long else left))
            if size == 0 and self.piece is not None:
                break
            if size:
                shares.append((sequence, size))
                left, left_long = left - size, left_long - size * is_long
        return self._topped_up(shares, left, left_long)

    @property
    def _room(self) -> int:
        """Tokens of a step: a whole piece at least."""
        return max(self.tokens, self.piece or 1)

    def _order(self) -> list[tuple[Sequence, int]]:
        """Who reads, first things first, and how much at most."""
        if self.piece is not None or len(self.reading) < 2:
            return [(sequence, self._room) for sequence in self.reading]
        oldest, *others = self.reading
        others.sort(key=_unread)
        return [(oldest, -(-self._room // 2)), *((sequence, self._room) for sequence in others)]

    def _size(self, sequence: Sequence, room: int) -> int:
        """Tokens of the next piece, at most ``room``; 0 where it has to be whole and is not."""
        unread = _unread(sequence)
        if self.piece is None:
            return min(unread, room, room if sequence.prompt_top is None else NOTED_TOKENS)
        size = min(unread, self.piece - sequence.cached % self.piece)
        return size if size <= room else 0

    def _topped_up(self, shares: list[tuple[Sequence, int]], left: int, left_long: int) -> list[tuple[Sequence, int]]:
        """What the others leave is the oldest one's."""
        if self.piece is not None or not shares:
            return shares
        (oldest, size), *others = shares
        more = min(left, left_long) if self._is_long(oldest) else left
        return [(oldest, self._size(oldest, size + more)), *others]

    def _is_long(self, sequence: Sequence) -> bool:
        return sequence.history.prompt - sequence.found > self._room


def _unread(sequence: Sequence) -> int:
    return sequence.history.prompt - sequence.cached
