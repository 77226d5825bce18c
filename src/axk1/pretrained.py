"""The classes users load: the mathematics of ``modeling`` with A.X K1's checkpoint reading and writing.

``from_pretrained`` is transformers' own, verified before and after; both layouts (``checkpoint/names.py``) are read,
with ``device_map``, offload and sharding. ``save_pretrained`` writes the released layout unless told otherwise.
Quantised checkpoints (``quantized/``) are read into quantised modules and written back as they are, expert by expert.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter
from transformers.utils import logging

from axk1 import modeling
from axk1.checkpoint.compressed import read_plan
from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.files import Stored, StoredTensor, inside, load_config, open_checkpoint, read_headers, read_json
from axk1.checkpoint.guard import check_kernels
from axk1.checkpoint.names import FUSED, HEAD_KEYS, LAYOUTS, Layout, detect_layout
from axk1.checkpoint.verify import check_loaded, check_tensors
from axk1.checkpoint.write import staged_folder
from axk1.files import write_text
from axk1.kernels import dispatch
from axk1.kernels.lossless import is_packed
from axk1.kernels.streamed import leave_out_experts
from axk1.modeling.moe import AXK1Experts, AXK1Router
from axk1.quantized.loading import converters as quantized_converters
from axk1.quantized.loading import with_our_method, with_shapes
from axk1.quantized.modules import QuantizedExperts
from axk1.quantized.plan import plan_of

logger = logging.get_logger(__name__)
dispatch.install()
HUGE_PAGE = 2 * 2**20
"""Bytes. torch asks for huge pages where an allocation fills one."""
_CHECK_VALUES: ContextVar[bool] = ContextVar("check_values", default=False)
"""What the ``from_pretrained`` that runs now was asked for; its inner steps are transformers' and carry no more."""
_WITHOUT_EXPERTS: ContextVar[bool] = ContextVar("without_experts", default=False)
"""The same."""
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def expert_converters() -> list[WeightConverter]:
    """The per-expert layout in transformers' terms: stack the experts, then join gate and up; reversed on saving."""
    return [
        WeightConverter(
            source_patterns=[f"mlp.experts.*.{part}.weight" for part in parts],
            target_patterns=f"mlp.experts.{fused}",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)] if len(parts) > 1 else [MergeModulelist(dim=0)],
        )
        for fused, parts in FUSED.items()
    ]


class CheckpointMixin(PreTrainedModel if TYPE_CHECKING else object):
    """Reading and writing for every A.X K1 class. Nothing global is changed: transformers' own classes work beside."""

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """transformers' own choice; where nothing is asked for, :func:`axk1.kernels.dispatch.run_experts`."""
        chosen = super().get_correct_experts_implementation(requested_experts)
        return dispatch.EXPERTS if requested_experts is None and chosen == "grouped_mm" else chosen

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        check_values: bool = False,
        without_experts: bool = False,
        **kwargs: Any,
    ) -> Self:
        """transformers' ``from_pretrained`` with all its arguments; either layout, safetensors only, no remote code.

        Args:
            check_values: also read every weight and look for NaN and infinity, as ``axk1 verify`` does. Weights whose
                number format gets narrower, as float32 in float16, are always looked at.
            without_experts: leaves out the routed experts, and MTP modules, which have some of their own:
                :func:`axk1.experts.store.stream_experts` reads them as they are needed.

        Raises:
            CheckpointError: anything wrong with the files; names file and tensor, and no model is returned.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise CheckpointError("use_safetensors=False asks for pickle files, which can run code and are never read.")
        if pretrained_model_name_or_path is not None and kwargs.get("gguf_file") is None:
            _check_local(Path(pretrained_model_name_or_path), kwargs)
            kwargs = _with_quantized_config(cls, pretrained_model_name_or_path, kwargs)
        asked, left_out = _CHECK_VALUES.set(check_values), _WITHOUT_EXPERTS.set(without_experts)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, use_safetensors=True, **kwargs)
        finally:
            _CHECK_VALUES.reset(asked)
            _WITHOUT_EXPERTS.reset(left_out)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        **kwargs: Any,
    ) -> Any:
        """The step of ``from_pretrained`` where the files are known and the model is still on the meta device."""
        if getattr(model, "_hf_peft_config_loaded", False):  # this is an adapter's file
            return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        stored = _stored(state_dict, checkpoint_files)
        layout = detect_layout(stored.tensors, stored.files[0].parent)
        plan = plan_of(model.config)
        if plan or not getattr(load_config.hf_quantizer, "pre_quantized", False):
            found = check_tensors(stored, model.config, shapes=not load_config.ignore_mismatched_sizes)  # pyright: ignore[reportArgumentType]
            if not load_config.ignore_mismatched_sizes:
                _check_heads(model, stored)
            _fit_mtp_layers(model, found.mtp_layers, load_config.device_map)
            ignored = model._keys_to_ignore_on_load_missing or set()
            model._keys_to_ignore_on_load_missing = {*ignored, *(re.escape(name) for name in found.absent)}
            surplus = model._keys_to_ignore_on_load_unexpected or set()
            model._keys_to_ignore_on_load_unexpected = {*surplus, r"(weight|proj)_shape$"}  # of packed weights
        if _WITHOUT_EXPERTS.get():
            _leave_out_experts(model, load_config.device_map)
        if layout == "per_expert":
            converters = quantized_converters() if plan else expert_converters()
            mapping = [*(load_config.weight_mapping or []), *converters]
            load_config = dataclasses.replace(load_config, weight_mapping=mapping)
        result = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        if checkpoint_files is not None:
            check_loaded(model.state_dict(), stored, everything=_CHECK_VALUES.get())
            _into_own_memory(model, everything=_WITHOUT_EXPERTS.get())
        return result

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        *,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' ``save_pretrained`` into a folder that is never seen half-written.

        Args:
            layout: ``released`` (fused experts; the default), however it was loaded, or ``per_expert``, in which the
                experts of one fused tensor stay in one file whatever ``max_shard_size`` (``axk1 convert`` splits
                them). A quantised model has ``per_expert`` only.
            kwargs: as in transformers (``max_shard_size``, ``variant``, ``push_to_hub``, ...).

        Raises:
            ValueError: an unknown layout, a request for pickle files, or packed weights.
        """
        if is_packed(self):
            raise ValueError(
                "Packed weights are kept in memory only: call axk1.kernels.lossless.unpack_weights(model) first."
            )
        quantized = plan_of(self.config) is not None
        layout = layout or ("per_expert" if quantized else "released")
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}.")
        if quantized and (layout != "per_expert" or state_dict is not None):
            raise ValueError("A quantised model is saved in layout='per_expert', from its own state_dict.")
        if kwargs.pop("safe_serialization", True) is False:
            raise ValueError("safe_serialization=False asks for pickle files; only safetensors are written.")
        _set_layout(self, layout)
        state_dict = self.tensors_to_save(state_dict)
        target = Path(save_directory).resolve()
        if kwargs.get("distributed_checkpoint"):  # every rank writes into one folder
            return super().save_pretrained(target, is_main_process, state_dict, **kwargs)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.name)
        with staged_folder(target) as staged:
            super().save_pretrained(staged, is_main_process, state_dict, **kwargs)
            _forget_remote_code(staged / "config.json")

    def tensors_to_save(self, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """``state_dict`` (the model's) as ``save_pretrained`` writes it, but for the layout of its experts."""
        tensors = _without_unused_biases(self, self.state_dict() if state_dict is None else state_dict)
        return with_shapes(self, tensors) if plan_of(self.config) else tensors


def _with_quantized_config(cls: Any, name: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``kwargs``, for a quantised checkpoint with a ``config`` that makes transformers load it into our modules."""
    given = kwargs.get("config")
    if kwargs.get("quantization_config") is not None:  # another way of loading it is asked for
        return kwargs
    if not isinstance(given, PreTrainedConfig):
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        try:
            values, _ = PreTrainedConfig.get_config_dict(given or name, **hub)
        except OSError:  # an adapter's folder, or one that transformers has words for
            return kwargs
        check_kernels(values, Path(name) / "config.json")
        if "quantization_config" not in values:
            return kwargs
        rest = {key: value for key, value in kwargs.items() if key != "config"}
        given, rest = cls.config_class.from_pretrained(given or name, return_unused_kwargs=True, **rest)
        kwargs = {**hub, **rest, "config": given}
    if plan_of(given) is None:
        return kwargs
    return {"offload_buffers": True, **kwargs, "config": with_our_method(given)}  # the weights are buffers


def _check_local(folder: Path, kwargs: dict[str, Any]) -> None:
    """Checks the files of a local checkpoint before transformers opens any; adapters are transformers' business."""
    subfolder = kwargs.get("subfolder") or ""
    if not folder.is_dir() or (folder / subfolder / "adapter_config.json").is_file():
        return
    config = kwargs.get("config") or load_config(folder / subfolder)
    read_plan(config, folder / subfolder)
    named = getattr(config, "transformers_weights", None)  # transformers reads this file instead of model.safetensors
    if named is not None:
        inside(folder / subfolder, named, folder / subfolder / "config.json")
    else:
        open_checkpoint(folder, subfolder, kwargs.get("variant"))


def _stored(state_dict: dict | None, checkpoint_files: list[str] | None) -> Stored:
    if checkpoint_files is not None:
        return read_headers(map(Path, checkpoint_files))
    words = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
    place = Path("state_dict")
    tensors = {
        name: StoredTensor(place, words.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in (state_dict or {}).items()
    }
    return Stored([place], tensors)


def _check_heads(model: PreTrainedModel, stored: Stored) -> None:
    """Classification heads take their shape from ``num_labels``, which the table of tensors does not know."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in HEAD_KEYS}
    for name, shape in shapes.items():
        if name in stored.tensors and stored.tensors[name].shape != shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(stored.tensors[name].shape)}, the model {list(shape)}. Give the "
                "stored num_labels, or ignore_mismatched_sizes=True for a new head.",
                stored.tensors[name].file,
                name,
            )


def _fit_mtp_layers(model: PreTrainedModel, held: int, device_map: dict[str, Any] | None) -> None:
    """Drops MTP layers that the file does not hold; says so when it holds more than the configuration asks for."""
    wanted: int = model.config.num_nextn_predict_layers
    if held > wanted:
        logger.warning(f"{held - wanted} of {held} MTP layers in the checkpoint are left out: {wanted} configured.")
    if held or not wanted:
        return
    logger.warning(f"The checkpoint holds no MTP layer, but {wanted} configured: num_nextn_predict_layers is now 0.")
    _drop_mtp_layers(model, device_map)


def _drop_mtp_layers(model: PreTrainedModel, device_map: dict[str, Any] | None) -> None:
    config, wanted, trunk = model.config, model.config.num_nextn_predict_layers, model.base_model
    layers = trunk.layers
    assert isinstance(layers, nn.ModuleList)
    gone = tuple(f"layers.{config.num_hidden_layers + k}" for k in range(wanted))
    trunk.layers = layers[: config.num_hidden_layers]
    config.num_nextn_predict_layers = 0
    for name in list(device_map or ()):
        if name.removeprefix("model.").startswith(gone):
            device_map.pop(name)  # pyright: ignore[reportOptionalMemberAccess]


def _leave_out_experts(model: PreTrainedModel, device_map: dict[str, Any] | None) -> None:
    """Of a model on the meta device; what the files hold of them is passed over."""
    if not leave_out_experts(model):
        raise ValueError("--expert-cache is for models with routed experts; this one has none.")
    depth, mtp = model.config.num_hidden_layers, model.config.num_nextn_predict_layers
    _drop_mtp_layers(model, device_map)
    gone = (r"mlp\.experts\.", *(rf"layers\.{depth + k}\." for k in range(mtp)))
    surplus = model._keys_to_ignore_on_load_unexpected or set()
    model._keys_to_ignore_on_load_unexpected = {*surplus, *gone}


def _into_own_memory(model: PreTrainedModel, everything: bool = False) -> None:
    """Where torch asks for huge pages (``axk1.allocator``), copies what every token reads out of the mapped file, whose
    pages are small: finding them takes up to a twelfth of a decode step. Experts stay where they are.

    Args:
        everything: copies all of it in any case: the system may drop pages of a mapped file, which would be read again.
    """
    if os.environ.get("THP_MEM_ALLOC_ENABLE") != "1" and not everything:
        return
    experts = [module for module in model.modules() if isinstance(module, (AXK1Experts, QuantizedExperts))]
    stay = {id(tensor) for module in experts for tensor in chain(module.parameters(), module.buffers())}
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type == "cpu" and (tensor.nbytes >= HUGE_PAGE or everything) and id(tensor) not in stay:
            tensor.data = tensor.data.clone()


def _set_layout(model: PreTrainedModel, layout: Layout) -> None:
    """transformers reverses ``_weight_conversions`` when it saves: ours are there for the per-expert layout only."""
    plain, quantized = expert_converters(), quantized_converters()
    own = {pattern for converter in plain + quantized for pattern in converter.target_patterns}
    kept = [c for c in getattr(model, "_weight_conversions", None) or [] if not own.intersection(c.target_patterns)]
    per_expert = quantized if plan_of(model.config) else plain
    model._weight_conversions = kept + (per_expert if layout == "per_expert" else [])  # pyright: ignore


def _without_unused_biases(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released file holds no router bias: biases are written once any of them is not zero (or is offloaded)."""
    routers = (name for name, module in model.named_modules() if isinstance(module, AXK1Router))
    names = {f"{name}.e_score_correction_bias" for name in routers}
    biases = [tensor for name, tensor in state_dict.items() if name in names]
    if any(bias.device.type == "meta" or bool(bias.any()) for bias in biases):
        return state_dict
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def _forget_remote_code(config: Path) -> None:
    """Drops ``auto_map``: a model read without remote code does not ask the next reader for it."""
    if config.is_file():
        values = read_json(config)
        if values.pop("auto_map", None) is not None:
            write_text(config, json.dumps(values, indent=2, sort_keys=True) + "\n")


class AXK1PreTrainedModel(CheckpointMixin, modeling.AXK1PreTrainedModel):
    """Base of the classes below."""


class AXK1Model(CheckpointMixin, modeling.AXK1Model):
    __doc__ = modeling.AXK1Model.__doc__


class AXK1ForCausalLM(CheckpointMixin, modeling.AXK1ForCausalLM):
    __doc__ = modeling.AXK1ForCausalLM.__doc__

    def logits(self, states: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        """``[..., vocab]`` of post-norm ``states`` ``[..., hidden]``, which were made after what ``cache`` holds."""
        return dispatch.logits(self.lm_head, states, cache)

    @staticmethod
    def summed_over_ranks(counts: torch.Tensor) -> torch.Tensor:
        """``counts`` of all ranks of ``torch.distributed`` where it is initialised, else as they are."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        return counts


class AXK1ForSequenceClassification(CheckpointMixin, modeling.AXK1ForSequenceClassification):
    __doc__ = modeling.AXK1ForSequenceClassification.__doc__


class AXK1ForTokenClassification(CheckpointMixin, modeling.AXK1ForTokenClassification):
    __doc__ = modeling.AXK1ForTokenClassification.__doc__


__all__ = [
    "AXK1ForCausalLM",
    "AXK1ForSequenceClassification",
    "AXK1ForTokenClassification",
    "AXK1Model",
    "AXK1PreTrainedModel",
    "CheckpointError",
]
