"""The tokens of each row of a batch, for whatever chooses the next one by what came before."""

from collections.abc import Sequence

import torch
from torch import Tensor


class History:
    """Prompt and reply of B rows, each from column 0 of ``ids`` on, unpadded.

    ``ids`` ``[B, capacity]`` int64 grows by doubling; a row's columns beyond its length hold drafts, or nothing of use.
    ``lengths`` (and ``counts``, the same on the device ``[B]``) leave drafts out. ``running`` is False for a row whose
    reply has ended.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.lengths = [len(prompt) for prompt in prompts]
        self.running = [True] * len(prompts)
        width = max(self.lengths)
        rows = [list(prompt) + [0] * (width - len(prompt)) for prompt in prompts]
        self.ids = torch.tensor(rows, dtype=torch.int64, device=device)
        self.counts = torch.tensor(self.lengths, device=device)
        self._prompt_counts = self.counts.clone()

    @property
    def newest(self) -> Tensor:
        """Each row's last token, ``[B, 1]``."""
        return self.ids.gather(1, self.counts[:, None] - 1)

    def row(self, row: int, ahead: int = 0) -> Tensor:
        """The tokens of one row and the ``ahead`` drafts behind them, ``[1, L]``: a view."""
        return self.ids[row : row + 1, : self.lengths[row] + ahead]

    def write(self, tokens: Tensor, ahead: int = 0) -> None:
        """Puts ``tokens`` ``[B, T]`` behind each row's tokens and first ``ahead`` drafts; the lengths stay."""
        needed = max(self.lengths) + ahead + tokens.shape[1]
        if needed > self.ids.shape[1]:
            grown = self.ids.new_zeros(self.ids.shape[0], max(needed, 2 * self.ids.shape[1]))
            grown[:, : self.ids.shape[1]] = self.ids
            self.ids = grown
        columns = self.counts[:, None] + ahead
        if tokens.shape[1] > 1:
            columns = columns + torch.arange(tokens.shape[1], device=self.ids.device)
        self.ids.scatter_(1, columns, tokens)

    def advance(self, counts: Sequence[int]) -> None:
        """The first ``counts[row]`` of the tokens written behind each row are now its own."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if len(counts) == 1 or len(set(counts)) == 1:
            self.counts += counts[0]
        else:
            self.counts = torch.tensor(self.lengths, device=self.ids.device)

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
        self.ids, self.counts = self.ids[index], self.counts[index]
        self._prompt_counts = self._prompt_counts[index]
        self.lengths = [self.lengths[row] for row in rows]
        self.running = [self.running[row] for row in rows]
