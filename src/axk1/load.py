"""Loads a checkpoint: from its folder, or its name on the hub, to model, tokenizer and number format.

Chat, bench, evaluation, training and the command line all load by this file. Only files on this machine are read, code
that a checkpoint brings is never run, and nothing is asked on standard input.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NANO = Path("models") / "nano"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Loaded(NamedTuple):
    """A checkpoint in memory."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def resolve_model_path(path: str | Path | None = None) -> Path:
    """The checkpoint folder to use: ``path``, else the environment's ``AXK1_MODEL``, else the nano shipped with axk1.

    Args:
        path: a folder, or a name on the hub such as ``skt/A.X-K1`` or ``skt/A.X-K1@REVISION``, which is downloaded
            into the hub's cache. A folder of that name goes before the hub.

    Raises:
        ValueError: when there is no checkpoint there.
    """
    chosen = path or os.environ.get("AXK1_MODEL")
    if chosen:
        folder = resolve_hub_name(Path(chosen).expanduser())
    else:
        package = Path(__file__).resolve().parent
        places = [package / NANO, package.parents[1] / NANO]  # installed; in a clone, src/axk1/../..
        folder = next((place for place in places if (place / "config.json").is_file()), places[-1])
    if not (folder / "config.json").is_file():
        source = "" if path or not chosen else " (from AXK1_MODEL)"
        raise ValueError(f"There is no checkpoint at {folder}{source}: a folder with a config.json is needed.")
    return folder


def resolve_hub_name(path: str | Path) -> Path:
    """``path``, or where there is nothing and it reads as a name on the hub, its folder in the hub's cache, downloaded.

    Raises:
        ValueError: such a name, but it can be neither found nor downloaded.
    """
    from axk1.checkpoint.hub import HubId, hub_folder

    wanted = None if Path(path).exists() else HubId.parse(str(path))
    return Path(path) if wanted is None else hub_folder(wanted)


def load(
    path: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    check_values: bool = False,
    expert_cache: int | str | None = None,
) -> Loaded:
    """Loads a checkpoint's model and tokenizer, for text in and text out.

    Args:
        path: see :func:`resolve_model_path`.
        device, dtype, check_values, expert_cache: see :func:`load_model`.

    Raises:
        ValueError: when there is no checkpoint, an unknown device or dtype, no tokenizer, or no chat template.
    """
    folder = resolve_model_path(path)
    where, number = _device(device), _dtype(folder, dtype, _device(device))  # before the slow part
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ValueError(f"The checkpoint at {folder} has no chat template (chat_template.jinja), so it cannot chat.")
    how = {"check_values": check_values, "expert_cache": expert_cache}
    return Loaded(_load_model(folder, where, number, dtype == "packed", **how), tokenizer)


def load_model(
    folder: str | Path,
    *,
    device: str | None = None,
    dtype: str = "auto",
    expert_cache: int | str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Loads the model in ``folder``.

    Args:
        folder: holds ``config.json`` and safetensors files.
        device: where to run, e.g. ``"cpu"`` or ``"cuda"``; a GPU when there is one.
        dtype: ``"auto"`` for the stored one (float32 on a CPU that is slow in it), its name in torch, or ``"packed"``:
            bfloat16 in twelve bits without loss, on a CPU (:mod:`axk1.kernels.lossless`).
        expert_cache: bytes, or a text such as ``"8GiB"``: routed experts stay in their files and are read as tokens
            need them, into a cache of that size (:mod:`axk1.experts`); None: all of them are in memory.
        options: of ``from_pretrained``, such as ``experts_implementation`` or ``check_values=True``, which looks for
            NaN and infinity in all weights (``axk1 verify`` does so too).

    Raises:
        ValueError: a faulty checkpoint, an unknown device or dtype, or one that asks for code of its own.
    """
    folder, where = Path(folder), _device(device)
    number = _dtype(folder, dtype, where)
    return _load_model(folder, where, number, dtype == "packed", expert_cache=expert_cache, **options)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in ``folder``, with its chat template if it has one.

    Raises:
        ValueError: there is none, it cannot be read, or it asks for code of its own.
    """
    from axk1.checkpoint.guard import check_tokenizer

    folder = Path(folder)
    check_tokenizer(folder)
    from transformers import AutoTokenizer

    import axk1  # noqa: F401  (registers the model type)
    from axk1.tokenizer.guard import check_merges, tokenizer_errors

    check_merges(folder / "tokenizer.json")
    with tokenizer_errors(f"The tokenizer in {folder} cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
        tokenizer.decode(tokenizer.encode("a"))  # what is wrong in its files may show only here
    return tokenizer


def stop_ids(folder: str | Path) -> list[int]:
    """The ids that ``generation_config.json`` in ``folder`` says end a reply."""
    from transformers import GenerationConfig

    ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _device(name: str | None) -> torch.device:
    import torch

    try:
        where = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return where


def _dtype(folder: Path, dtype: str, where: torch.device) -> Any:
    """What ``from_pretrained`` is given: a type of torch, or ``auto``."""
    import torch
    from transformers import AutoConfig

    import axk1  # noqa: F401  (registers the model type)
    from axk1.checkpoint.compressed import check_method
    from axk1.checkpoint.files import load_config
    from axk1.checkpoint.guard import check_model
    from axk1.kernels import is_fast

    check_model(folder)
    check_method(load_config(folder), folder)  # bounds what is allocated, which nobody does for other architectures
    if dtype == "packed" and where.type != "cpu":
        raise ValueError(f"dtype is 'packed', which is for CPUs; use bfloat16 on {where.type}.")
    if dtype == "auto" and where.type == "cpu":
        stored = AutoConfig.from_pretrained(folder, **_LOCAL).dtype
        return stored if isinstance(stored, torch.dtype) and is_fast(stored) else torch.float32
    number = torch.bfloat16 if dtype == "packed" else getattr(torch, dtype, dtype)
    if number != "auto" and not (isinstance(number, torch.dtype) and number.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}; use auto, float32, bfloat16, float16 or packed.")
    return number


def _load_model(
    folder: Path, where: torch.device, number: Any, packed: bool, expert_cache: int | str | None = None, **options: Any
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from axk1.kernels.lossless import pack_weights
    from axk1.plan.process import check_memory

    cache = None if expert_cache is None else _cache_bytes(expert_cache, where, packed)
    if cache is not None:
        options["without_experts"] = True
    if not options.get("check_values"):
        options.pop("check_values", None)  # transformers' own classes do not know it
    if where.type == "cpu" and not options.get("without_experts"):
        check_memory(folder, getattr(number, "itemsize", None))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=number, use_safetensors=True, **_LOCAL, **options)
    if packed:
        pack_weights(model)
    if cache is not None:
        from axk1.experts.store import stream_experts

        stream_experts(model, folder, cache)
    return model.to(where)  # pyright: ignore[reportArgumentType]


def _cache_bytes(size: int | str, where: torch.device, packed: bool) -> int:
    """The size that ``--expert-cache`` gives.

    Raises:
        ValueError: no size, or one for a model that cannot have a cache.
    """
    if where.type != "cpu":
        raise ValueError(f"--expert-cache is for the CPU, and the device is {where.type}; add --device cpu.")
    if packed:
        raise ValueError("--expert-cache reads experts as they are stored: leave out --dtype packed.")
    return parse_size(size, "--expert-cache")


def parse_size(size: int | str, name: str) -> int:
    """Bytes, from a number or a text such as ``8GiB``, ``500MB`` or ``1.5 GB``.

    Raises:
        ValueError: it is none, or not above 0; ``name`` says of what.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i)?B?|B)?", str(size).strip(), re.IGNORECASE)
    value = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index((match[2] or " ").upper()) if match else 0.0
    if not 1 <= value < 2**62:
        raise ValueError(f"{name} is {size!r}; give a size such as 8GiB or 500MB.")
    return int(value)
