"""Notebooks in a real JupyterLab in a real browser: sliders move by keyboard and by mouse, and the picture follows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import nbformat
import pytest
import yaml
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from isodiff.course import check_parameters

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'isodiff[test]'")
from playwright.sync_api import expect

if TYPE_CHECKING:
    from conftest import Lab
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
T = TypeVar("T")

COURSE = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.name for path in COURSE.glob("*.ipynb"))
TINY = yaml.safe_load(Path(__file__).parents[1].joinpath("tiny.yaml").read_text(encoding="utf-8"))
EXPLORERS = [
    """
from torch.nn.functional import normalize
from isodiff.diffusion import load_pipeline
from isodiff.geometry import lerp, project_to_tangent, slerp
from isodiff.metrics import Generator, draw_latents
from isodiff.plots import show, use_style
from isodiff.widgets import DirectionExplorer, LatentTraversal, SphereExplorer
import torch
use_style()
generators = {model: Generator(load_pipeline(f"digits16/{model}"), 2) for model in ("base", "isometric")}
latents = draw_latents((1, 16, 16), 0, 3, seed=0)""",
    """
traversal = LatentTraversal(generators, latents, paths={"slerp": slerp, "lerp": lerp}, num_frames=17)
show(traversal.figure())""",
    "traversal",
    """
tangent = project_to_tangent(draw_latents((1, 16, 16), 3, 6, seed=0), latents)
directions = dict.fromkeys(generators, normalize(tangent.flatten(1), dim=1).reshape(3, 1, 1, 16, 16))
sigma = dict.fromkeys(generators, torch.ones(3, 1))
DirectionExplorer(generators, latents, directions, sigma=sigma, max_gamma=8.0, num_frames=17)""",
    "SphereExplorer()",
]


def open_and_run(page: Page, lab: Lab, name: str) -> None:
    """Open a notebook, run all its cells from the menu, and wait until every one has run."""
    page.goto(f"{lab.url}doc/tree/{name}?token={lab.token}")
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


def wait_for(page: Page, condition: Callable[[], T], what: str) -> T:
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
    """Return the value beside a slider."""
    slider = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]")
    return float(slider.locator(".widget-readout").inner_text().replace("−", "-"))


def press_arrow(page: Page, handle: Locator) -> int:
    """Move a slider up by the keyboard."""
    handle.press("ArrowRight")
    return 1


def drag_left(page: Page, handle: Locator) -> int:
    """Move a slider down by the mouse."""
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 30, y, steps=5)
    page.mouse.up()
    return -1


def move_every_slider(page: Page, explorer: Locator) -> None:
    """Move each slider by keyboard and by mouse, then reset: the picture must follow each time."""
    picture = explorer.locator("img.widget-image")
    explorer.scroll_into_view_if_needed()
    first, handles = shown(picture), explorer.get_by_role("slider").all()
    assert handles
    for handle in handles:
        for move in (press_arrow, drag_left):
            before, place = shown(picture), readout(handle)
            direction = move(page, handle)
            wait_for(page, lambda old=before: shown(picture) != old, f"the picture did not follow {move.__name__}")
            assert direction * (readout(handle) - place) > 0
    explorer.get_by_role("button", name="Reset").click()
    wait_for(page, lambda: shown(picture) == first, "Reset did not bring the first picture back")


def run_and_move(page: Page, lab: Lab, name: str, screenshots: Path) -> list[Locator]:
    """Run a notebook and move every slider of its explorers; return these."""
    open_and_run(page, lab, name)
    assert errors(page) == []
    outputs = page.locator(".jp-OutputArea-output").filter(has=page.locator("img.widget-image"))
    explorers = outputs.filter(has=page.get_by_role("slider")).all()
    for number, explorer in enumerate(explorers, start=1):
        move_every_slider(page, explorer)
        explorer.screenshot(path=screenshots / f"{Path(name).stem}_{number}.png")
    assert errors(page) == []
    return explorers


def assert_whole(page: Page, cells: list[nbformat.NotebookNode]) -> None:
    """Fail unless the page shows as many pictures as the cells hold, each of them whole, and cuts off no table."""
    images = page.locator(".jp-OutputArea-output img")
    bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    expect(images).to_have_count(sum("image/png" in data for data in bundles))
    assert all(images.evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"))
    wide = "all => all.filter(t => t.scrollWidth > t.closest('.jp-Cell').clientWidth + 2).length"
    assert page.locator(".jp-RenderedHTMLCommon table").evaluate_all(wide) == 0


def test_explorers_follow_keyboard_and_mouse(page: Page, lab: Lab, screenshots: Path) -> None:
    cells = [new_code_cell(source.strip()) for source in EXPLORERS]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), lab.folder / "explorers.ipynb")
    found = run_and_move(page, lab, "explorers.ipynb", screenshots)
    assert len(found) == 3
    picture, menu = found[0].locator("img.widget-image"), found[0].get_by_label("model")
    before = shown(picture)
    menu.focus()
    for key in ("Space", "ArrowDown", "Enter"):  # of a closed menu, JupyterLab would take the arrow for itself
        page.keyboard.press(key)
    wait_for(page, lambda: shown(picture) != before, "the picture did not follow the menu")
    expect(found[0].get_by_role("status")).to_contain_text(menu.input_value())
    expect(picture).to_have_attribute("title", re.compile(menu.input_value()))
    assert errors(page) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in NAMES if '"widget"' in (COURSE / name).read_text("utf-8")])
def test_notebooks_of_the_course(page: Page, lab: Lab, name: str, screenshots: Path) -> None:
    sizes = check_parameters(COURSE / name, TINY[Path(name).stem] | {"film_frames": 9})
    notebook = parameterize_notebook(load_notebook_node(str(COURSE / name)), sizes)
    for cell in notebook.cells:
        cell.metadata.pop("jupyter", None)  # the page shows no prompt beside a hidden cell
    nbformat.write(notebook, lab.folder / name)
    assert run_and_move(page, lab, name, screenshots)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_opens_whole(page: Page, lab: Lab, name: str, screenshots: Path) -> None:
    """As committed, nothing run: every formula is set, every figure is drawn, no table is cut off."""
    shutil.copy(COURSE / name, lab.folder)
    page.goto(f"{lab.url}doc/tree/{name}?token={lab.token}")
    cells = nbformat.read(lab.folder / name, as_version=4).cells
    expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(cells))
    formulas = sum("$" in cell.source for cell in cells if cell.cell_type == "markdown")
    wait_for(page, lambda: page.locator("mjx-container").count() >= formulas, "formulas were not set")
    assert page.locator("mjx-merror, merror").all_inner_texts() == []
    assert_whole(page, cells)
    page.screenshot(path=screenshots / f"{Path(name).stem}_opened.png")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_every_page_opens_whole(browser: Browser, name: str, tmp_path: Path) -> None:
    """As `isodiff run` exports it: every figure is drawn, no table is cut off, nothing is wider than the page."""
    notebook = nbformat.read(COURSE / name, as_version=4)
    target = tmp_path / "page.html"
    target.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    with browser.new_page(viewport={"width": 1280, "height": 1000}) as page:
        page.route(re.compile("^https?://"), lambda route: route.abort())  # formulas, tested above, come from a server
        page.goto(target.as_uri())
        assert page.locator(".jp-Cell").count() == len(notebook.cells)
        assert_whole(page, notebook.cells)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
