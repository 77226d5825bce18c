"""An MTP module for a finished checkpoint: the trunk stays, to the bit, and the module learns on its states.

The released A.X K1 has none. The trunk runs over the texts once, layer by layer (:mod:`axk1.train.states`); what is
trained afterwards is one decoder layer, beside embedding and head, so that neither memory nor a step knows of the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, set_seed

from axk1.checkpoint.names import expert_slices
from axk1.checkpoint.verify import with_mtp_layers
from axk1.config import AXK1Config
from axk1.files import write_text
from axk1.layerwise.weights import Weights
from axk1.load import load_tokenizer
from axk1.modeling.mtp import AXK1MTPLayer
from axk1.modeling.norm import AXK1RMSNorm
from axk1.modeling.objectives import IGNORE, label_shares, shifted_labels, token_loss
from axk1.modeling.outputs import AXK1CausalLMOutput
from axk1.pretrained import AXK1ForCausalLM
from axk1.train.examples import Example
from axk1.train.packing import PackedRows, packed_whole, save_rows
from axk1.train.progress import Say
from axk1.train.recipe import Settings, Stage
from axk1.train.stages import fit, products_dtype
from axk1.train.states import States, trunk_states, trunk_weights

TRAINING = "training"
OWN = ("enorm", "hnorm", "eh_proj", "shared_head")
"""What a module has beside a decoder layer."""


class Texts(NamedTuple):
    """What the module learns, and by domain what it is measured on and never sees."""

    train: Sequence[Example]
    held_out: Mapping[str, Sequence[Example]]


class ModuleAlone(AXK1ForCausalLM):
    """Embedding, head and one MTP module of a model whose trunk has run already; names are those of the whole."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
        mtp_drafts: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> AXK1CausalLMOutput:
        """The MTP loss, mean over ``mtp_drafts`` places.

        Args:
            states: ``[batch, tokens, hidden]`` of the trunk after its final norm.
            input_ids, position_ids, labels: ``[batch, tokens]`` of packed rows.
        """
        record = self._record_routers(None, self._balances(True))
        made = self._run_mtp(states, input_ids, None, None, position_ids, drafts=mtp_drafts, packed=True, **record)
        losses = [
            token_loss(state, self.lm_head, shifted_labels(labels, position_ids, depth + 1), num_items_in_batch)
            for depth, state in enumerate(made.mtp_states or (), 1)
        ]
        loss = torch.stack(losses).mean()
        result = AXK1CausalLMOutput(loss=loss, mtp_loss=loss)
        if self._balances(True):
            result.router_logits, result.router_indices = made.router_logits, made.router_indices  # pyright: ignore
            shares = None if num_items_in_batch is None else label_shares(labels, False, num_items_in_batch)
            self._add_router_losses(result, torch.ones_like(input_ids), shares)
        return result


class StatesAndRows(Dataset):
    """Packed rows ``first`` to ``last`` with the trunk's states, in float32."""

    def __init__(self, rows: PackedRows, states: States, first: int, last: int) -> None:
        self.rows, self.states, self.first, self.last = rows, states, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.first + index
        return {**self.rows[row], "states": self.states.read(row, row + 1)[0].float()}


def graft(
    source: Path,
    texts: Texts,
    folder: Path,
    settings: Settings,
    stage: Stage,
    say: Say = lambda line: None,
) -> Path:
    """Trains an MTP module for the checkpoint in ``source`` and returns its file, ``folder/module.safetensors``.

    ``folder/acceptance.json`` has the acceptance by domain and place; where ``source`` has a module of its own, that
    one's too. A run that was cut off goes on.

    Raises:
        ValueError: a faulty checkpoint, or texts of which none fills a row.
        KeyboardInterrupt: Ctrl-C; the same call goes on.
    """
    module = folder / "module.safetensors"
    if module.is_file():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    weights, tokenizer = trunk_weights(source), load_tokenizer(source)
    parts = _packed(texts, tokenizer, settings.row_tokens, folder)
    rows = PackedRows(folder / "data.npy")
    states = trunk_states(weights, rows, folder, getattr(torch, products_dtype(settings)), say)
    set_seed(settings.seed)
    model = module_alone(weights, settings)
    data = StatesAndRows(rows, states, *parts.pop(TRAINING))
    final = folder / "final"
    if not (final / "config.json").is_file():
        fit(model, data, tokenizer, settings, stage, folder, say)
    model.load_state_dict(load_file(final / "model.safetensors"), strict=False)
    drafts = max(stage.drafts, 1)
    held = {domain: StatesAndRows(rows, states, *part) for domain, part in parts.items()}
    report = {"grafted": acceptance(model, held, drafts)}
    if weights.mtp_layers:
        weights.fill(model.model.mtp_layers[0], _base(weights.config), torch.float32)
        report["own"] = acceptance(model, held, drafts)
        model.load_state_dict(load_file(final / "model.safetensors"), strict=False)
    write_text(folder / "acceptance.json", json.dumps(report, indent=2) + "\n")
    _save_module(model, weights, module)
    states.path.unlink()
    return module


def module_alone(weights: Weights, settings: Settings) -> ModuleAlone:
    """A new module that begins as a copy of the trunk's last layer, with the trunk's embedding and head, frozen."""
    config = with_mtp_layers(weights.config, 1)
    config.router_bias_update_rate = settings.router_bias_update_rate
    with torch.device("meta"):
        model = ModuleAlone(config)
    depth = config.num_hidden_layers
    layer = AXK1MTPLayer(config, depth)
    model.model.layers = nn.ModuleList([*(nn.Identity() for _ in range(depth)), layer])
    model.model.norm = AXK1RMSNorm(config.hidden_size).requires_grad_(False)  # the states have been through it
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    weights.fill(model.model.embed_tokens, "model.embed_tokens", torch.float32)
    weights.fill(model.lm_head, "lm_head", torch.float32)
    begin(layer, weights)
    layer.requires_grad_(True)
    return model


@torch.no_grad()
def begin(layer: AXK1MTPLayer, weights: Weights) -> None:
    """Gives ``layer`` the trunk's last block and final norm, and an ``eh_proj`` that lets the trunk's state through."""
    hidden, last = weights.config.hidden_size, f"model.layers.{weights.config.num_hidden_layers - 1}"
    weights.fill(cast(nn.Module, layer), last, torch.float32, without=OWN)
    layer.shared_head.norm.weight.copy_(weights.tensor("model.norm.weight", torch.float32))
    layer.eh_proj.weight[:, :hidden].normal_(0, 0.5 * hidden**-0.5)
    layer.eh_proj.weight[:, hidden:].copy_(torch.eye(hidden))


@torch.no_grad()
def acceptance(model: ModuleAlone, held: Mapping[str, StatesAndRows], drafts: int) -> dict[str, Any]:
    """By domain, and over all: the share of places in replies where the first draft is what the trunk wrote, the first
    two, ..., and how many places there are."""
    model.eval()
    none = np.zeros((drafts, 2), dtype=int)
    found = {domain: sum((_hits(model, row, drafts) for row in rows), none) for domain, rows in held.items()}
    found["all"] = sum(found.values(), none)
    return {
        domain: {"at": [round(right / max(count, 1), 4) for right, count in hits.tolist()], "count": int(hits[0, 1])}
        for domain, hits in found.items()
    }


def _hits(model: ModuleAlone, row: dict[str, torch.Tensor], drafts: int) -> np.ndarray:
    """``[drafts, 2]``: places where all drafts up to this one are right, and places that have so many tokens after."""
    ids, positions, states, labels = (row[name][None] for name in ("input_ids", "position_ids", "states", "labels"))
    made = model._run_mtp(states, ids, None, None, positions, drafts=drafts, packed=True)
    counted = right = shifted_labels(labels, positions, 1) != IGNORE
    hits = []
    for depth, drafted in enumerate(made.mtp_states or (), 1):
        targets = shifted_labels(labels, positions, depth + 1)
        counted = counted & (targets != IGNORE)
        right = right & (model.lm_head(drafted).argmax(-1) == targets)
        hits.append((int((right & counted).sum()), int(counted.sum())))
    return np.array(hits)


def _packed(
    texts: Texts, tokenizer: PreTrainedTokenizerFast, row_tokens: int, folder: Path
) -> dict[str, tuple[int, int]]:
    """Packs everything into ``folder/data.npy``; which rows are whose."""
    place = folder / "parts.json"
    if place.is_file():
        return {name: tuple(part) for name, part in json.loads(place.read_text(encoding="utf-8")).items()}
    pad = cast(int, tokenizer.pad_token_id)
    groups = {TRAINING: texts.train, **texts.held_out}
    arrays = {name: packed_whole(examples, row_tokens, pad) for name, examples in groups.items()}
    ends = np.cumsum([0, *(len(array) for array in arrays.values())]).tolist()
    parts = dict(zip(arrays, pairwise(ends), strict=True))
    if not len(arrays[TRAINING]):
        raise ValueError(f"There is nothing to learn: no example has at most {row_tokens} tokens.")
    save_rows(folder / "data.npy", np.concatenate(list(arrays.values())))
    write_text(place, json.dumps(parts))
    return parts


def _save_module(model: ModuleAlone, weights: Weights, path: Path) -> None:
    """The module's tensors in layout and dtype of the checkpoint."""
    base, tensors = _base(weights.config), {}
    for name, value in model.model.mtp_layers[0].state_dict().items():
        key = f"{base}.{name}" if weights.prefix else f"{base}.{name}".removeprefix("model.")
        if name.endswith("e_score_correction_bias"):
            if value.any():
                tensors[key] = value
            continue
        value = value.to(weights.dtype)
        slices = expert_slices(weights.config, key) if weights.layout == "per_expert" else []
        tensors |= {part.name: value[part.expert, part.start : part.stop].clone() for part in slices} or {key: value}
    beside = path.with_suffix(".part")
    save_file(tensors, beside, metadata={"format": "pt"})
    beside.replace(path)


def _base(config: AXK1Config) -> str:
    return f"model.layers.{config.num_hidden_layers}"
