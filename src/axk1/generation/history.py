"""The tokens of each row of a batch, for whatever chooses the next one by what came before."""

from collections.abc import Sequence

import torch
from torch import Tensor

UNWRITTEN = 64
"""Steps whose tokens wait for somebody to ask for ``ids``."""


class History:
    """Prompt and reply of B rows, each from column 0 of ``ids`` on, unpadded.

    ``lengths`` (and ``counts``, the same on the device ``[B]``) leave drafts out. ``running`` is False for a row whose
    reply has ended.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.lengths = [len(prompt) for prompt in prompts]
        self.running = [True] * len(prompts)
        width = max(self.lengths)
        rows = [list(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
        self._ids = torch.tensor(rows, dtype=torch.int64, device=device)
        self._unwritten: list[tuple[list[int], int, Tensor]] = []  # lengths then, drafts before, tokens
        self._prompt_counts = self.counts
        self.newest = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        """Each row's last token, ``[B, 1]``; of ended rows any."""

    @property
    def ids(self) -> Tensor:
        """``[B, capacity]`` int64; a row's columns beyond its length hold drafts, or nothing of use."""
        self._write_all()
        return self._ids

    def _write_all(self) -> None:
        """Puts what waits into place."""
        for lengths, ahead, tokens in self._unwritten:
            needed = max(lengths) + ahead + tokens.shape[1]
            if needed > self._ids.shape[1]:
                grown = self._ids.new_zeros(self._ids.shape[0], max(needed, 2 * self._ids.shape[1]))
                grown[:, : self._ids.shape[1]] = self._ids
                self._ids = grown
            places = [[length + ahead + t for t in range(tokens.shape[1])] for length in lengths]
            self._ids.scatter_(1, torch.tensor(places, device=tokens.device), tokens)
        self._unwritten.clear()

    @property
    def counts(self) -> Tensor:
        """``lengths`` on the device, ``[B]``."""
        return torch.tensor(self.lengths, device=self._ids.device)

    def row(self, row: int, ahead: int = 0) -> Tensor:
        """The tokens of one row and the ``ahead`` drafts behind them, ``[1, L]``: a view."""
        return self.ids[row : row + 1, : self.lengths[row] + ahead]

    def write(self, tokens: Tensor, ahead: int = 0) -> None:
        """Puts ``tokens`` ``[B, T]`` behind each row's tokens and first ``ahead`` drafts; the lengths stay."""
        self._unwritten.append((self.lengths, ahead, tokens))

    def advance(self, tokens: Tensor, counts: Sequence[int]) -> None:
        """Each row takes the first ``counts[row]`` of ``tokens`` ``[B, T]`` for its own."""
        self.write(tokens)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        most = max(counts)
        if min(counts) == most > 0:
            self.newest = tokens if most == tokens.shape[1] == 1 else tokens[:, most - 1 : most]
        elif most:
            last = torch.tensor(counts, device=tokens.device)[:, None] - 1
            self.newest = tokens.gather(1, last.clamp(min=0))
        if len(self._unwritten) > UNWRITTEN:
            self._write_all()

    def prefixes(self, positions: int, ahead: int) -> tuple[Tensor, Tensor]:
        """What comes before each of ``positions`` next tokens, of which the first follows ``ahead`` drafts.

        Returns:
            ids ``[B * positions, L]``, filled up with the row's own first token; and a bool of the same shape that is
            True at generated tokens (drafts included).
        """
        longest = max(self.lengths) + ahead + positions - 1
        ids = self.ids[:, :longest].repeat_interleave(positions, 0)
        steps = torch.arange(ahead, ahead + positions, device=ids.device)
        ends = (self.counts[:, None] + steps).view(-1, 1)
        column = torch.arange(longest, device=ids.device)
        inside = column < ends
        generated = inside & (column >= self._prompt_counts.repeat_interleave(positions)[:, None])
        return torch.where(inside, ids, ids[:, :1]), generated

    def select(self, rows: Sequence[int]) -> None:
        """Keeps ``rows``, in their order."""
        index = torch.tensor(rows, device=self.ids.device)
        self._ids, self.newest = self.ids[index], self.newest[index]
        self._prompt_counts = self._prompt_counts[index]
        self.lengths = [self.lengths[row] for row in rows]
        self.running = [self.running[row] for row in rows]
