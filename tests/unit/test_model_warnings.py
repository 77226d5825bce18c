"""What transformers renames shows here first: its FutureWarnings about calls of ours are errors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import pad_rows, small_model, tokens
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as upstream

import axk1
from axk1.modeling.compat import CACHE

OURS = str(Path(axk1.__file__).parent)


@pytest.fixture
def no_deprecation() -> Iterator[None]:
    """FutureWarnings that point into this package are errors, and so is what transformers logs as deprecated."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, logger = Listener(), upstream.get_logger("transformers")
    upstream.get_logger("transformers.utils.generic").warning_once.cache_clear()  # pyright: ignore
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.removeHandler(listener)
    ours = [str(w.message) for w in caught if issubclass(w.category, FutureWarning) and w.filename.startswith(OURS)]
    assert not ours, ours
    assert not [line for line in said if "deprecated" in line], said


def padded_prompt() -> dict[str, Any]:
    ids, mask = pad_rows([tokens(1, 4)[0], tokens(1, 7)[0]], "left")
    return {"input_ids": ids, "attention_mask": mask}


def forward(model: Any, folder: Path) -> None:
    model(**padded_prompt())


def cached(model: Any, folder: Path) -> None:
    cache = DynamicCache(config=model.config)
    ids, mask = padded_prompt().values()
    model(ids[:, :4], attention_mask=mask[:, :4], **{CACHE: cache})
    model(ids[:, 4:], attention_mask=mask, **{CACHE: cache})


def generate(model: Any, folder: Path) -> None:
    model.generate(**padded_prompt(), max_new_tokens=3, do_sample=False)


def beams(model: Any, folder: Path) -> None:
    model.generate(**padded_prompt(), max_new_tokens=3, num_beams=2, do_sample=False)


def static(model: Any, folder: Path) -> None:
    model.generate(
        **padded_prompt(), max_new_tokens=3, cache_implementation="static", do_sample=False, disable_compile=True
    )


def train(model: Any, folder: Path) -> None:
    model.train()
    model.gradient_checkpointing_enable()
    ids = tokens(2, 6)
    model(ids, labels=ids, use_cache=True).loss.backward()


def save_and_load(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "use", [forward, cached, generate, beams, static, train, save_and_load], ids=lambda f: f.__name__
)
def test_no_call_of_ours_is_deprecated(use: Callable[[Any, Path], None], no_deprecation: None, tmp_path: Path) -> None:
    with torch.set_grad_enabled(use is train):
        use(small_model(num_nextn_predict_layers=1), tmp_path)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_goes_by_either_name(name: str) -> None:
    """Padded rows in two pieces equal the whole, whichever of transformers' two names the caller knows."""
    model, (ids, mask) = small_model(), padded_prompt().values()
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        for part in (model, model.model):
            cache = DynamicCache(config=model.config)
            part(ids[:, :4], attention_mask=mask[:, :4], **{name: cache})
            found = part(ids[:, 4:], attention_mask=mask, **{name: cache})[0]
            found = found if part is model else model.lm_head(found)
            assert cache.get_seq_length() == 7
            assert torch.allclose(found[1], whole[1, 4:], atol=1e-5) and torch.allclose(
                found[0], whole[0, 4:], atol=1e-5
            )


def test_two_caches_are_refused() -> None:
    model = small_model()
    caches = {name: DynamicCache(config=model.config) for name in ("past_key_values", "cache")}
    with pytest.raises(ValueError, match="two names of one argument"):
        model(tokens(1, 3), **caches)
