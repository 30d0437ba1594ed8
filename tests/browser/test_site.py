"""The site and the pages of `make run`, opened from their files by a real browser that reaches no other host."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

import nbformat
import pytest

from isodiff import reproduce
from isodiff.course import MATHJAX, Page, as_page, index_notebook

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'isodiff[test]'")
expect = sync_api.expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
TEXTS = [path.relative_to(ROOT / "docs").with_suffix("") for path in sorted(ROOT.glob("docs/**/*.md"))]
SITE = [f"{name}.html" for name in (*map(str, TEXTS), *(f"notebooks/{name}" for name in NOTEBOOKS), "data/index")]
RUN = [
    pytest.param(f"run/{name}.html", marks=[] if name in ("index", NOTEBOOKS[1]) else pytest.mark.exhaustive)
    for name in ("index", *NOTEBOOKS)
]

# What a reader sees, as a function: text that has a box. Source of a formula in it, outside code. Text whose contrast
# with what is painted behind it is too low by WCAG 2: 4.5, or 3 where it is large.
SCRIPT = """() => {
  const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), seen = [];
  const drawn = { opacityProperty: true, visibilityProperty: true };
  for (let node; (node = all.nextNode()); ) {
    const at = node.parentElement;
    if (!node.data.trim() || at.closest("script, style, noscript, mjx-container")) continue;
    if (at.checkVisibility(drawn) && at.getClientRects().length) seen.push([node.data.trim(), at]);
  }
  const source = seen.filter(([text, at]) => !at.closest("code, pre") && /\\$[^$]+\\$|\\\\[a-zA-Z(]/.test(text));
  const parse = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const linear = (c) => (c <= 10.31 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
  const over = (under, top) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const painted = (at) => parse(getComputedStyle(at).backgroundColor);
  const behind = (at) => (at ? over(behind(at.parentElement), painted(at)) : [255, 255, 255]);
  const pale = new Set();
  for (const [text, at] of seen) {
    const { color, fontSize, fontWeight } = getComputedStyle(at), under = behind(at);
    const [a, b] = [light(over(under, parse(color))), light(under)], ratio = Math.max(a, b) / Math.min(a, b);
    const large = parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
    if (ratio < (large ? 3 : 4.5)) pale.add(`${ratio.toFixed(2)} ${at.tagName}.${at.className}: ${text.slice(0, 40)}`);
  }
  return { source: source.map(([text]) => text), pale: [...pale] };
}"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, which fails on any warning; in `run` beside it lie pages as `make run` writes them."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (folder / "run").mkdir()
    shutil.copy(ROOT / MATHJAX, folder / "run")
    return folder


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """Open an empty tab; in the end it must have asked no host, and had no exception and no error in its console."""
    complaints: list[str] = []
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.set_default_timeout(60_000)
    tab.route(re.compile("^(?!file:|data:|blob:)"), lambda route: route.abort())
    tab.on("request", lambda asked: re.match("file:|data:|blob:", asked.url) or complaints.append(asked.url))
    tab.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    tab.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    yield tab
    tab.close()
    assert complaints == []


def exported(name: str) -> str:
    """Return a page of `make run`, as if the notebooks had just run."""
    pages = {path.stem: Page(path.stem, nbformat.read(path, 4), 1.0) for path in ROOT.glob("notebooks/*.ipynb")}
    if name in pages:
        return as_page(pages[name].notebook, name)
    every = [pages[name] for name in NOTEBOOKS]
    return as_page(index_notebook(every, profile="cpu", parameters={}), name, bare=True)


def visit(tab: Tab, site: Path, name: str) -> None:
    """Open a page and wait until its formulas are set."""
    if name.startswith("run/") and not (site / name).exists():
        (site / name).write_text(exported((site / name).stem), "utf-8")
    tab.goto((site / name).as_uri())
    tab.evaluate("() => window.MathJax?.startup?.promise")


@pytest.mark.parametrize("name", [*SITE, *RUN])
def test_a_page_is_whole_readable_and_fits_a_phone(tab: Tab, site: Path, name: str) -> None:
    visit(tab, site, name)
    assert tab.evaluate(SCRIPT) == {"source": [], "pale": []}
    assert tab.locator("[data-mml-node=merror]").count() == 0
    if (number := re.search(r"\d\d_", name)) and number[0] not in ("13_",):
        assert tab.locator("mjx-container").count() > 10
    undescribed = "all => all.filter(i => !i.naturalWidth || !(i.alt || i.closest('[aria-hidden]'))).length"
    assert tab.locator("img").evaluate_all(undescribed) == 0
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("h1").first.bounding_box()["width"] <= 390


def test_every_link_leads_somewhere(site: Path) -> None:
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.html") if path.parent.name != "run"}
    marks = {path.resolve(): set(re.findall(r'\sid="([^"]+)"', text)) for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for link in map(html.unescape, re.findall(r'<(?:a|link|img|script)\s[^>]*?(?:href|src)="([^"]+)"', text)):
            target, mark = map(unquote, urldefrag(link))
            if re.match(r"\w+:", link) or path.name == "404.html":  # which knows no place of its own
                continue
            found = (path.parent / target).resolve() if target else path.resolve()
            found = found / "index.html" if found.is_dir() else found
            if not found.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif mark and found in marks and not {mark, urldefrag(link)[1]} & marks[found]:
                broken.append(f"{path.relative_to(site)}: {link}, which has no such mark")
    assert broken == []
    assert len(texts) == len(SITE) + 2  # CONTRIBUTING, and 404


def test_search_finds_a_word_of_a_notebook_and_leads_there(tab: Tab, site: Path) -> None:
    visit(tab, site, "index.html")
    tab.keyboard.press("/")
    tab.keyboard.type("Rademacher")
    hit = tab.locator(".md-search-result__link", has_text=re.compile("Trace without the matrix|Asking a matrix")).first
    hit.click()
    tab.wait_for_url(re.compile("03_trace_without_the_matrix"))


def test_the_keyboard_reaches_content_menus_and_links_and_shows_where_it_is(tab: Tab, site: Path) -> None:
    visit(tab, site, "symbols.html")
    tab.keyboard.press("Tab")
    assert "md-skip" in tab.evaluate("document.activeElement.className")
    expect(tab.locator(".md-skip")).to_be_in_viewport()
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        shown = "e => [e.textContent.trim(), parseFloat(getComputedStyle(e).outlineWidth), e.matches(':focus-visible')]"
        text, outline, visible = tab.evaluate(f"({shown})(document.activeElement)")
        assert outline >= 2 or not visible or not text, text
        reached.add(text)
    assert {"Home", "Course", "Verdict", "Use", "API", "From equation to function", "Metrics"} <= reached
    tab.locator(".md-skip").press("Enter")
    assert tab.evaluate("location.hash") == "#symbols"


def test_the_verdict_has_every_claim_as_recorded_and_sorts_by_keyboard(tab: Tab, site: Path) -> None:
    rows = json.loads((ROOT / "data/results/reproduce/verdicts.json").read_text("utf-8"))
    visit(tab, site, "verdict.html")
    there = dict(tab.locator("tbody tr").evaluate_all("all => all.map(row => [row.id, row.innerText])"))
    assert list(there) == [row["name"] for row in rows]
    for row in rows:
        claim, shown = reproduce.CLAIMS[row["name"]], there[row["name"]].replace("−", "-")
        wanted = [claim.statement, claim.source.replace("`", ""), claim.paper, row["family"], row["verdict"]]
        wanted.append(row["ours"].partition(f", {row['n_units']} ")[0])
        assert [text for text in wanted if text.replace("−", "-") not in shown] == [], row["name"]
    for column, key in (("here", "value"), ("n", "n_units"), ("detectable", "detectable")):
        button = tab.get_by_role("button", name=re.compile(f"^{column}"))
        for order, reverse in (("ascending", False), ("descending", True)):
            button.press("Enter")
            expect(tab.locator("th", has=button)).to_have_attribute("aria-sort", order)
            at = [next(row[key] for row in rows if row["name"] == name) for name in names(tab)]
            known = [value for value in at if value is not None]
            assert known == sorted(known, reverse=reverse)
            assert at[: len(known)] == known, "what has no number stands last"
    tab.get_by_role("button", name=re.compile("^claim")).press("Enter")
    assert names(tab) != list(there)


def names(tab: Tab) -> list[str]:
    return tab.locator("tbody tr").evaluate_all("all => all.map(row => row.id)")


def test_code_that_only_draws_is_folded_and_opens(tab: Tab, site: Path) -> None:
    for folder in ("notebooks", "run"):
        visit(tab, site, f"{folder}/02_noise_lives_on_a_sphere.html")
        fold = tab.locator("details", has_text="the code of this cell").first
        expect(fold.locator("pre").first).to_be_hidden()
        fold.locator("summary").press("Enter")
        expect(fold.locator("pre").first).to_be_visible()
