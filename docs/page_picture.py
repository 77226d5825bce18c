"""Draws ``docs/figures/page.webp``: the nano on the server's page. ``python docs/page_picture.py``; needs Chromium."""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from axk1.files import replacing

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "figures" / "page.webp"
CHROMIUM = "/usr/bin/chromium"
QUESTIONS = (
    "What is 17 + 25 - 9?",
    "Olga has 31 stamps. After that Olga loses 2 stamps. Olga finds 8 more stamps. How many stamps does Olga have?",
)
_SIZE = {"width": 1120, "height": 760}


def main() -> None:
    """Serves the nano, asks it, and writes the picture."""
    command = [sys.executable, "-m", "axk1", "serve", str(ROOT / "models" / "nano"), "--port", "0", "--think"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            picture = _picture(server.stdout.readline().split()[-1])
        finally:
            server.terminate()
    with replacing(PICTURE) as file:
        Image.open(io.BytesIO(picture)).save(file, "WEBP", quality=88)


def _picture(address: str) -> bytes:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport=_SIZE, locale="en-US", color_scheme="light")
        page.goto(address)
        _make_greedy(page)
        for question in QUESTIONS:
            page.locator("#input").fill(question)
            page.locator("#send").click()
            expect(page.locator("article.assistant[aria-busy=false]").last).to_be_visible(timeout=60_000)
            expect(page.locator("#send")).to_be_visible(timeout=60_000)
        page.locator("summary").last.click()
        page.wait_for_timeout(500)
        picture = page.screenshot()
        browser.close()
        return picture


def _make_greedy(page: Page) -> None:
    """The same picture every time."""
    expect(page.locator("#model")).to_have_text("nano", timeout=60_000)
    page.locator("#settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Done").click()


if __name__ == "__main__":
    main()
