"""Schemes mixed by layer: which part of which layer is stored how, as a file says it (``docs/quantization.md``)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from axk1.checkpoint.compressed import LAYER_PARTS, Wanted, mixed_plan
from axk1.config import AXK1Config
from axk1.quantized.plan import KINDS, Kind, Plan

FULL = "full"
"""The scheme of what is not quantised."""
_FIELDS = ("scheme", "group_size", "activations")


@dataclass(frozen=True)
class Rule:
    """How some parts of some layers are stored."""

    wanted: Wanted
    layers: frozenset[int] | None = None
    """None: all."""
    parts: frozenset[str] | None = None
    """Of ``LAYER_PARTS``; None: all."""

    def names(self, layer: int, part: str) -> bool:
        """Whether it is about this part of this layer."""
        return (self.layers is None or layer in self.layers) and (self.parts is None or part in self.parts)


@dataclass(frozen=True)
class Recipe:
    """Rules, of which the last that names a part decides."""

    rules: tuple[Rule, ...]
    """The first names everything."""

    def wanted(self, layer: int, part: str) -> Wanted:
        """Of a part of a layer."""
        return next(rule.wanted for rule in reversed(self.rules) if rule.names(layer, part))

    def plan(self, config: AXK1Config) -> Plan:
        """The plan for a model.

        Raises:
            ValueError: a rule names a layer that the model has not, or nothing would be quantised.
        """
        last = config.num_hidden_layers + config.num_nextn_predict_layers - 1
        for number, rule in enumerate(self.rules):
            if rule.layers and max(rule.layers) > last:
                raise ValueError(f"Rule {number} names layer {max(rule.layers)}; this model has layers 0 to {last}.")
        return mixed_plan(config, self.wanted)


def read_recipe(file: Path) -> Recipe:
    """Reads a recipe in TOML or, where the name ends so, JSON.

    Raises:
        ValueError: it is none; the message says where.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as a recipe ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is no recipe: it holds no table with 'scheme'.")
    rules = values.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ValueError(f"{file}: 'rules' is no list of tables.")
    first = {key: value for key, value in values.items() if key != "rules"}
    return Recipe(tuple(_rules(file, [first, *rules])))


def _rules(file: Path, given: Sequence[Mapping[str, Any]]) -> Iterator[Rule]:
    for number, values in enumerate(given):
        where = f"{file}: rule {number}" if number else str(file)
        known = (*_FIELDS, "layers", "parts") if number else _FIELDS
        if unknown := sorted(values.keys() - set(known)):
            raise ValueError(f"{where} has {unknown[0]!r}; known are {', '.join(known)}.")
        parts = values.get("parts")
        yield Rule(
            _wanted(values, where),
            None if values.get("layers") is None else _layers(values["layers"], where),
            None if parts is None else _parts(parts, where),
        )


def _wanted(values: Mapping[str, Any], where: str) -> Wanted:
    scheme, size, activations = values.get("scheme"), values.get("group_size"), values.get("activations", False)
    if scheme not in (*KINDS, FULL):
        raise ValueError(f"{where}: scheme is {scheme!r}; use {', '.join(KINDS)} or {FULL}.")
    if not isinstance(activations, bool) or (activations and scheme == FULL):
        raise ValueError(f"{where}: activations is true or false, and true beside int8, fp8 or fp8-block alone.")
    try:
        return Wanted(None if scheme == FULL else cast(Kind, scheme), size, activations)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _layers(given: Any, where: str) -> frozenset[int]:
    """Numbers, and ranges such as ``"3-7"``, one or a list of them."""
    found: set[int] = set()
    for each in given if isinstance(given, list) else [given]:
        first, dash, last = str(each).partition("-")
        if isinstance(each, bool) or not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f'{where}: layers are numbers and ranges such as "3-7", not {each!r}.')
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise ValueError(f"{where} names no layer; leave 'layers' out for all.")
    return frozenset(found)


def _parts(given: Any, where: str) -> frozenset[str]:
    names = given if isinstance(given, list) else [given]
    for name in names:
        if name not in LAYER_PARTS:
            raise ValueError(f"{where}: there is no part {name!r}; use {', '.join(LAYER_PARTS)}.")
    if not names:
        raise ValueError(f"{where} names no part; leave 'parts' out for all.")
    return frozenset(names)
