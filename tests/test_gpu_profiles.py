"""Every notebook at profile gpu, from its first cell to its last: what a GPU would run has run at least small.

One whose gpu profile asks for nothing else than cpu is left to nbval. Each other one is executed by the course's own
runner on the CPU. A table makes single sizes small; every other size is the profile's own, so that one that is
renamed, removed or no longer accepted by a cell fails here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from isodiff.course import course_notebooks, run_notebooks
from isodiff.course_index import output_data, verdicts
from isodiff.paths import repository_root
from isodiff.profiles import PROFILES

NOTEBOOKS = {path.stem: path for path in course_notebooks(repository_root() / "notebooks")}
LARGER = [name for name in NOTEBOOKS if PROFILES[name]["gpu"] != PROFILES[name]["cpu"]]

# The smallest sizes at which every cell has enough to show. A new notebook needs an entry of its own.
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
        "metrics": ["isotropy"],
        "measured": '{"num_isotropy": 4, "spectrum_times": [800]}',
        "num_ddim_steps": 2,
        "num_processes": 1,
    },
    "11_ablations_and_cost": {"num_live_steps": 2, "batch_size": 2},
}


@pytest.mark.parametrize("name", LARGER)
def test_the_gpu_profile_of_each_notebook_runs(name: str, tmp_path: Path) -> None:
    assert name in TINY, f"{name} has no small sizes; add them to TINY in {Path(__file__).name}"
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    asked = "import dataclasses, json\nprint(json.dumps(dataclasses.asdict(settings), default=str))"
    notebook.cells.append(new_code_cell(asked))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")

    (outcome,) = run_notebooks(
        profile="gpu",
        parameters={"device": "cpu", **TINY[name]},
        output=tmp_path / "out",
        folder=tmp_path / "notebooks",
    )
    assert outcome.failure is None, f"{outcome.failure.where}: {outcome.failure.what}"
    used = json.loads(outcome.notebook.cells[-1].outputs[-1].text)
    own = json.loads(json.dumps(dataclasses.asdict(PROFILES[name]["gpu"]), default=str))
    assert used == {**own, **TINY[name], "profile": "gpu", "device": "cpu"}
    assert verdicts(outcome.notebook)
    assert any(
        "image/png" in bundle for cell in outcome.notebook.cells if "outputs" in cell for bundle in output_data(cell)
    )


@pytest.mark.parametrize("name", LARGER)
def test_the_table_leaves_something_of_each_profile(name: str) -> None:
    assert TINY[name].keys() < dataclasses.asdict(PROFILES[name]["gpu"]).keys()
