"""What a checkpoint may not ask for: code of its own, and compiled code from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axk1.checkpoint.errors import CheckpointError
from axk1.checkpoint.reading import check_texts, read_json

ATTENTION = ("eager", "sdpa", "flex_attention")
EXPERTS = ("eager", "grouped_mm", "batched_mm")
"""Implementations that a configuration may name: those that transformers never fetches from the hub."""


def check_kernels(config: Mapping[str, Any], file: Path) -> None:
    """Refuses a configuration that names an implementation of attention or experts other than the built-in ones:
    transformers would fetch compiled code of that name from the hub.

    Raises:
        CheckpointError: naming the key.
    """
    for part, allowed in (("attn", ATTENTION), ("experts", EXPERTS)):
        for key in (f"{part}_implementation", f"_{part}_implementation", f"_{part}_implementation_internal"):
            named = config.get(key)
            names = list(named.values()) if isinstance(named, Mapping) else [named]
            for name in names:
                if name is not None and name not in allowed:
                    raise CheckpointError(
                        f"{key} is {name!r}: a checkpoint may name {', '.join(allowed)} only, others are compiled "
                        "code from the hub. Remove the key.",
                        file,
                    )


def check_model(folder: Path) -> str:
    """The ``model_type`` of a checkpoint; one that transformers does not have could be loaded by its own code only.

    Raises:
        CheckpointError: an unknown model, a kernel from the hub, or a file that is none.
    """
    check_texts(folder)
    file = folder / "config.json"
    values = read_json(file)
    check_kernels(values, file)
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = " The code that auto_map names is never run." if "auto_map" in values else ""
        raise CheckpointError(f"model_type is {kind!r}, a model that is not known here.{code}", file)
    return kind


def check_generation(folder: Path) -> None:
    """Refuses a ``generation_config.json`` that transformers could not read, or whose ids would end no reply.

    Raises:
        CheckpointError: naming the key.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return
    for key, value in read_json(file).items():
        ids = value if isinstance(value, list) else [value]
        if key.endswith("_token_id") and value is not None and not all(type(each) is int for each in ids):
            raise CheckpointError(f"{key} is {value!r:.60}; it must be a token's id, or a list of such.", file)


def check_tokenizer(folder: Path) -> None:
    """Refuses a tokenizer that could be loaded by code of its own only.

    Raises:
        CheckpointError: an unknown class with ``auto_map``, no tokenizer, or a file that is none.
    """
    if (folder / "config.json").exists():
        check_model(folder)
    else:  # a tokenizer alone
        check_texts(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError("has no tokenizer.json, so it cannot read or write text.", folder)
    file = folder / "tokenizer_config.json"
    if not file.exists():
        return
    values = read_json(file)
    if "auto_map" in values and not _is_known(values.get("tokenizer_class")):
        raise CheckpointError(
            f"tokenizer_class is {values.get('tokenizer_class')!r}, which is not known here. The code that auto_map "
            "names is never run.",
            file,
        )


def _is_known(name: Any) -> bool:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return isinstance(name, str) and any(
        tokenizer_class_from_name(each) is not None for each in (name, name.removesuffix("Fast"), f"{name}Fast")
    )
