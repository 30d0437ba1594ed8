"""Folders of records as the runner writes them, with numbers of chance in place of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from isodiff.profiles import settings
from isodiff.reproduce.experiments import Program
from isodiff.reproduce.runner import FORMAT, Place, Run, runs_of, settings_of
from isodiff.sizes_evaluation import EvaluationSettings

PATHS = ("converged", "detail", "distance", "endpoint_error", "excess", "jerkiness", "length", "relative_energy")
PATHS += ("seconds", "straightness", "unevenness")
INVERSION = ("inversion_mse", "inversion_lpips", "latent_correlation", "latent_kurtosis", "latent_norm_ratio")
EDITS = ("monotone_share", "move_error", "other_change", "rank_correlation", "spill_over", "target_change")
EDITS += ("target_share",)
TRUTH = ("factor_excess", "factor_path_length", "factor_straightness", "manifold_distance")
PROTOCOLS = ("training", "cross-validated", "shuffled")

# family → names of its measurements at given sizes, all of pixels and of a sampler that clips
FAMILIES: dict[str, Callable[[EvaluationSettings], Iterable[str]]] = {
    "fid": lambda sizes: ["fid"],
    "kid": lambda sizes: ["kid"],
    "mrtl": lambda sizes: ["mrtl"],
    "mcn": lambda sizes: [f"mcn_t{t}" for t in sizes.spectrum_times],
    "vor": lambda sizes: [f"vor{form}_t{t}" for form in ("", "_squared", "_affine") for t in sizes.spectrum_times],
    "isotropy": lambda sizes: [f"isotropy_t{t}" for t in sizes.spectrum_times],
    "ppl": lambda sizes: [f"ppl_{net}_{mode}" for net in sizes.ppl_networks for mode in sizes.ppl_modes],
    "truth": lambda sizes: TRUTH,
    "directions": lambda sizes: EDITS,
    "map": lambda sizes: ["map_isotropy", "map_condition", "map_vor"],
    "inversion": lambda sizes: [
        f"{name}_s{steps}_r{refinements}{clip}"
        for name, steps, refinements, clip in product(
            INVERSION, sizes.inversion_steps, sizes.refinements, ("", "_clipped")
        )
    ],
    "separability": lambda sizes: [f"ls_{kernel}_{p}" for kernel in ("linear", "rbf") for p in PROTOCOLS],
    "interpolation": lambda sizes: [f"path_{name}_{method}" for method in sizes.path_methods for name in PATHS],
}

PROGRAMS = {
    "sphere": (
        *(f"stress_{method}" for method in ("reconstruction", "chart_identity", "stereographic")),
        *("isotropy_estimated", "isotropy_exact"),
    ),
    "trace": ("slope", "error_1", "error_256"),
    "shell": ("radius_excess", "thickness_excess"),
    "cost": ("dsm_seconds", "term_seconds", "step_ratio", "row_ratio"),
}

Draw = Callable[[Run, str], float]
"""A number for one run and the name of one of its measurements or values."""


def measured_names(run: Run, place: Place) -> list[str]:
    """Return the names of what a run measures, from its families and sizes as the runner resolves them."""
    experiment = place.experiment(run.experiment)
    if isinstance(experiment, Program):
        return list(PROGRAMS[experiment.function])
    arm = experiment.arms[run.arm]
    sizes = settings(
        "evaluation",
        profile="gpu" if place.profile == "gpu" else "cpu",
        seed=run.seed,
        device="cpu",
        overrides=json.dumps({**experiment.sizes, **arm.sizes}),
    )
    return [name for family in arm.families for name in FAMILIES[family](sizes)]


def record_of(run: Run, place: Place, draw: Draw) -> dict[str, Any]:
    """Return the record of a run with drawn numbers; the curves' names are those of their quantity and part."""
    experiment = place.experiment(run.experiment)
    facts = {"experiment": run.experiment, "seed": run.seed, "arm": run.arm, "settings": settings_of(run, place)}
    body: dict[str, Any] = {"format": FORMAT, "run": {**facts, "profile": place.profile}}
    values = {name: draw(run, name) for name in measured_names(run, place)}
    if isinstance(experiment, Program):
        return {**body, "values": values, "versions": {}, "revision": ""}
    plain = {"interval": None, "n": 40, "unit": "pairs", "protocol": {}, "details": {}}
    measurements = {name: {"value": value, **plain} for name, value in values.items()}
    if "mrtl" in measurements:
        late, early = draw(run, "rtl_late"), draw(run, "rtl_early")
        curve = {
            "steps": [999, 749, 500, 499, 249],
            "value": [1.5 * late, late, 0.5 * late, 1.25 * early, 0.75 * early],
        }
        measurements["mrtl"]["details"] = curve
    if experiment.arms[run.arm].changes is not None:
        body["curves"] = {"dsm": [9.0, 9.0, draw(run, "dsm")], "step": [1, 2, 3], "isotropy": [None] * 3}
        body["curves"]["dsm"].append(body["curves"]["dsm"][-1])
    return {**body, "measurements": measurements, "versions": {}, "revision": ""}


def write_records(
    folder: Path,
    *,
    profile: str = "smoke",
    names: Iterable[str] | None = None,
    num_seeds: int | None = None,
    draw: Draw | None = None,
) -> Place:
    """Write a record for every run of some experiments and return where they are.

    Args:
        folder: Where.
        profile: Of the experiments.
        names: Experiments; all by default.
        num_seeds: Only the first of them; all by default.
        draw: Numbers; independent ones, uniform on [0.5, 2], by default.
    """
    place = Place(profile, folder, folder / "work")
    source = np.random.default_rng(0)
    draw = draw or (lambda run, name: float(source.uniform(0.5, 2)))
    chosen = names or ("faces16", "faces32", "latent64", *PROGRAMS)
    for run in runs_of(place, chosen):
        if num_seeds is None or run.seed < num_seeds:
            write(folder / run.file, record_of(run, place, draw))
    return place


def write(path: Path, body: dict[str, Any]) -> None:
    """Write one record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
