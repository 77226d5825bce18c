"""The tokens of one sequence, for whatever chooses the next one by what came before."""

from collections.abc import Sequence

import torch
from torch import Tensor


class History:
    """Prompt and reply of a sequence, and the drafts after them, which are not its own yet.

    Tensors are made when somebody asks for them: plain greedy decoding needs none.

    Args:
        prompt: token ids.
        device: where tensors are made.
    """

    __slots__ = ("_device", "_ids", "_written", "drafts", "prompt", "tokens")

    def __init__(self, prompt: Sequence[int], device: torch.device) -> None:
        self.tokens = list(prompt)
        self.prompt = len(self.tokens)
        """Tokens of the prompt."""
        self.drafts: list[int] = []
        self._device = device
        self._ids = torch.empty(1, 0, dtype=torch.int64, device=device)
        self._written = 0

    def prefix(self, ahead: int = 0) -> Tensor:
        """The tokens and the first ``ahead`` drafts, ``[1, L]`` int64: a view, valid until the next call."""
        new = self.tokens[self._written :] + self.drafts[:ahead]
        length = self._written + len(new)
        if length > self._ids.shape[1]:
            grown = self._ids.new_empty(1, max(length, 2 * self._ids.shape[1]))
            grown[:, : self._written] = self._ids[:, : self._written]
            self._ids = grown
        if new:
            self._ids[0, self._written : length] = torch.tensor(new, device=self._device)
        self._written = len(self.tokens)
        return self._ids[:, :length]

    def prefixes(self, positions: int, ahead: int) -> tuple[Tensor, Tensor]:
        """What comes before each of ``positions`` next tokens, of which the first follows ``ahead`` drafts.

        Returns:
            ids ``[positions, L]``, filled up with the first token; and a bool of the same shape that is True at
            generated tokens (drafts included).
        """
        ids = self.prefix(ahead + positions - 1).expand(positions, -1)
        first = len(self.tokens) + ahead
        ends = torch.arange(first, first + positions, device=self._device)[:, None]
        place = torch.arange(ids.shape[1], device=self._device)
        inside = place < ends
        return torch.where(inside, ids, ids[:, :1]), inside & (place >= self.prompt)
