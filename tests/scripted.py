"""Tiny models that can talk: a byte-level tokenizer, and scripted models whose replies are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from axk1 import AXK1Config, AXK1ForCausalLM
from axk1.chat import Reply

SPECIALS = {
    0: "<|endoftext|>",
    1: "<|pad|>",
    12: "<|im_start|>",
    13: "<|im_end|>",
    14: "<think>",
    15: "</think>",
    16: "<tool_call>",
    17: "</tool_call>",
}
TEMPLATE = Path(__file__).parents[1] / "src/axk1/tokenizer/chat_template.jinja"
VOCAB_SIZE = 320
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    max_position_embeddings=4096,
    num_nextn_predict_layers=1,
    bos_token_id=256,
    pad_token_id=257,
    eos_token_id=[269, 256],
)


def make_tokenizer():
    """A byte-level tokenizer without merges: 256 bytes (id = value), then 64 special tokens."""
    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in bytes_to_unicode().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [SPECIALS.get(offset, f"<|reserved_{offset}|>") for offset in range(64)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def make_model(**overrides):
    """A tiny random model of the architecture, with one MTP module."""
    torch.manual_seed(0)
    return AXK1ForCausalLM(AXK1Config(**{**SIZES, **overrides})).eval()


def make_scripted_model(successors: dict[int, int]):
    """A model that writes ``successors[t]`` after token t: one-hot embeddings, layers that add nothing, and a head that
    holds the table. Its MTP module sees the token ahead, so all its drafts are right."""
    model = make_model(hidden_size=VOCAB_SIZE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB_SIZE))
        model.lm_head.weight.zero_()
        for token, following in successors.items():
            model.lm_head.weight[following, token] = 1.0
        eh_proj = model.model.mtp_layers[0].eh_proj.weight
        eh_proj.copy_(torch.cat([torch.eye(VOCAB_SIZE), torch.zeros(eh_proj.shape[0], eh_proj.shape[0])], 1))
    return model


def script(reasoning: str, answer: str, closes: bool) -> dict[int, int]:
    """Successors for a Think reply of ``reasoning`` (repeated for ever unless it closes) and ``answer`` after it or
    alone; no byte may occur twice."""
    ids = {name: 256 + offset for offset, name in SPECIALS.items()}
    thought, said = list(reasoning.encode()), list(answer.encode())
    assert len(set(thought + said)) == len(thought + said), "a scripted model knows only the last token"
    chain = dict(zip([ids["<think>"], *thought], thought, strict=False))
    chain[thought[-1]] = ids["</think>"] if closes else thought[0]
    return chain | dict(zip([ids["</think>"], *said], [*said, ids["<|im_end|>"]], strict=True))


def same(one: Reply, other: Reply) -> bool:
    """Whether two replies differ in nothing but the time they took."""
    return replace(one, seconds=0) == replace(other, seconds=0)
