"""One browser for every page: Playwright cannot be started twice in a process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a browser where none is found."""
    skip = pytest.mark.skip(reason="needs Chromium on PATH; on Debian: apt-get install chromium")
    for item in items:
        if not CHROMIUM and item.get_closest_marker("browser"):
            item.add_marker(skip)
