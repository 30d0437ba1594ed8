"""A JupyterLab of the test's own, and a headless Chromium to look at it with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from isodiff.course import kernel_of_this_interpreter

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 300  # seconds for what takes a few; a busy machine is not a failure

# What JupyterLab would otherwise ask the network, or show over the notebook. With windowing, cells out of sight would
# not be in the page.
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


class Lab(NamedTuple):
    """A running JupyterLab."""

    url: str  # ends in a slash
    token: str
    folder: Path  # what it serves


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return found or pytest.skip(f"needs one of {', '.join(_NAMES)} on PATH; on Debian: apt-get install chromium")


@pytest.fixture(scope="session")
def lab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start a JupyterLab that knows nothing of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for name, values in _SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    own = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "ServerApp.port": 0,
        "ServerApp.root_dir": home / "notebooks",
        "ServerApp.allow_root": True,
        "LabApp.user_settings_dir": home / "settings",
        "LabApp.workspaces_dir": home / "workspaces",
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", *(f"--{k}={v}" for k, v in options.items())]
    with kernel_of_this_interpreter(), (home / "log").open("w") as log:
        environment = {**os.environ, **own, "IPYTHONDIR": str(home / "ipython"), "ISODIFF_ROOT": str(ROOT)}
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server:
            try:
                yield _started(server, home)
            finally:
                server.kill()  # kernels notice and end by themselves


def _started(server: subprocess.Popen, home: Path) -> Lab:
    """Wait until the server says where it is."""
    while not (said := re.search(r"(http://localhost:\d+/)lab\?token=(\w+)", (home / "log").read_text())):
        assert server.poll() is None, f"JupyterLab did not start:\n{(home / 'log').read_text()[-3000:]}"
        time.sleep(0.2)
    return Lab(*said.groups(), home / "notebooks")


@pytest.fixture(scope="session")
def browser(chromium: str, lab: Lab) -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'isodiff[test]'")
    sync_api.expect.set_options(timeout=1000 * _PATIENCE)
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty page; in the end it must have had no exception and no error in its console."""
    complaints = []
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * _PATIENCE)
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("console", lambda said: said.type == "error" and complaints.append(f"{said.text} ({said.location})"))
    yield page
    page.close()
    assert complaints == []


@pytest.fixture(scope="session")
def screenshots() -> Path:
    folder = ROOT / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
