"""What two processes do together in tests/unit/test_training_ranks.py: started once, each writes what it found."""

from __future__ import annotations

import contextlib
import inspect
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

RANKS = 2


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rank_tokens(rank: int) -> torch.Tensor:
    """A different batch for each rank."""
    from tiny import tokens

    return tokens(2, 9, seed=rank)


def reentrant(rank: int) -> dict[str, torch.Tensor]:
    """Gradients of a step under reentrant checkpointing, with an MTP module, averaged over the ranks."""
    from tiny import small_model

    model = small_model(num_nextn_predict_layers=1).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    parallel, ids = DistributedDataParallel(model), rank_tokens(rank)  # freed, it would reduce nothing
    parallel(input_ids=ids, labels=ids).loss.backward()
    return gradients(model)


def without_labels(rank: int) -> dict[str, torch.Tensor]:
    """Three steps whose loss is computed outside of the model, which has MTP modules and balances its experts."""
    from tiny import small_model

    balance: Any = {"router_aux_loss_coef": 1e-2, "router_bias_update_rate": 1e-2}
    model = small_model(num_nextn_predict_layers=1, **balance).train()
    parallel, ids = DistributedDataParallel(model), rank_tokens(rank)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        logits = parallel(input_ids=ids).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.update_router_biases()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trunk_alone(rank: int) -> dict[str, torch.Tensor]:
    """Two steps over the trunk's states, as a classification head takes them; the MTP module takes no part."""
    from tiny import small_model

    from axk1 import AXK1ForTokenClassification

    model = small_model(cls=AXK1ForTokenClassification, num_nextn_predict_layers=1).train()
    parallel, ids = DistributedDataParallel(model), rank_tokens(rank)
    for _ in range(2):
        parallel(input_ids=ids, labels=ids % 2).loss.backward()
    return gradients(model)


def biases(rank: int) -> dict[str, torch.Tensor]:
    """The routers' biases after a step and ``update_router_biases``, and what this rank had counted."""
    from tiny import small_model

    from axk1.modeling.moe import AXK1Router

    model, ids = small_model(router_bias_update_rate=1e-2).train(), rank_tokens(rank)
    model(input_ids=ids, labels=ids)
    routers = {name: module for name, module in model.named_modules() if isinstance(module, AXK1Router)}
    found = {f"{name}.counted": router.tokens_per_expert.clone() for name, router in routers.items()}
    model.update_router_biases()
    return found | {name: router.e_score_correction_bias.clone() for name, router in routers.items()}


def rows_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four sequences ``[4, 9]`` and their labels, of which each learns another number of tokens."""
    from tiny import tokens

    ids = tokens(4, 9, seed=100 + step)
    return ids, ids.masked_fill(torch.arange(9) < torch.tensor([[1], [3], [5], [7]]), -100)


def train_in_parts(parts: list[slice], world: int = 1, wrap: Any = lambda model: model) -> dict[str, torch.Tensor]:
    """Five steps over four sequences with every objective, as transformers' Trainer takes them: ``parts`` one after the
    other on this process of ``world``, losses divided by the labels of the whole step."""
    from tiny import small_model

    balance: Any = {"router_aux_loss_coef": 0.5, "router_bias_update_rate": 1e-2}
    model = small_model(num_nextn_predict_layers=1, **balance).train()
    parallel = wrap(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(5):
        ids, labels = rows_of(step)
        items = (labels[:, 1:] != -100).sum()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1 or not isinstance(parallel, DistributedDataParallel)
            with contextlib.nullcontext() if last else parallel.no_sync():
                loss = parallel(input_ids=ids[part], labels=labels[part], num_items_in_batch=items).loss
                (world * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_router_biases()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def split(rank: int) -> dict[str, torch.Tensor]:
    """Two sequences of each step on this rank, at once."""
    return train_in_parts([slice(2 * rank, 2 * rank + 2)], RANKS, DistributedDataParallel)


def split_twice(rank: int) -> dict[str, torch.Tensor]:
    """The same one by one: over ranks and micro-batches."""
    return train_in_parts([slice(i, i + 1) for i in (2 * rank, 2 * rank + 1)], RANKS, DistributedDataParallel)


def sharded(**sizes: Any) -> Any:
    """The checkpoint's model, shared out over both ranks by a plan of the configuration."""
    from transformers.distributed.configuration_utils import DistributedConfig

    from axk1 import AXK1ForCausalLM

    if "ep_size" not in inspect.signature(DistributedConfig).parameters:  # transformers before 5.20
        sizes = {"enable_expert_parallel": True} if "ep_size" in sizes else {"tp_size": RANKS}
    how = DistributedConfig(**sizes)
    return AXK1ForCausalLM.from_pretrained(os.environ["AXK1_TEST_CHECKPOINT"], distributed_config=how).eval()


def experts(rank: int) -> dict[str, torch.Tensor]:
    """Logits under ``base_model_ep_plan``, and how many experts are here."""
    from tiny import tokens

    model = sharded(tp_size=RANKS, ep_size=RANKS)
    block = model.model.layers[1].mlp.experts
    held = torch.tensor([block.num_experts, getattr(block.gate_up_proj, "_local_tensor", block.gate_up_proj).shape[0]])
    with torch.no_grad():
        return {"held": held, "logits": model(tokens(2, 7), use_cache=False).logits}


def tensors(rank: int) -> dict[str, torch.Tensor]:
    """Logits under ``base_model_tp_plan``, and how wide a shared expert is here."""
    from tiny import tokens

    model = sharded(tp_size=RANKS)
    weight = model.model.layers[1].mlp.shared_experts.down_proj.weight
    held = torch.tensor(getattr(weight, "_local_tensor", weight).shape)
    with torch.no_grad():
        logits = model(tokens(2, 7), use_cache=False).logits
    return {"held": held, "logits": logits.full_tensor() if hasattr(logits, "full_tensor") else logits}


SCENES = (reentrant, without_labels, trunk_alone, biases, split, split_twice, experts, tensors)


def play(rank: int, folder: str) -> None:
    """One process: every scene, each result in a file of its own; what a scene raises is its result."""
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    for scene in SCENES:
        try:
            found: Any = scene(rank)
        except Exception as error:  # shown by the scene's test
            found = f"{type(error).__name__}: {error}"
        torch.save(found, Path(folder) / f"{scene.__name__}.{rank}")
    dist.destroy_process_group()
