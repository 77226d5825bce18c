"""The thinking budget: at the limit the reasoning is closed, and an answer follows."""

from collections.abc import Sequence

from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from axk1.chat.parser import THINK_CLOSE

UNLIMITED = -1


class ThinkingBudget(LogitsProcessor):
    """Forces ``</think>`` on every row that is still reasoning after its budget of generated tokens.

    Rows are looked at only at their limit, so the cost is one decoding of each row's reasoning, and nothing is
    remembered between steps. Whether a row has closed by itself is decided on the text, as the parser does.

    Args:
        tokenizer: the checkpoint's tokenizer.
        prompt_length: columns of ``input_ids`` before the first generated token, padding included.
        budgets: reasoning tokens allowed, one a row; -1 for no limit (and for Non-Think rows).

    Raises:
        ValueError: for a budget that is neither -1 nor at least 1.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int, budgets: Sequence[int]):
        if any(budget != UNLIMITED and budget < 1 for budget in budgets):
            raise ValueError(
                f"Thinking budgets are {list(budgets)}; each must be -1 (unlimited) or at least 1 "
                "(for 0, render Non-Think)."
            )
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._budgets = list(budgets)
        self._close_ids: list[int] = tokenizer.encode(THINK_CLOSE, add_special_tokens=False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` [batch, length] int64, ``scores`` [batch, vocabulary] float; returns new scores."""
        step = input_ids.shape[1] - self._prompt_length
        forced = {
            row: self._close_ids[step - budget]
            for row, budget in enumerate(self._budgets)
            if budget != UNLIMITED
            and 0 <= step - budget < len(self._close_ids)
            and self._is_open(input_ids[row], budget)
        }
        if not forced:
            return scores
        rows, tokens = list(forced), list(forced.values())
        scores = scores.clone()
        scores[rows] = float("-inf")
        scores[rows, tokens] = 0.0
        return scores

    def _is_open(self, ids: Tensor, budget: int) -> bool:
        reasoning = ids[self._prompt_length : self._prompt_length + budget]
        return THINK_CLOSE not in self._tokenizer.decode(reasoning, skip_special_tokens=False)
