"""Which matrix is stored in which format: ``quantization_config`` of ``config.json``, in compressed-tensors' terms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

Kind = Literal["int8", "int4", "int3", "fp8", "fp8-block"]
KINDS: tuple[Kind, ...] = get_args(Kind)
METHOD = "compressed-tensors"
FORMATS = {
    "int8": "int-quantized",
    "int4": "pack-quantized",
    "int3": "plane-pack-quantized",  # ours: compressed-tensors packs three bits otherwise, ten weights to a word
    "fp8": "float-quantized",
    "fp8-block": "float-quantized",
}
FP8: tuple[Kind, ...] = ("fp8", "fp8-block")
"""Formats whose values are floats of eight bits."""
BLOCK = 128
"""Rows, and columns, of a block of fp8-block: what has one scale."""
MIXED = "mixed-precision"
"""What the whole is called where each group names its own format."""
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The stacks of all experts' matrices in memory, and the matrices of one expert that each is made of, rows in order."""
_TYPES: dict[tuple[str, int], Kind] = {("int", 8): "int8", ("int", 4): "int4", ("int", 3): "int3", ("float", 8): "fp8"}
_STRATEGIES: dict[Kind, tuple[str, ...]] = {"int4": ("channel", "group"), "int3": ("group",), "fp8-block": ("block",)}
"""What shares a scale, of the formats where that is not always a row ("channel")."""
_BLOCKS = ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}")
"""How files write the one shape of blocks that is read."""
PACKED = {"I32": 8, "U8": Fraction(8, 3)}
"""Weights of an item of ``weight_packed``, by its type in safetensors' words: int4 and int3."""


@dataclass(frozen=True)
class Scheme:
    """How a matrix is stored."""

    kind: Kind
    group_size: int | None = None
    """Inputs that share a scale; None: all of a row, or those of a block."""
    activations: bool = False
    """Whether the inputs are to be rounded to eight bits too, with a scale for each token, or beside blocks for each
    ``BLOCK`` inputs of it."""

    def __str__(self) -> str:
        text = f"{self.kind} in groups of {self.group_size}" if self.group_size else self.kind
        return f"{text} with eight-bit activations" if self.activations else text

    @property
    def packed(self) -> bool:
        """Whether values are parts of bytes, and scales those of groups."""
        return self.kind in ("int4", "int3")

    @property
    def in_blocks(self) -> bool:
        """Whether scales are those of ``BLOCK`` rows and columns."""
        return self.kind == "fp8-block"

    @property
    def columns(self) -> int | None:
        """Inputs that share a scale; None: all of a row."""
        return BLOCK if self.in_blocks else self.group_size

    def tensors(self, outputs: int, inputs: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What stands for a matrix's ``weight`` in a file: names, types in safetensors' words, shapes."""
        rows = -(-outputs // BLOCK) if self.in_blocks else outputs
        scale = ("BF16", (rows, -(-inputs // (self.columns or inputs))))
        if self.packed:
            word = "I32" if self.kind == "int4" else "U8"
            packed = (word, (outputs, int(inputs / PACKED[word])))
            return {"weight_packed": packed, "weight_scale": scale, "weight_shape": ("I64", (2,))}
        word = "I8" if self.kind == "int8" else "F8_E4M3"
        return {"weight": (word, (outputs, inputs)), "weight_scale": scale}

    def to_dict(self, targets: Sequence[str]) -> dict[str, Any]:
        """The scheme as a group of ``config_groups``."""
        number = "float" if self.kind in FP8 else "int"
        weights = {
            "num_bits": {"int4": 4, "int3": 3}.get(self.kind, 8),
            "type": number,
            "symmetric": True,
            "strategy": "block" if self.in_blocks else "group" if self.group_size else "channel",
            **({"block_structure": [BLOCK, BLOCK]} if self.in_blocks else {}),
            "group_size": self.group_size,
            "dynamic": False,
            "observer": "mse" if self.packed else "minmax",
        }
        return {
            "targets": list(targets),
            "format": FORMATS[self.kind],
            "weights": weights,
            "input_activations": {**_inputs_of(self.kind), "dynamic": True} if self.activations else None,
            "output_activations": None,
        }

    @classmethod
    def from_dict(cls, group: Mapping[str, Any], default_format: str | None) -> Scheme:
        """Reads a group of ``config_groups``.

        Raises:
            ValueError: a format that this package does not compute with; the message says which.
        """
        weights = group.get("weights") or {}
        kind = _TYPES.get((weights.get("type", "int"), weights.get("num_bits", 8)))
        strategy, stored = weights.get("strategy"), group.get("format") or default_format
        kind = "fp8-block" if kind == "fp8" and strategy == "block" else kind
        size = weights.get("group_size") if strategy == "group" else None
        readable = weights.get("symmetric", True) and not weights.get("dynamic")
        readable = readable and kind and strategy in _STRATEGIES.get(kind, ("channel",))
        readable = readable and (strategy != "group" or _is_size(size, 32 if kind == "int3" else 8))
        readable = readable and (strategy != "block" or weights.get("block_structure") in _BLOCKS)
        if (
            kind is None
            or not readable
            or stored != FORMATS[kind]
            or weights.get("actorder") not in (None, False, "weight", "static")
        ):
            keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "actorder")
            words = {key: weights[key] for key in keys if weights.get(key) is not None}
            raise ValueError(
                f"weights are quantised as {words} in format {stored!r}; read are symmetric int8 and fp8 with a scale "
                f"a channel, fp8 with a scale for {BLOCK} x {BLOCK} weights, and int4 and int3 with a scale a group, "
                "as `axk1 quantize` writes them"
            )
        return cls(kind, size, _dynamic_activations(group.get("input_activations"), kind))


@dataclass(frozen=True)
class Plan:
    """The schemes of a model's matrices by name."""

    groups: tuple[tuple[tuple[str, ...], Scheme], ...]
    """Targets and their scheme: ``Linear`` (all that is not named), a module's name, or ``re:`` and a pattern."""
    ignore: tuple[str, ...] = ()

    def scheme(self, module: str) -> Scheme | None:
        """The scheme of the linear module ``module`` (``model.layers.3.self_attn.o_proj``); None: stored in full."""
        name = "model." + module.removeprefix("model.")
        if any(_matches(name, target) for target in self.ignore):
            return None
        for wanted in (_matches, _is_class):
            for targets, scheme in self.groups:
                if any(wanted(name, target) for target in targets):
                    return scheme
        return None

    def expert_schemes(self, module: str) -> tuple[Scheme, Scheme] | None:
        """The schemes of gate and up, and of down, of the experts in ``module`` (``model.layers.3.mlp.experts``).

        Raises:
            ValueError: the matrices of one expert are not all quantised, or gate and up differ.
        """
        gate, up, down = (self.scheme(f"{module}.0.{part}_proj") for part in ("gate", "up", "down"))
        if gate != up or (gate is None) != (down is None):
            raise ValueError(f"gate_proj, up_proj and down_proj of {module} have formats that do not go together")
        return None if gate is None or down is None else (gate, down)

    @property
    def kind(self) -> Kind:
        """The format of most matrices."""
        return self.groups[0][1].kind

    def to_dict(self) -> dict[str, Any]:
        """``quantization_config``."""
        formats = {FORMATS[scheme.kind] for _, scheme in self.groups}
        groups = {f"group_{i}": scheme.to_dict(targets) for i, (targets, scheme) in enumerate(self.groups)}
        return {
            "quant_method": METHOD,
            "format": FORMATS[self.kind] if len(formats) == 1 else MIXED,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Reads ``quantization_config``.

        Raises:
            ValueError: it asks for something that this package does not compute with.
        """
        groups = values.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            raise ValueError("'quantization_config' has no 'config_groups'")
        if values.get("quantization_status") != "compressed":
            raise ValueError(f"quantization_status is {values.get('quantization_status')!r}, not 'compressed'")
        if values.get("kv_cache_scheme"):
            raise ValueError("a quantised key/value cache ('kv_cache_scheme') is not supported")
        if not all(isinstance(group, Mapping) for group in groups.values()):
            raise ValueError("'config_groups' names presets instead of describing the formats")
        parsed = tuple(
            (_names(group.get("targets"), "targets"), Scheme.from_dict(group, values.get("format")))
            for group in groups.values()
        )
        plan = cls(parsed, _names(values.get("ignore"), "ignore"))
        if plan.scheme("lm_head"):
            raise ValueError("lm_head is quantised; it has to be in 'ignore'")
        return plan


def plan_of(config: Any) -> Plan | None:
    """The plan in a configuration's ``quantization_config``; None for a model in full precision or another method's.

    Raises:
        ValueError: it asks for something that this package does not compute with.
    """
    found = getattr(config, "quantization_config", None)
    if isinstance(found, Mapping):
        return Plan.from_dict(found) if found.get("quant_method") == METHOD else None
    plan = getattr(found, "plan", None)  # of a loaded model
    return plan if isinstance(plan, Plan) else None


def _inputs_of(kind: Kind) -> dict[str, Any]:
    """How inputs are rounded beside weights of eight bits, in compressed-tensors' terms."""
    shared = {"strategy": "group", "group_size": BLOCK} if kind == "fp8-block" else {"strategy": "token"}
    return {"num_bits": 8, "type": "float" if kind in FP8 else "int", "symmetric": True, **shared}


def _dynamic_activations(activations: Mapping[str, Any] | None, kind: Kind) -> bool:
    if not activations:
        return False
    wanted = _inputs_of(kind)
    found = {key: activations.get(key, True if key == "symmetric" else None) for key in wanted}
    if found != wanted or not activations.get("dynamic") or kind in ("int4", "int3"):
        shared = f"each {BLOCK} inputs" if kind == "fp8-block" else "each token"
        raise ValueError(f"activations are quantised as {dict(activations)}; read are 8 bits, a scale for {shared}")
    return True


def _names(values: Any, where: str) -> tuple[str, ...]:
    values = values or []
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not all(isinstance(value, str) for value in values)
    ):
        raise ValueError(f"{where!r} is no list of names")
    for value in values:
        try:
            re.compile(value.removeprefix("re:") if value.startswith("re:") else "")
        except re.error as error:
            raise ValueError(f"{where!r} holds {value!r}, which is no pattern ({error})") from None
    return tuple(values)


def _is_size(value: Any, unit: int) -> bool:
    return isinstance(value, int) and value > 0 and value % unit == 0


def _matches(name: str, target: str) -> bool:
    """As compressed-tensors and vLLM compare; a trunk saved alone has names without ``model.``."""
    names = (name, name.removeprefix("model."))
    if target.startswith("re:"):
        return any(re.match(target[3:], each) for each in names)
    return target in names


def _is_class(name: str, target: str) -> bool:
    return target == "Linear"
