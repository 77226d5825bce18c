"""The thinking budget: at the limit the reasoning is closed, and an answer follows."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from axk1.chat.parser import THINK_CLOSE
from axk1.engine.closing import Closing
from axk1.engine.interface import Reasoning

UNLIMITED = -1


def has_closed(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int]) -> bool:
    """Whether the text of the tokens ``reply`` has left its reasoning, as the parser sees it."""
    return THINK_CLOSE in tokenizer.decode(list(reply), skip_special_tokens=False)


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
        close: list[int] = tokenizer.encode(THINK_CLOSE, add_special_tokens=False)
        is_closed = partial(has_closed, tokenizer)
        self._rows = [
            None if budget == UNLIMITED else Closing(Reasoning(close, is_closed, budget), prompt_length)
            for budget in budgets
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` [batch, length] int64, ``scores`` [batch, vocabulary] float; returns new scores."""
        rows = [
            scores[row : row + 1] if closing is None else closing(input_ids[row : row + 1], scores[row : row + 1])
            for row, closing in enumerate(self._rows)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)
