"""Servers that the tests share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
import pytest
from serving import NANO, Running, scripted, serving
from transformers import PreTrainedTokenizerFast

from axk1.load import load_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The nano's."""
    return load_tokenizer(NANO)


@pytest.fixture(scope="session")
def server(tokenizer: PreTrainedTokenizerFast) -> Iterator[Running]:
    """A server over scripted replies, as fast as it goes."""
    with serving(scripted(tokenizer), tokenizer) as running:
        yield running


@pytest.fixture(scope="session")
def slow(tokenizer: PreTrainedTokenizerFast) -> Iterator[Running]:
    """The same at 100 tokens a second."""
    with serving(scripted(tokenizer, token=0.01), tokenizer) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx2.Client]:
    """A client of ``server``."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")  # while it is there, this thread has a running event loop
def browser() -> "Iterator[Browser]":
    """Debian's Chromium."""
    from browsing import CHROMIUM, SWITCHES
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()
