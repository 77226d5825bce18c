"""How reasoning is ended before the model ends it: at the budget, or when somebody wants the answer now."""

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
        if self.limit is None:
            return scores
        at = input_ids.shape[1] - self._prompt - self.limit
        if not 0 <= at < len(self.reasoning.closing):
            return scores
        reply = input_ids[0, self._prompt : self._prompt + self.limit].tolist()
        if self.reasoning.is_closed(reply):
            return scores
        forced = scores.new_full(scores.shape, -float("inf"))
        forced[:, self.reasoning.closing[at]] = 0.0
        return forced
