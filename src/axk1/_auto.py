"""Registers A.X K1 with transformers' Auto classes, without importing transformers before anyone needs it."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TRIGGER = "transformers.models.auto.modeling_auto"


def register() -> None:
    """Makes the Auto classes build our classes for ``model_type`` ``axk1`` and the older ``AXK1``."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from axk1 import pretrained
    from axk1.config import AXK1Config

    AutoConfig.register("axk1", AXK1Config, exist_ok=True)
    CONFIG_MAPPING.register("AXK1", AXK1Config, exist_ok=True)  # AutoConfig.register insists on the class's own name
    for auto, model in (
        (AutoModel, pretrained.AXK1Model),
        (AutoModelForCausalLM, pretrained.AXK1ForCausalLM),
        (AutoModelForSequenceClassification, pretrained.AXK1ForSequenceClassification),
        (AutoModelForTokenClassification, pretrained.AXK1ForTokenClassification),
    ):
        auto.register(AXK1Config, model, exist_ok=True)


class _RegisterAfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the trigger module as usual, then registers: the price is paid by who uses transformers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        sys.meta_path.remove(self)
        self.spec = importlib.util.find_spec(fullname)
        if self.spec is None or self.spec.loader is None:
            return None
        return importlib.util.spec_from_file_location(fullname, self.spec.origin, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
        register()


def register_when_transformers_loads() -> None:
    """Registers now if transformers' Auto classes are loaded already, else at the moment they are."""
    if _TRIGGER in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())
