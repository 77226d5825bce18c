"""Our classes under transformers' own generic model tests. Run by test_upstream.py, inside a copy of those tests."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin  # pyright: ignore[reportMissingImports]
from tests.test_modeling_common import ModelTesterMixin, ids_tensor  # pyright: ignore[reportMissingImports]
from tests.test_training_mixin import TrainingTesterMixin  # pyright: ignore[reportMissingImports]

from axk1 import (
    AXK1Config,
    AXK1ForCausalLM,
    AXK1ForSequenceClassification,
    AXK1ForTokenClassification,
    AXK1Model,
)


class Tester:
    """The small model that the generic tests ask for: the sizes of transformers' own tests of such models."""

    base_model_class, causal_lm_class = AXK1Model, AXK1ForCausalLM
    is_training = True
    batch_size, seq_length = 13, 7
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 2, 99

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def get_config(self) -> AXK1Config:
        return AXK1Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=self.num_hidden_layers,
            first_k_dense_replace=1,
            num_attention_heads=self.num_attention_heads,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=16,
            max_position_embeddings=512,
            num_labels=3,  # pyright: ignore[reportCallIssue]
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[AXK1Config, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class AXK1SuiteTest(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (AXK1Model, AXK1ForCausalLM, AXK1ForSequenceClassification, AXK1ForTokenClassification)
    all_generative_model_classes = (AXK1ForCausalLM,)
    model_tester: Any = None

    def setUp(self) -> None:
        self.model_tester = Tester(self)
