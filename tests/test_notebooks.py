"""The committed notebooks: one clean run each, complete, with stored outputs that nbval really compares."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from isodiff.course import Page, check_parameters, clean, notebook_parameters, run_notebooks

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
GPU = yaml.safe_load((FOLDER / "gpu.yaml").read_text(encoding="utf-8"))
TINY = yaml.safe_load(Path(__file__).with_name("tiny.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=NAMES)
def page(request: pytest.FixtureRequest) -> Page:
    return Page(request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4), minutes=0.0)


@pytest.fixture(scope="module")
def code(page: Page) -> list[NotebookNode]:
    return [cell for cell in page.notebook.cells if cell.cell_type == "code"]


def test_the_course_has_thirteen_notebooks_in_order() -> None:
    assert [name[:3] for name in NAMES] == [f"{number:02}_" for number in range(1, 14)]
    assert set(TINY) == set(GPU) <= set(NAMES)


def test_is_valid_and_small_and_has_front_matter_figures_and_verdicts(page: Page) -> None:
    nbformat.validate(page.notebook)
    assert (FOLDER / f"{page.name}.ipynb").stat().st_size <= 1_000_000
    front, entries = page.notebook.cells[0].source.lower(), ("**question", "**paper", "**prereq", "**time", "see**")
    assert [entry for entry in entries if entry not in front] == []
    assert all((page.title != page.name, page.question, page.figures, page.tables))


def test_parameters_begin_with_the_common_ones_and_the_papers_scale_fits(page: Page) -> None:
    assert list(notebook_parameters(page.notebook).items())[:2] == [("seed", 0), ("device", "auto")]
    larger = GPU.get(page.name, {})
    assert check_parameters(FOLDER / f"{page.name}.ipynb", larger) == larger, "gpu.yaml repeats a value of the notebook"


def test_code_has_ten_lines_of_imports_and_outputs_of_one_clean_run(code: list[NotebookNode]) -> None:
    lines = [line for cell in code for line in cell.source.splitlines() if re.match(r"(from \S+ )?import ", line)]
    assert len(lines) <= 10, lines
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_checked_cells_hold_outputs_to_compare(code: list[NotebookNode]) -> None:
    """A stripped notebook passes nbval while it checks nothing; this rules it out."""
    checked = [cell for cell in code if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert len(checked) >= 3
    for cell in checked:
        texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        assert "".join(texts).strip(), f"nothing to compare after: {cell.source[:80]}"


def test_links_to_files_lead_somewhere(page: Page) -> None:
    text = "\n".join(cell.source for cell in page.notebook.cells if cell.cell_type == "markdown")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_holds_nothing_of_the_machine_it_ran_on(page: Page, code: list[NotebookNode]) -> None:
    assert clean(page.notebook) == page.notebook, "run it with: isodiff run NAME --update"
    texts, outputs = [cell.source for cell in page.notebook.cells], [output for cell in code for output in cell.outputs]
    texts += [output.get("text", "") for output in outputs]
    bundles = [item for output in outputs for item in output.get("data", {}).items()]
    texts += [json.dumps(value) for mime, value in bundles if not mime.startswith("image/")]
    path = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)/|[A-Z]:\\\\?Users")
    assert [match[0] for text in texts for match in path.finditer(text)] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", GPU)
def test_what_a_gpu_would_run_has_run_at_least_small(name: str, tmp_path: Path) -> None:
    (page,) = run_notebooks([name], profile="gpu", parameters={"device": "cpu", **TINY[name]}, output=tmp_path)
    assert all((not page.failure, page.figures, page.tables)), page.failure
