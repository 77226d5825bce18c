"""The parts of SGLang's engine that a forward needs, brought up on a CPU: arguments, groups, loader, cache, attention.

What is replaced, because SGLang has no CPU build on PyPI, and nothing more: the factory of rotary embeddings (the one
for GPUs is used; the one for CPUs knows YaRN only), the choice between MLA's two forms (always the absorbed one, since
the plain PyTorch attention cannot expand a latent cache), and -1 for an expert of another process, which the plain
PyTorch experts take for an index.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.configs.device_config import DeviceConfig
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.layers.moe import fused_moe_native, initialize_moe_config
from sglang.srt.layers.moe.token_dispatcher import standard
from sglang.srt.layers.rotary_embedding import get_rope, rope_variant
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_loader import get_model
from sglang.srt.models import deepseek_v2
from sglang.srt.models.deepseek_common import attention_backend_handler as mla
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import SpawnRanks, get_context, publish
from sglang.srt.server_args import ServerArgs

LONGEST = 64
ALL_EXPERTS = fused_moe_native.moe_forward_native


def arguments(folder: Path, **options: Any) -> ServerArgs:
    """Server arguments for a CPU in fp32."""
    base = dict(device="cpu", dtype="float32", attention_backend="torch_native", skip_tokenizer_init=True)
    return ServerArgs(model_path=str(folder), **{**base, **options})


def experts(layer: Any, x: torch.Tensor, chosen: Any, config: Any) -> torch.Tensor:
    """In place of ``moe_forward_native``: under expert parallelism, by SGLang's other PyTorch code, which can index."""
    mine = chosen.topk_ids >= 0
    if mine.all():
        return ALL_EXPERTS(layer, x, chosen, config)
    output = (chosen.topk_weights * mine, chosen.topk_ids.clamp(min=0), None)
    dispatched: Any = SimpleNamespace(hidden_states=x, topk_output=output)
    return fused_moe_native.fused_moe_forward_native(layer, dispatched).hidden_states


def start(folder: Path, store: Path, rank: int = 0, **options: Any) -> None:
    """Makes this process one of an engine's workers (once a process).

    Args:
        folder: a checkpoint, for the arguments that are derived from it.
        store: where the processes of the engine find each other.
        rank: which of ``tp_size`` processes this is.
    """
    load_plugins()
    rope_variant.get_device = standard.get_device = lambda: "cpu"
    deepseek_v2.get_rope_wrapper = lambda *args, device=None, **kwargs: get_rope(*args, **kwargs)
    fused_moe_native.moe_forward_native = experts
    mla.AttentionBackendRegistry.register("torch_native", mla._dispatch_mla_subtype)
    server_args = arguments(folder, **options)
    publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=rank, gpu_id=rank, dp_rank=None))
    init_distributed_environment(
        world_size=options.get("tp_size", 1),
        rank=rank,
        local_rank=rank,
        distributed_init_method=f"file://{store}",
        backend="gloo",
    )
    initialize_model_parallel(backend="gloo")
    initialize_moe_config()
    initialize_dp_attention(server_args=server_args)


def model_config(folder: Path, is_draft_model: bool = False) -> ModelConfig:
    """SGLang's reading of a checkpoint."""
    return ModelConfig.from_server_args(get_context().server_args, str(folder), is_draft_model=is_draft_model)


def load(folder: Path, is_draft_model: bool = False) -> Any:
    """The model of a checkpoint, or its draft, by SGLang's own loader."""
    config = model_config(folder, is_draft_model)
    return get_model(model_config=config, load_config=LoadConfig(), device_config=DeviceConfig("cpu", 0))


class Session:
    """One sequence on one model: prefills and decodes through the latent cache."""

    def __init__(self, model: Any, layers: int) -> None:
        config = model.config
        self.model, self.length = model, 0
        pool = ReqToTokenPool(1, LONGEST, "cpu", False)
        pool.req_to_token[1] = torch.arange(1, LONGEST + 1)
        sizes = (LONGEST, 1, torch.float32, config.kv_lora_rank, config.qk_rope_head_dim, layers, "cpu", False)
        self.cache = MLATokenToKVPool(*sizes)
        parts = SimpleNamespace(device="cpu", req_to_token_pool=pool, token_to_kv_pool=self.cache)
        self.attention = TorchNativeAttnBackend(parts)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, hidden_states: torch.Tensor | None = None) -> torch.Tensor:
        """States after the final norm, ``[tokens, hidden]``, of ``ids`` ``[tokens]`` behind those seen so far.

        A draft is given the trunk's ``hidden_states`` ``[tokens, hidden]``, as SGLang's speculation does.
        """
        past, count = self.length, len(ids)
        self.length += count
        batch = ForwardBatch(
            forward_mode=ForwardMode.EXTEND if count > 1 else ForwardMode.DECODE,
            batch_size=1,
            input_ids=ids,
            req_pool_indices=torch.tensor([1]),
            seq_lens=torch.tensor([self.length]),
            out_cache_loc=torch.arange(1 + past, 1 + self.length),
            seq_lens_sum=self.length,
            positions=torch.arange(past, self.length),
            extend_prefix_lens=torch.tensor([past]),
            extend_seq_lens=torch.tensor([count]),
            extend_prefix_lens_cpu=[past],
            extend_seq_lens_cpu=[count],
            spec_info=None if hidden_states is None else SimpleNamespace(hidden_states=hidden_states),
        )
        with forward_context(ForwardContext(attn_backend=self.attention), forward_batch=batch):
            self.attention.init_forward_metadata(batch)
            return self.model.model(ids, batch.positions, batch)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """``[tokens, vocab]`` of states after the final norm, by this process's part of the head."""
        return states @ self.model.lm_head.weight[: self.model.config.vocab_size].T
