"""Finds and loads a checkpoint folder for chatting. Local files only."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axk1.chat.session import Chat

NANO = Path("models") / "nano"


def resolve_model_path(path: str | Path | None = None) -> Path:
    """The checkpoint folder to use: ``path``, else the environment's ``AXK1_MODEL``, else the nano shipped with axk1.

    Raises:
        ValueError: when there is no checkpoint there.
    """
    chosen = path or os.environ.get("AXK1_MODEL")
    if chosen:
        folder = Path(chosen).expanduser()
    else:
        package = Path(__file__).resolve().parents[1]
        places = [package / NANO, package.parents[1] / NANO]  # installed; in a clone, src/axk1/../..
        folder = next((place for place in places if (place / "config.json").is_file()), places[-1])
    if not (folder / "config.json").is_file():
        source = "" if path or not chosen else " (from AXK1_MODEL)"
        raise ValueError(f"There is no checkpoint at {folder}{source}: a folder with a config.json is needed.")
    return folder


def load(path: str | Path | None = None, *, device: str | None = None, dtype: str = "auto") -> "Chat":
    """Loads a checkpoint's model, tokenizer and template.

    Args:
        path: the checkpoint folder; see :func:`resolve_model_path` for the default.
        device: where to run, e.g. ``"cpu"`` or ``"cuda"``; a GPU when there is one.
        dtype: ``"auto"`` for the stored one (float32 on a CPU that is slow in it), its name in torch, or ``"packed"``:
            bfloat16 in twelve bits without loss, on a CPU (:mod:`axk1.quantized.lossless`).

    Raises:
        ValueError: when there is no checkpoint, an unknown device or dtype, or no chat template.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import axk1  # noqa: F401  (registers the model type)
    from axk1.chat.session import Chat
    from axk1.kernels import is_fast
    from axk1.quantized.lossless import pack_weights

    folder = resolve_model_path(path)
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if dtype == "packed" and where.type != "cpu":
        raise ValueError(f"dtype is 'packed', which is for CPUs; use bfloat16 on {where.type}.")
    if dtype == "auto" and where.type == "cpu":
        stored = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
        number = stored if isinstance(stored, torch.dtype) and is_fast(stored) else torch.float32
    else:
        number = torch.bfloat16 if dtype == "packed" else getattr(torch, dtype, dtype)
    if number != "auto" and not (isinstance(number, torch.dtype) and number.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; use auto, float32, bfloat16, float16 or packed.")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"The checkpoint at {folder} has no tokenizer.json, so it cannot read or write text.")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ValueError(f"The checkpoint at {folder} has no chat template (chat_template.jinja), so it cannot chat.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=number, local_files_only=True, use_safetensors=True)
    if dtype == "packed":
        pack_weights(model)
    return Chat(model.to(where), tokenizer)  # pyright: ignore[reportArgumentType]
