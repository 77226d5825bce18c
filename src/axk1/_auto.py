"""Registers A.X K1 with transformers' Auto classes and with PEFT, without importing either before anyone needs it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def register_config() -> None:
    """Makes AutoConfig read ``model_type`` ``axk1`` and the older ``AXK1`` as our configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from axk1.config import AXK1Config

    for model_type in ("axk1", "AXK1"):  # AutoConfig.register would insist on the class's own name
        CONFIG_MAPPING.register(model_type, AXK1Config, exist_ok=True)


def register_models() -> None:
    """Makes the Auto classes build our models for our configuration."""
    from transformers.models.auto import modeling_auto as auto

    from axk1 import pretrained
    from axk1.config import AXK1Config

    for auto_class, model in (
        (auto.AutoModel, pretrained.AXK1Model),
        (auto.AutoModelForCausalLM, pretrained.AXK1ForCausalLM),
        (auto.AutoModelForSequenceClassification, pretrained.AXK1ForSequenceClassification),
        (auto.AutoModelForTokenClassification, pretrained.AXK1ForTokenClassification),
    ):
        auto_class.register(AXK1Config, model, exist_ok=True)
        register_names(model, AXK1Config)


def register_names(*classes: type) -> None:
    """Makes ``transformers.AXK1ForCausalLM`` and the like ours, as the Auto classes do: TRL, pipelines and others find
    the class of a checkpoint by the name in its ``architectures``, and transformers' own would leave out the MTP
    modules. Those stay in ``transformers.models.axk1``."""
    import transformers

    for each in classes:
        setattr(transformers, each.__name__, each)


ADAPTED = {
    "LORA": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "ADALORA": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "LNTUNING": ["input_layernorm", "post_attention_layernorm", "norm"],
}
"""PEFT's method to the modules that it adapts where its configuration names none: all of attention; norms."""


def register_adapters() -> None:
    """Tells PEFT the default ``target_modules`` of our models, which its tables do not know."""
    from peft.utils import constants

    for method, modules in ADAPTED.items():
        table = getattr(constants, f"TRANSFORMERS_MODELS_TO_{method}_TARGET_MODULES_MAPPING", None)
        if table is not None:
            table.setdefault("axk1", modules)


class _Finder(importlib.abc.MetaPathFinder):
    """Watches imports until the Auto classes exist and nothing they or we need is half imported."""

    def __init__(self) -> None:
        self.pending: dict[str, Callable[[], None]] = {
            "transformers.models.auto.configuration_auto": register_config,
            "transformers.models.auto.modeling_auto": register_models,
            "peft.utils.constants": register_adapters,
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_watched(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(self, spec.loader)
        return spec

    def register_what_is_ready(self, finished: str = "") -> None:
        """Called whenever an import ends; acts only at the end of the outermost one."""
        if any(_is_watched(name) and name != finished and _is_half_imported(m) for name, m in [*sys.modules.items()]):
            return
        for trigger in [name for name in self.pending if name in sys.modules]:
            if act := self.pending.pop(trigger, None):  # registering imports more, and may come here again
                act()
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader(importlib.abc.Loader):
    """Runs a module exactly as its own loader would, then tells the finder."""

    def __init__(self, finder: _Finder, loader: importlib.abc.Loader) -> None:
        self.finder, self.loader = finder, loader

    def __getattr__(self, name: str) -> Any:  # runpy and inspect ask for more than the two methods below
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        self.finder.register_what_is_ready(finished=module.__name__)


def _is_watched(name: str) -> bool:
    return name.startswith(("transformers.", "axk1.")) or name == "peft.utils.constants"


def _is_half_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def register_when_transformers_loads() -> None:
    """Registers now what is loaded already, the rest at the moment it is."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.register_what_is_ready(finished=__name__)
