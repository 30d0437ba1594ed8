"""The texts of the site: results are named, not typed; symbols, names and menus are those of the course."""

from __future__ import annotations

import hashlib
import json
import pydoc
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8") for path in ROOT.glob("docs/**/*.md")}
NOTEBOOKS = sorted(path.name for path in ROOT.glob("notebooks/*.ipynb"))
MENU = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text("utf-8"))


def markdown(name: str) -> str:
    cells = json.loads((ROOT / "notebooks" / name).read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_result_is_typed(name: str) -> None:
    """A percentage or an interval stands between braces, which are filled from records; 95 % is a convention."""
    typed = re.sub(r"\{\{.*?\}\}|```.*?```|`[^`]*`|\$[^$]*\$|95 %", "", TEXTS[name], flags=re.DOTALL)
    assert re.findall(r"[-+−]?\d[\d.,]* ?%|\[[-+−]?\d[\d.]*, ?[-+−]?\d[\d.]*\]", typed) == []


def test_every_page_is_in_the_menu_once() -> None:
    def leaves(entry: object) -> list[str]:
        below = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else None
        return [entry] if below is None else [leaf for one in below for leaf in leaves(one)]

    there = leaves(yaml.safe_load(MENU)["nav"])
    assert sorted(there) == sorted(
        {*TEXTS, *(f"notebooks/{n}" for n in NOTEBOOKS), "data/README.md", "CONTRIBUTING.md"}
    )


def test_a_symbol_stands_once_with_the_notebook_that_uses_it_first() -> None:
    rows = re.findall(
        r"^\| (\$.+?\$).*? \|.*\| \[(\d\d)\]\(\.\./notebooks/(\S+)\) \|$", TEXTS["symbols.md"], re.MULTILINE
    )
    assert len(rows) > 60
    symbols = [(part, name) for cell, number, name in rows for part in re.split(r",\\;\s*", cell.strip("$"))]
    assert sorted({part for part, _ in symbols}) == sorted(part for part, _ in symbols)
    assert all(name.startswith(number) for _, number, name in rows)
    texts = {name: markdown(name) for name in NOTEBOOKS}
    single = [(part, name) for part, name in symbols if re.fullmatch(r"\\?(hat |bar\\?)?\w+(_\\?\w+|_\{\w+\})?", part)]
    assert [(part, name) for part, name in single if part not in texts[name]] == []


def test_names_are_names_of_the_package_and_files_are_there() -> None:
    text = "\n".join(TEXTS.values())
    names = re.findall(r"`((?:geometry|diffusion|metrics|editing|reproduce)(?:\.\w+)+)`", text)
    assert len(names) > 30
    assert [name for name in names if pydoc.locate(f"isodiff.{name}") is None] == []
    assert [
        file for file in re.findall(r"`((?:isodiff|benchmarks|docs)/[^`]+)`", text) if not (ROOT / file).exists()
    ] == []


def test_scripts_of_others_are_as_published() -> None:
    known = {
        "tex-svg-full.js": "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6",
        "iframe-worker.js": "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609",
    }
    for name, digest in known.items():
        content = (ROOT / "docs" / "vendor" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        assert (ROOT / "docs" / "vendor" / name.replace(".js", ".LICENSE.txt")).is_file()
