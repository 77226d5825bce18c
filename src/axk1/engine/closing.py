"""How reasoning is ended before the model ends it: at the budget, or when somebody wants the answer now."""

from collections.abc import Sequence

from torch import Tensor
from transformers import LogitsProcessor

from axk1.engine.interface import Reasoning


class Closing(LogitsProcessor):
    """Lets nothing but the closing tokens follow, where the reasoning is still open at its limit.

    What it does to a position depends on the tokens before it and the limit, so that drafts are held to it as well.

    Args:
        reasoning: how it is closed, and its budget.
        prompt: tokens of the prompt.
    """

    def __init__(self, reasoning: Reasoning, prompt: int) -> None:
        self.reasoning, self._prompt = reasoning, prompt
        self.limit = reasoning.budget
        """Tokens of the reply after which the reasoning is closed; None: it is not."""

    def end_at(self, length: int) -> None:
        """Closes what is still open after ``length`` tokens of the reply, if nothing closes it earlier."""
        self.limit = length if self.limit is None else min(self.limit, length)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` ``[1, L]`` int64, ``scores`` ``[1, V]``; returns new scores."""
        if self._place(input_ids.shape[1] - self._prompt) is None:
            return scores
        token = self.forced(input_ids[0, self._prompt :].tolist())
        if token is None:
            return scores
        forced = scores.new_full(scores.shape, -float("inf"))
        forced[:, token] = 0.0
        return forced

    def forced(self, reply: Sequence[int]) -> int | None:
        """The only token that can follow ``reply``; None: any."""
        place = self._place(len(reply))
        if place is None or self.reasoning.is_closed(reply[: self.limit]):
            return None
        return self.reasoning.closing[place]

    def _place(self, length: int) -> int | None:
        """Of the closing token whose turn it is after ``length`` tokens of a reply that is still open."""
        at = -1 if self.limit is None else length - self.limit
        return at if 0 <= at < len(self.reasoning.closing) else None
