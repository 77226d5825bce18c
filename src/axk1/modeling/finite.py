"""A token is chosen by finite scores or not at all: an argmax over NaN is an answer like any other."""

from typing import Any

from torch import Tensor
from transformers import LogitsProcessor


def check_chosen(values: Tensor) -> None:
    """Refuses a choice by ``values`` ``[...]``: the scores or probabilities of the chosen tokens.

    Raises:
        ValueError: when one of them is not finite.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(
            "The model's scores for the next token are not finite (NaN or infinity), so none can be chosen: check the "
            "weights (axk1 verify), compute in float32 or bfloat16, or take off penalties and biases."
        )


class FiniteScores(LogitsProcessor):
    """The last of ``generate``'s processors: it changes nothing, and refuses what no choice can be made by."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """``scores`` ``[B, V]`` as they are.

        Raises:
            ValueError: a sequence's largest score is not finite.
        """
        check_chosen(scores.amax(-1))  # of NaN and others, the largest is NaN
        return scores
