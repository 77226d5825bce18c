"""The head that drafts are read off: some rows of the model's own."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from axk1.kernels.conditions import is_hooked
from axk1.modeling import AXK1ForCausalLM


class DraftHead:
    """The head's rows of the tokens that are worth drafting: most of what a module reads is the head, most of what a
    model writes are few tokens (FR-Spec, arXiv 2502.14856). Other tokens are never drafted, and never lost: the trunk
    checks drafts with its whole head.

    Args:
        lm_head: ``[V, D]``.
        ids: the tokens, each once.

    Raises:
        ValueError: ``ids`` are none, not all different, or not all of the vocabulary.
    """

    def __init__(self, lm_head: Tensor, ids: Sequence[int]) -> None:
        self.vocabulary = len(lm_head)
        if not ids or len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= self.vocabulary:
            raise ValueError(
                f"generation_config.draft_token_ids must be different ids below the vocabulary's {self.vocabulary}; "
                "write them with axk1 tokenizer draft-tokens, or remove the entry to draft from the whole vocabulary."
            )
        self.ids = torch.tensor(sorted(ids), device=lm_head.device)
        """``[N]`` int64, ascending: the first of equal logits is the first of the vocabulary."""
        self.weight = lm_head.detach()[self.ids]
        """``[N, D]``, a copy."""
        self._source = ids, lm_head.data_ptr(), _version(lm_head)

    def is_of(self, lm_head: Tensor, ids: Sequence[int]) -> bool:
        """Whether nothing has changed since it was made from these."""
        mine, pointer, version = self._source
        return mine is ids and (pointer, version) == (lm_head.data_ptr(), _version(lm_head))

    def __call__(self, states: Tensor) -> Tensor:
        """Logits ``[..., V]`` of states ``[..., D]``; -inf for all other tokens."""
        logits = states.new_full((*states.shape[:-1], self.vocabulary), -torch.inf)
        logits[..., self.ids] = nn.functional.linear(states, self.weight)
        return logits


_MADE: WeakKeyDictionary[nn.Module, DraftHead] = WeakKeyDictionary()


def draft_head(model: AXK1ForCausalLM) -> DraftHead | None:
    """The head for drafts of the tokens in ``generation_config.draft_token_ids``, which ``axk1 tokenizer draft-tokens``
    writes; made once, and again when its rows have changed. None where there are no such tokens, or where the head is
    not a plain matrix.

    Raises:
        ValueError: the tokens are none, not all different, or not all of the vocabulary.
    """
    ids, head = getattr(model.generation_config, "draft_token_ids", None), model.lm_head
    if ids is None or type(head) is not nn.Linear or head.bias is not None or is_hooked(head):
        return None
    made = _MADE.get(head)
    if made is None or not made.is_of(head.weight, ids):
        made = _MADE[head] = DraftHead(head.weight, ids)
    return made


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors do not count their changes
