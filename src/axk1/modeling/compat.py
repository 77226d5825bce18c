"""The names that differ between the supported versions of transformers: nothing else of ours asks for the version."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from transformers.masking_utils import create_causal_mask

Method = TypeVar("Method", bound=Callable[..., Any])

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What transformers calls the cache in arguments and outputs: ``past_key_values`` up to 5.23, ``cache`` since 5.24."""


def accepts_both_cache_names(method: Method) -> Method:
    """A method with a ``cache``, to be called by either name; inspected, it shows transformers' own.

    Raises:
        ValueError: both names are given at once.
    """

    @wraps(method)
    def renamed(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("Give cache or past_key_values, which are two names of one argument, not both.")
            kwargs["cache"] = past_key_values
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    shown = [p.replace(name=CACHE) if p.name == "cache" else p for p in signature.parameters.values()]
    cast(Any, renamed).__signature__ = signature.replace(parameters=shown)
    return cast(Any, renamed)
