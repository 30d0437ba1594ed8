"""The committed notebooks: one clean run each, complete, with stored outputs that nbval really compares."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from isodiff.course import Page, check_parameters, clean, notebook_parameters, run_notebooks

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
GPU = yaml.safe_load((FOLDER / "gpu.yaml").read_text(encoding="utf-8"))


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
    assert set(GPU) <= set(NAMES)


def test_is_valid_and_small(name: str, notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= 1_000_000


def test_front_matter_is_complete(name: str, notebook: NotebookNode) -> None:
    page = Page(name, notebook, 0.0)
    assert page.title != name
    assert page.question
    front = notebook.cells[0].source.lower()
    assert [entry for entry in ("question", "paper", "prerequisites", "time", "see") if f"**{entry}" not in front] == [
        entry for entry in ("see",) if "you will see**" in front
    ]


def test_parameters_begin_with_the_common_ones_and_the_papers_scale_fits(name: str, notebook: NotebookNode) -> None:
    parameters = notebook_parameters(notebook)
    assert list(parameters.items())[:2] == [("seed", 0), ("device", "auto")]
    larger = GPU.get(name, {})
    assert check_parameters(FOLDER / f"{name}.ipynb", larger) == larger, "gpu.yaml repeats a value of the notebook"


def test_imports_fit_in_ten_lines(code: list[NotebookNode]) -> None:
    lines = [line for cell in code for line in cell.source.splitlines() if re.match(r"(from \S+ )?import ", line)]
    assert len(lines) <= 10, lines


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


def test_shows_figures_and_ends_with_verdicts(name: str, notebook: NotebookNode) -> None:
    page = Page(name, notebook, 0.0)
    assert page.figures
    assert page.verdicts


def test_links_to_files_lead_somewhere(notebook: NotebookNode) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_holds_nothing_of_the_machine_it_ran_on(notebook: NotebookNode, code: list[NotebookNode]) -> None:
    assert clean(notebook) == notebook, "run it with: isodiff run NAME --update"
    texts = [cell.source for cell in notebook.cells]
    texts += [output.get("text", "") for cell in code for output in cell.outputs]
    for bundle in (output.data for cell in code for output in cell.outputs if "data" in output):
        assert not any("widget" in mime for mime in bundle)
        texts += [json.dumps(value) for mime, value in bundle.items() if not mime.startswith("image/")]
    path = re.compile(r"(?<![\w.:/<])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)/|[A-Z]:\\\\?Users")
    assert [match[0] for text in texts for match in path.finditer(text)] == []


# The smallest sizes at which every cell has enough to show.
TINY: dict[str, dict[str, Any]] = {
    "01_s2_toy_autoencoder": {
        "num_seeds": 3,
        "sweep_seeds": 2,
        "num_steps": 200,
        "batch_size": 32,
        "max_reconstruction": 10.0,
        "num_repeats": 2,
    },
    "02_noise_lives_on_a_sphere": {
        "num_noise": 40,
        "num_pairs": 4,
        "num_images": 8,
        "face_resolution": 32,
        "numbers_at_once": 2**20,
    },
    "03_trace_without_the_matrix": {
        "num_repeats": 20,
        "ratio_repeats": 40,
        "resolutions": [16, 24],
        "num_timings": 1,
        "oracle_resolution": 16,
        "num_probes": 256,
    },
    "04_isometric_finetuning": {
        "num_live_steps": 2,
        "batch_size": 4,
        "num_images": 32,
        "num_jacobian_images": 16,
        "num_spectra": 1,
        "num_samples": 25,
        "num_ddim_steps": 2,
    },
    "05_metrics": {
        "num_images": 24,
        "num_repeats": 2,
        "num_path_pairs": 4,
        "epsilons": [1e-2, 1e-3],
        "num_rtl_pairs": 2,
        "num_ddim_steps": 2,
        "num_spectra": 2,
        "spectrum_k": 4,
        "num_separable": 64,
        "path_frames": 3,
        "num_experiments": 40,
        "num_checked": 2,
    },
    "06_traversal": {
        "num_frames": 4,
        "num_pairs": 2,
        "num_radii": 2,
        "radii": [0.6, 1.0, 1.2],
        "num_ends": 2,
        "num_checked": 2,
        "film_frames": 3,
        "num_ddim_steps": 2,
    },
    "07_editing_and_inversion": {
        "num_ddim_steps": 2,
        "gammas": [1.0, 2.0],
        "num_latents": 2,
        "num_inverted": 2,
        "inversion_steps": [2, 4],
        "refinements": 1,
        "num_injected": 2,
        "injection_steps": 4,
        "film_frames": 3,
    },
    "08_tangential_geodesics": {
        "num_points": 20,
        "num_faces": 2,
        "face_times": [200, 400],
        "num_values": 14,
        "num_segments": 32,
        "trap_segments": 32,
        "num_samples": 1_000,
        "num_pairs": 2,
    },
    "09_geodesics_of_images": {"num_pairs": 2, "num_segments": 4, "num_ddim_steps": 5, "refinements": 1},
    "10_real_models": {
        "use_hub": False,
        "dataset": "faces",
        "num_shell_images": 16,
        "num_shown": 2,
        "num_live_steps": 4,
        "batch_size": 4,
        "metrics": ["anisotropy"],
        "num_ddim_steps": 2,
        "num_processes": 1,
    },
    "11_ablations_and_cost": {"num_live_steps": 2, "batch_size": 2},
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in NAMES if name in GPU])
def test_what_a_gpu_would_run_has_run_at_least_small(name: str, tmp_path: Path) -> None:
    """Single sizes are made small; every other value is that of the paper's scale."""
    (page,) = run_notebooks([name], profile="gpu", parameters={"device": "cpu", **TINY[name]}, output=tmp_path)
    assert page.failure == ""
    assert page.figures
    assert page.verdicts
