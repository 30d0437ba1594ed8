"""The committed notebooks: one clean run each, complete, with stored outputs that nbval really compares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from isodiff import profiles
from isodiff.course import check_parameters, clean, notebook_parameters
from isodiff.course_index import figures, front_matter, output_data, title, verdicts
from isodiff.source_links import with_source_links

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = [
    "01_s2_toy_autoencoder",
    "02_noise_lives_on_a_sphere",
    "03_trace_without_the_matrix",
    "04_isometric_finetuning",
    "05_metrics",
    "06_traversal",
    "07_editing_and_inversion",
    "08_tangential_geodesics",
    "09_geodesics_of_images",
    "10_real_models",
    "11_ablations_and_cost",
    "12_verdict",
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def notebook(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_expected_and_every_expected_one_is_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert sorted(profiles.PROFILES) == NAMES


def test_is_valid_and_small(name: str, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= 1_000_000


def test_front_matter_is_complete(notebook: NotebookNode) -> None:
    assert title(notebook)
    text = " ".join(front_matter(notebook))
    for entry in ("question", "paper", "prerequisites", "time", "see"):
        assert entry in text, f"the front matter lacks {entry!r}; it has {text}"
    assert front_matter(notebook)["question"]


def test_parameters_are_the_common_ones_and_known_sizes(name: str, notebook: NotebookNode) -> None:
    parameters = notebook_parameters(notebook)
    common = {"profile": "cpu", "seed": 0, "device": "auto", "overrides": "{}"}
    assert parameters | common == parameters
    assert parameters.keys() - common.keys() <= profiles.size_hints(name).keys()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_every_profile_is_accepted(name: str, profile: str) -> None:
    changes = check_parameters(FOLDER / f"{name}.ipynb", profile, {})
    assert changes == ({} if profile == "cpu" else {"profile": "gpu"})


def test_outputs_are_from_one_clean_run(code: list[NotebookNode]) -> None:
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output.ename for output in outputs if output.output_type == "error"] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


def test_checked_cells_hold_outputs_to_compare(code: list[NotebookNode]) -> None:
    """A stripped notebook passes nbval while it checks nothing; this rules it out."""
    checked = [cell for cell in code if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(checked) >= 3
    for cell in checked:
        assert cell.source.strip()
        texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        assert "".join(texts).strip(), f"nothing to compare after: {cell.source[:80]}"


def test_shows_figures_and_ends_with_verdicts(notebook: NotebookNode) -> None:
    assert list(figures(notebook))
    assert verdicts(notebook)


def test_ends_with_links_to_the_lines_of_the_sources(notebook: NotebookNode) -> None:
    """Line numbers move with every change of the code."""
    assert notebook.cells[-1] == with_source_links(notebook).cells[-1], "run: python -m isodiff.source_links"


def test_holds_nothing_of_the_machine_it_ran_on(notebook: NotebookNode, code: list[NotebookNode]) -> None:
    assert clean(notebook) == notebook, "run it with: isodiff run NAME --update"
    texts = [cell.source for cell in notebook.cells]
    texts += [output.get("text", "") for cell in code for output in cell.outputs]
    for bundle in (bundle for cell in code for bundle in output_data(cell)):
        assert not any("widget" in mime for mime in bundle)
        texts += [json.dumps(value) for mime, value in bundle.items() if not mime.startswith("image/")]
    path = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)/|[A-Z]:\\\\?Users")
    assert [match[0] for text in texts for match in path.finditer(text)] == []
