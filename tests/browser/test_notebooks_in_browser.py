"""Notebooks in a real JupyterLab in a real browser: sliders move by keyboard and by mouse, and the picture follows."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from symtable import SymbolTable, symtable
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from isodiff.course import check_parameters

pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'isodiff[test]'")
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Lab
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

COURSE = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.name for path in COURSE.glob("*.ipynb"))
COURSE_MILLISECONDS = 15 * 60 * 1000  # a notebook without small sizes takes up to three minutes on two idle cores

# Sliders do not ask how large the rest of a notebook is; at full size nbval executes it. What is not named here is the
# notebook's own.
TRAVERSAL = {"num_ddim_steps": 2, "num_frames": 4, "num_pairs": 2, "num_radii": 2, "radii": [0.6, 1.0, 1.2]}
SMALL = {"06_traversal.ipynb": {**TRAVERSAL, "film_frames": 9}}

MODELS = """
from torch.nn.functional import normalize
from isodiff.diffusion import load_pipeline
import torch
from isodiff.geometry import lerp, project_to_tangent, slerp
from isodiff.metrics import Generator, draw_latents
from isodiff.plots import show, use_style
from isodiff.widgets import DirectionExplorer, LatentTraversal, SphereExplorer
use_style()
generators = {model: Generator(load_pipeline(f"digits16/{model}"), 2) for model in ("base", "isometric")}
latents = draw_latents((1, 16, 16), 0, 3, seed=0)
"""
DIRECTIONS = """
tangent = project_to_tangent(draw_latents((1, 16, 16), 3, 6, seed=0), latents)
directions = normalize(tangent.flatten(1), dim=1).reshape(3, 1, 1, 16, 16)
sigma = dict.fromkeys(generators, torch.ones(3, 1))
DirectionExplorer(
    generators, latents, dict.fromkeys(generators, directions), sigma=sigma, max_gamma=8.0, num_frames=17
)
"""
EXPLORERS = [
    'paths = {"slerp": slerp, "lerp": lerp}\n'
    "traversal = LatentTraversal(generators, latents, paths=paths, num_frames=17)\nshow(traversal.figure())",
    "traversal",
    DIRECTIONS,
    "SphereExplorer()",
]


def has_widget(name: str) -> bool:
    """Return whether a notebook has a cell tagged ``widget``."""
    return any("widget" in c.metadata.get("tags", []) for c in nbformat.read(COURSE / name, as_version=4).cells)


def for_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop the code cells that no widget needs: those that bind no name which one of them uses, nor for another."""
    used, kept = set(), []
    for cell in reversed(notebook.cells):
        if cell.cell_type == "code":
            bound, taken = names(cell.source)
            if "widget" not in cell.metadata.get("tags", []) and not bound & used:
                continue
            used |= taken
        kept.insert(0, cell)
    return nbformat.from_dict({**notebook, "cells": kept})


def names(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a cell binds, and those that it takes from elsewhere."""

    def taken_within(scope: SymbolTable) -> set[str]:
        inner = map(taken_within, scope.get_children())
        return {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}.union(*inner)

    cell = symtable(source, "cell", "exec")
    bound = {symbol.get_name() for symbol in cell.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    used = {symbol.get_name() for symbol in cell.get_symbols() if symbol.is_referenced()}
    return bound, used.union(*map(taken_within, cell.get_children())) - bound


def open_and_run(page: Page, lab: Lab, name: str, *, timeout: float | None = None) -> None:
    """Open a notebook, run all its cells from the menu, and wait until every one has run."""
    page.goto(f"{lab.url}doc/tree/{name}?token={lab.token}")
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    expect(page.locator(".jp-Toolbar-kernelName")).to_contain_text("Python 3")  # before, "No Kernel" is idle, too
    expect(idle).to_be_attached()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = nbformat.read(lab.folder / name, as_version=4).cells
    number = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").filter(has_text=re.compile(r"\[\d+\]"))
    expect(prompts).to_have_count(number, timeout=timeout)
    expect(idle).to_be_attached(timeout=timeout)


def errors(page: Page) -> list[str]:
    """Return what cells printed as an error or to standard error, and widgets that could not be shown."""
    kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    shown = page.locator(", ".join(f'.jp-OutputArea-output[data-mime-type="{kind}"]' for kind in kinds))
    return [
        *shown.all_inner_texts(),
        *page.locator(".jupyter-widgets-disconnected, .jupyter-widgets-error-widget").all_inner_texts(),
    ]


def digest(picture: Locator) -> str:
    """Return the SHA-256 of the PNG that an image of the page shows, once it shows one."""
    shown = """async image => {
        try {
            await image.decode();
            return Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()));
        } catch {
            return null;  // replaced meanwhile
        }
    }"""
    for _ in range(100):
        data = picture.evaluate(shown)
        if data:
            assert bytes(data[:4]) == b"\x89PNG"
            return hashlib.sha256(bytes(data)).hexdigest()
        picture.page.wait_for_timeout(100)
    pytest.fail("within ten seconds, no picture could be decoded")


def wait_for(page: Page, condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, at most a minute: two browsers may share the machine."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    pytest.fail(f"within a minute, {what}")


def move_every_slider(page: Page, explorer: Locator) -> None:
    """Move each slider by keyboard and by mouse, then reset: the picture must follow each time."""
    picture = explorer.locator("img.widget-image")
    explorer.scroll_into_view_if_needed()
    first = digest(picture)
    handles = explorer.get_by_role("slider").all()
    assert handles
    for handle in handles:
        for move in (press_arrow, drag_left):
            before, place = digest(picture), readout(handle)
            direction = move(page, handle)
            wait_for(page, lambda old=before: digest(picture) != old, f"the picture did not follow {move.__name__}")
            assert direction * (readout(handle) - place) > 0
    explorer.get_by_role("button", name="Reset").click()
    wait_for(page, lambda: digest(picture) == first, "Reset did not bring the first picture back")


def run_and_move(page: Page, lab: Lab, name: str, screenshots: Path, *, timeout: float | None = None) -> list[Locator]:
    """Run a notebook and move every slider of its explorers; return these."""
    open_and_run(page, lab, name, timeout=timeout)
    assert errors(page) == []
    outputs = page.locator(".jp-OutputArea-output").filter(has=page.locator("img.widget-image"))
    explorers = outputs.filter(has=page.get_by_role("slider")).all()
    assert explorers
    for number, explorer in enumerate(explorers, start=1):
        move_every_slider(page, explorer)
        explorer.screenshot(path=screenshots / f"{Path(name).stem}_{number}.png")
    assert errors(page) == []
    return explorers


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


def choose_another_model(page: Page, explorer: Locator) -> None:
    """Take the next entry of the menu of models by keyboard: picture and description must follow."""
    picture = explorer.locator("img.widget-image")
    before, menu = digest(picture), explorer.get_by_label("model")
    menu.focus()
    for key in ("Space", "ArrowDown", "Enter"):  # of a closed menu, JupyterLab would take the arrow for itself
        page.keyboard.press(key)
    wait_for(page, lambda: digest(picture) != before, "the picture did not follow the menu")
    expect(explorer.get_by_role("status")).to_contain_text(menu.input_value())
    expect(picture).to_have_attribute("title", re.compile(menu.input_value()))


def assert_whole(page: Page, cells: list[nbformat.NotebookNode]) -> None:
    """Fail unless the page shows as many pictures as the cells hold, each of them whole, and cuts off no table."""
    images = page.locator(".jp-OutputArea-output img")
    expect(images).to_have_count(
        sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    )
    sizes = images.evaluate_all("all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))")
    assert all(size > 0 for size in sizes)
    wide = page.locator(".jp-RenderedHTMLCommon table").evaluate_all(
        "all => all.filter(t => t.scrollWidth > t.closest('.jp-Cell').clientWidth + 2).length"
    )
    assert wide == 0


def test_explorers_follow_keyboard_and_mouse(page: Page, lab: Lab, screenshots: Path) -> None:
    cells = [new_code_cell(source.strip()) for source in (MODELS, *EXPLORERS)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), lab.folder / "explorers.ipynb")
    found = run_and_move(page, lab, "explorers.ipynb", screenshots)
    assert len(found) == 3
    choose_another_model(page, found[0])
    found[0].screenshot(path=screenshots / "explorers_1_isometric.png")
    assert errors(page) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", filter(has_widget, NAMES))
def test_notebooks_of_the_course(page: Page, lab: Lab, name: str, screenshots: Path) -> None:
    path = COURSE / name
    sizes = check_parameters(path, SMALL.get(name, {}))
    sized = parameterize_notebook(load_notebook_node(str(path)), sizes)
    nbformat.write(for_widgets(sized), lab.folder / name)
    run_and_move(page, lab, name, screenshots, timeout=COURSE_MILLISECONDS)


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
def test_every_page_opens_whole(browser: Browser, name: str, tmp_path: Path, screenshots: Path) -> None:
    """As `isodiff run` exports it: every figure is drawn, no table is cut off, nothing is wider than the page."""
    notebook = nbformat.read(COURSE / name, as_version=4)
    target = tmp_path / "page.html"
    target.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    # what sets the formulas comes from a server; how they are written is tested in JupyterLab, above
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.route(re.compile("^https?://"), lambda route: route.abort())
    page.goto(target.as_uri())
    assert page.locator(".jp-Cell").count() == len(notebook.cells)
    assert_whole(page, notebook.cells)
    across = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert across[0] <= across[1]
    page.screenshot(path=screenshots / f"{Path(name).stem}_page.png")
    page.close()
