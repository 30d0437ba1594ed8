"""Links from notebooks to the lines of the package: resolved, always last, and never made up."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from isodiff.source_links import HEADING, definition, source_links, used_names, with_links_from, with_source_links

ROOT = Path(__file__).resolve().parents[1]
CODE = """%matplotlib inline
import math
from isodiff import profiles
from isodiff.geometry import slerp as arc
from isodiff.plots import geodesics as drawn, metrics
arc, math.pi, profiles.settings(metrics.metric_by_size)"""


def notebook(*code: str) -> NotebookNode:
    return new_notebook(cells=[new_markdown_cell("# A title"), *map(new_code_cell, code)])


def line_of(module: str, name: str) -> str:
    path, number = definition(module, name)
    return (ROOT / path).read_text(encoding="utf-8").splitlines()[number - 1]


@pytest.mark.parametrize(
    ("module", "name", "path", "line"),
    [
        ("isodiff.geometry.sphere", "slerp", "isodiff/geometry/sphere.py", "def slerp("),
        ("isodiff.geometry", "slerp", "isodiff/geometry/sphere.py", "def slerp("),  # imported there
        ("isodiff.widgets", "SphereExplorer", "isodiff/widgets/sphere.py", "class SphereExplorer("),
        (
            "isodiff.metrics",
            "Measurement",
            "isodiff/metrics/measurement.py",
            "class Measurement",
        ),  # loaded when asked for
        ("isodiff.datasets.faces", "FACTORS", "isodiff/datasets/faces.py", "FACTORS = "),
    ],
)
def test_a_name_is_found_where_it_is_written(module: str, name: str, path: str, line: str) -> None:
    assert definition(module, name)[0] == path
    assert line_of(module, name).startswith(line)


def test_what_counts_is_what_is_imported_and_what_is_used_of_a_module() -> None:
    assert used_names(notebook(CODE)) == {
        ("isodiff.geometry", "slerp"),
        ("isodiff.profiles", "settings"),
        ("isodiff.plots.metrics", "metric_by_size"),
    }


def test_each_name_is_linked_beside_its_file() -> None:
    path, number = definition("isodiff.geometry", "slerp")
    assert f"| `{path}` | [`slerp`](../{path}#L{number}) |" in source_links(notebook(CODE)).splitlines()


def test_the_table_comes_last_once_and_is_the_same_again() -> None:
    before = notebook(CODE)
    untouched = copy.deepcopy(before)
    once = with_source_links(before)
    assert before == untouched
    assert once.cells[:-1] == before.cells
    assert once.cells[-1].source.startswith(HEADING)
    assert with_source_links(once) == once
    once.cells[-1].source += " stale"
    once.cells.append(new_markdown_cell("a new last word"))
    again = with_source_links(once)
    assert [cell.source for cell in again.cells[-2:]] == ["a new last word", source_links(before)]


def test_a_notebook_without_the_package_has_no_table() -> None:
    plain = notebook("import math")
    assert with_source_links(plain) == plain


def test_elsewhere_the_links_lead_to_the_same_files(tmp_path: Path) -> None:
    table = with_links_from(with_source_links(notebook(CODE)), tmp_path).cells[-1].source
    link = table.split("](")[1].split("#")[0]
    assert (tmp_path / link).resolve().is_relative_to(ROOT / "isodiff")
    assert (tmp_path / link).resolve().is_file()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from isodiff.geometry import slurp", "isodiff.geometry defines no slurp"),
        ("from isodiff.metrics import slurp", "isodiff.metrics defines no slurp"),
        ("from isodiff.nowhere import slerp", "there is no module isodiff.nowhere"),
        ("from isodiff import profiles\nprofiles.setings()", "isodiff.profiles defines no setings"),
    ],
)
def test_a_name_that_does_not_exist_is_an_error(code: str, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        source_links(notebook(code))
