"""Notebooks in JupyterLab and Notebook 7, in a real browser: controls have names, and the picture follows them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nbformat
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from isodiff.course import check_parameters, kernel_of_this_interpreter

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'isodiff[test]'")
expect = sync_api.expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "notebooks"
NAMES = sorted(path.name for path in COURSE.glob("*.ipynb"))
PLACES = {"JupyterLab": "doc/tree", "Notebook 7": "notebooks"}  # of notebooks below the server's address
TINY = yaml.safe_load(Path(__file__).parents[1].joinpath("tiny.yaml").read_text(encoding="utf-8"))
PATIENCE = 300  # seconds for what takes a few; a busy machine is not a failure

# explorers of maps that cost nothing, one a cell
EXPLORERS = (
    "import torch\n\nfrom isodiff import geometry, widgets\n\n"
    "models = {'base': lambda x: x.clamp(-1, 1), 'control': lambda x: -x.clamp(-1, 1)}\n"
    "x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))",
    "widgets.LatentTraversal(models, x, paths={'slerp': geometry.slerp, 'lerp': geometry.lerp}, num_frames=9)",
    "v, sigma = {name: x.roll(1, 3)[:, None] for name in models}, {name: torch.ones(2, 1) for name in models}\n"
    "widgets.DirectionExplorer(models, x, v, sigma=sigma, max_gamma=8.0, num_frames=9)",
    "widgets.SphereExplorer()",
)

# What JupyterLab would otherwise ask the network, or show over the notebook. With windowing, cells out of sight would
# not be in the page.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


class Lab(NamedTuple):
    url: str  # ends in a slash
    token: str
    folder: Path  # what it serves


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Start a JupyterLab that knows nothing of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    own = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "ServerApp.port": 0,
        "ServerApp.root_dir": home / "notebooks",
        "ServerApp.allow_root": True,
        "LabApp.user_settings_dir": home / "settings",
        "JupyterNotebookApp.user_settings_dir": home / "settings",
        "ServerApp.jpserver_extensions": "notebook=True",
        "LabApp.workspaces_dir": home / "workspaces",
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", *(f"--{k}={v}" for k, v in options.items())]
    with kernel_of_this_interpreter(), (home / "log").open("w") as log:
        environment = {**os.environ, **own, "IPYTHONDIR": str(home / "ipython"), "ISODIFF_ROOT": str(ROOT)}
        with subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server:
            try:
                yield started(server, home)
            finally:
                server.kill()  # kernels notice and end by themselves


def started(server: subprocess.Popen, home: Path) -> Lab:
    while not (said := re.search(r"(http://localhost:\d+/)lab\?token=(\w+)", (home / "log").read_text())):
        assert server.poll() is None, f"JupyterLab did not start:\n{(home / 'log').read_text()[-3000:]}"
        time.sleep(0.2)
    return Lab(*said.groups(), home / "notebooks")


@pytest.fixture
def complaints() -> list[str]:
    """Hold the exceptions and the errors in the console of a page."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """Open an empty page; in the end it must have no complaints."""
    expect.set_options(timeout=1000 * PATIENCE)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("console", lambda said: said.type == "error" and complaints.append(f"{said.text} ({said.location})"))
    yield page
    page.close()
    assert complaints == []


def open_and_run(page: Page, lab: Lab, name: str, place: str) -> None:
    """Open a notebook, run all its cells from the menu, and wait until every one has run."""
    page.goto(f"{lab.url}{place}/{name}?token={lab.token}")
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    expect(page.locator(".jp-Toolbar-kernelName")).to_contain_text("Python 3")  # before, "No Kernel" is idle, too
    expect(idle).to_be_attached()
    for entry in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=entry, exact=True).click()
    cells = nbformat.read(lab.folder / name, as_version=4).cells
    number = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").filter(has_text=re.compile(r"\[\d+\]"))
    expect(prompts).to_have_count(number)
    expect(idle).to_be_attached()


def errors(page: Page) -> list[str]:
    """Return what cells printed as an error or to standard error, and widgets that could not be shown."""
    kinds = [f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr")]
    widgets = [f".jupyter-widgets-{kind}" for kind in ("disconnected", "error-widget")]
    return page.locator(", ".join([*kinds, *widgets])).all_inner_texts()


def wait_for(page: Page, condition: Callable[[], Any], what: str) -> Any:  # noqa: ANN401
    """Wait until a condition holds, at most a minute: two browsers may share the machine."""
    for _ in range(600):
        if found := condition():
            return found
        page.wait_for_timeout(100)
    pytest.fail(f"within a minute, {what}")


def shown(picture: Locator) -> bytes:
    """Return the PNG that an image of the page shows, once it shows one that is not just being replaced."""
    script = """image => image.decode().then(() => fetch(image.src)).then(answer => answer.arrayBuffer())
        .then(data => Array.from(new Uint8Array(data))).catch(() => null)"""
    png = bytes(wait_for(picture.page, lambda: picture.evaluate(script), "no picture could be decoded"))
    assert png.startswith(b"\x89PNG")
    return png


def readout(handle: Locator) -> float:
    slider = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]")
    return float(slider.locator(".widget-readout").inner_text().replace("−", "-"))


def press_arrow(page: Page, handle: Locator) -> int:
    handle.press("ArrowRight")
    return 1


def drag_left(page: Page, handle: Locator) -> int:
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y, steps=5)
    page.mouse.up()
    return -1


def check_names(explorer: Locator) -> None:
    """Every control, and the picture, has a name for those who do not see it; a slider that of its label."""
    for role in ("slider", "textbox", "combobox", "button", "img"):
        found = explorer.get_by_role(role)
        expect(explorer.get_by_role(role, name=re.compile(r"\S"))).to_have_count(found.count())
    labels = [label.inner_text() for label in explorer.locator(".widget-slider .widget-label").all()]
    assert labels
    for label in labels:
        expect(explorer.get_by_role("slider", name=label, exact=True)).to_be_visible()
        expect(explorer.get_by_role("textbox", name=f"{label}, as a number", exact=True)).to_be_visible()


def move_every_control(page: Page, explorer: Locator) -> None:
    """Move sliders by keyboard and by mouse, take another model, then reset: the picture must follow each time."""
    picture = explorer.locator("img.widget-image")
    explorer.scroll_into_view_if_needed()
    first, handles = shown(picture), explorer.get_by_role("slider").all()
    assert handles
    for handle, move in itertools.product(handles, (press_arrow, drag_left)):
        before, place = shown(picture), readout(handle)
        direction = move(page, handle)
        wait_for(page, lambda old=before: shown(picture) != old, f"the picture did not follow {move.__name__}")
        assert direction * (readout(handle) - place) > 0
    for menu in explorer.get_by_label("model").all():
        before = shown(picture)
        menu.focus()
        for key in ("Space", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        wait_for(page, lambda old=before: shown(picture) != old, "the picture did not follow the menu")
        expect(explorer.get_by_role("status")).to_contain_text(menu.input_value())
        expect(picture).to_have_attribute("title", re.compile(menu.input_value()))
    explorer.get_by_role("button", name="Reset").click()
    wait_for(page, lambda: shown(picture) == first, "Reset did not bring the first picture back")


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_explorers_have_names_and_follow_keyboard_and_mouse(
    page: Page, lab: Lab, place: str, complaints: list[str]
) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in EXPLORERS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab.folder / "explorers.ipynb")
    open_and_run(page, lab, "explorers.ipynb", place)
    if place == PLACES["Notebook 7"]:  # which complains of its own settings and commands as it opens a page
        complaints.clear()
    check_explorers(page, number=3)


@pytest.mark.parametrize("name", [name for name in NAMES if '"widget"' in (COURSE / name).read_text("utf-8")])
def test_explorers_of_the_course_follow_keyboard_and_mouse(page: Page, lab: Lab, name: str) -> None:
    film = {"film_frames": 9} if "film_frames" in (COURSE / name).read_text("utf-8") else {}
    sizes = check_parameters(COURSE / name, TINY[Path(name).stem] | film)
    notebook = parameterize_notebook(load_notebook_node(str(COURSE / name)), sizes)
    for cell in notebook.cells:
        cell.metadata.pop("jupyter", None)  # the page shows no prompt beside a hidden cell
    nbformat.write(notebook, lab.folder / name)
    open_and_run(page, lab, name, PLACES["JupyterLab"])
    check_explorers(page, sum("widget" in cell.metadata.get("tags", []) for cell in notebook.cells))


def check_explorers(page: Page, number: int) -> None:
    """Every explorer of the page has names for its controls, and its picture follows them."""
    outputs = page.locator(".jp-OutputArea-output").filter(has=page.locator("img.widget-image"))
    explorers = outputs.filter(has=page.get_by_role("slider")).all()
    assert len(explorers) == number
    for explorer in explorers:
        check_names(explorer)
        move_every_control(page, explorer)
    assert errors(page) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_opens_whole(page: Page, lab: Lab, name: str) -> None:
    """As committed, nothing run: every formula is set, every figure is drawn, no table is cut off."""
    shutil.copy(COURSE / name, lab.folder)
    page.goto(f"{lab.url}{PLACES['JupyterLab']}/{name}?token={lab.token}")
    cells = nbformat.read(COURSE / name, as_version=4).cells
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))
    formulas = sum("$" in cell.source for cell in cells if cell.cell_type == "markdown")
    wait_for(page, lambda: page.locator("mjx-container").count() >= formulas, "formulas were not set")
    assert page.locator("mjx-merror, merror").all_inner_texts() == []
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    images = page.locator(".jp-OutputArea-output img")
    expect(images).to_have_count(sum("image/png" in data for data in bundles))
    assert all(images.evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"))
    wide = "all => all.filter(t => t.scrollWidth > t.closest('.jp-Cell').clientWidth + 2).length"
    assert page.locator(".jp-RenderedHTMLCommon table").evaluate_all(wide) == 0
