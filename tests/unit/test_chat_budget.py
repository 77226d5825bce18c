"""The thinking budget, on any batch and any vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import make_tokenizer

from axk1.chat.budget import ThinkingBudget

TOKENIZER = make_tokenizer()
CLOSE = 256 + 15

rows = st.lists(st.sampled_from([97, 98, CLOSE, *b"</think>"]), min_size=12, max_size=12)


@settings(deadline=None)
@given(generated=st.lists(rows, min_size=1, max_size=4), data=st.data())
def test_budget_closes_exactly_the_open_rows(generated, data):
    budgets = [data.draw(st.sampled_from([-1, 1, 3, 5])) for _ in generated]
    prompt = torch.full((len(generated), 3), 97)
    budget = ThinkingBudget(TOKENIZER, 3, budgets)
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        written = torch.tensor(generated)[:, :step]
        scores = torch.randn(len(generated), 320, generator=generator)
        result = budget(torch.cat([prompt, written], 1), scores.clone())
        for row, limit in enumerate(budgets):
            is_open = "</think>" not in TOKENIZER.decode(generated[row][:step])
            if step == limit and is_open:
                assert result[row].argmax() == CLOSE
                assert result[row].exp().count_nonzero() == 1
            else:
                assert torch.equal(result[row], scores[row])


def test_budget_with_a_tag_of_several_tokens():
    """A vocabulary without the tag as a token: it is written out, once."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = TOKENIZER.backend_tokenizer
    plain = Tokenizer(models.BPE(vocab={k: v for k, v in bare.get_vocab().items() if v < 256}, merges=[]))
    plain.pre_tokenizer, plain.decoder = bare.pre_tokenizer, bare.decoder
    budget = ThinkingBudget(PreTrainedTokenizerFast(tokenizer_object=plain), 0, [2])
    ids = list(b"xy")
    for _ in range(9):
        ids.append(int(budget(torch.tensor([ids]), torch.eye(256)[[ord("z")]]).argmax()))
    assert bytes(ids) == b"xy</think>z"


def test_budget_zero_is_refused():
    with pytest.raises(ValueError, match="render Non-Think"):
        ThinkingBudget(TOKENIZER, 1, [0])
