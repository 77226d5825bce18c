"""A real browser on the page: Debian's Chromium, which may ask nobody but the server."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, expect
from serving import Running

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None and not os.environ.get("CI"), reason="no browser here: apt-get install chromium"
)
"""CI must have it: there the tests fail without."""
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 800}
expect.set_options(timeout=15_000)


@contextmanager
def visiting(browser: Browser, server: Running, complaints: bool = False, **options: Any) -> Iterator[Page]:
    """A new visitor of the page. Fails at the end where anything was asked of another origin, or a script failed.

    Args:
        complaints: whether the browser may write errors to its console, as it does for refused requests.
    """
    context = browser.new_context(**{"viewport": DESKTOP, "locale": "en-US", **options})
    asked: list[str] = []
    errors: list[str] = []

    def shown(dialog: Dialog) -> None:
        errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def written(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    context.on("dialog", shown)
    context.on("console", written)
    page = context.new_page()
    try:
        page.goto(f"{server.url}/")
        yield page
    finally:
        context.close()
    elsewhere = [url for url in asked if urlsplit(url).scheme != "blob" and not url.startswith(f"{server.url}/")]
    assert not elsewhere, elsewhere
    assert complaints or not errors, errors


def ready(page: Page) -> None:
    """Until the page knows its model."""
    expect(page.locator("#model")).not_to_have_class("model away")
    expect(page.locator("#model")).not_to_be_empty()


def ask(page: Page, text: str, think: bool = False, wait: bool = True) -> Locator:
    """Sends ``text``; the answer."""
    ready(page)
    if (page.locator("#think").get_attribute("aria-checked") == "true") != think:
        page.locator("#think").click()
    page.locator("#input").fill(text)
    page.locator("#input").press("Enter")
    answer = page.locator("article.assistant").last
    if wait:
        ended(page)
    return answer


def ended(page: Page) -> None:
    """Until no answer is being written."""
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("article[aria-busy=true]")).to_have_count(0)


def stored(page: Page, change: Callable[[dict[str, Any]], Any]) -> Any:
    """What ``change`` makes of the exported conversations."""
    page.locator("#settings").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    page.keyboard.press("Escape")
    return change(json.loads(download.value.path().read_text(encoding="utf-8")))


def bring(page: Page, text: str) -> None:
    """Imports a file with this text."""
    page.locator("#settings").click()
    file: Any = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    page.locator("dialog input[type=file]").set_input_files(file)
    page.keyboard.press("Escape")
