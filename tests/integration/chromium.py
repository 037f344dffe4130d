"""A browser for tests of pages: the system's Chromium."""

import shutil

import pytest
from servers import not_here


@pytest.fixture
async def browser():
    """The system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        not_here("no browser: install Chromium to run this test")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        # The sandbox needs rights that containers often lack; the pages are ours.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()
