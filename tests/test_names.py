"""The names that others rely on are where they look for them; what an empty batch or another number of rows meets."""

import pydoc

import numpy as np
import pytest
import torch

from isodiff import geometry, metrics
from isodiff.metrics.jacobians import metric_variance

from .geometry.tensors import refusals

NAMES = {
    "geometry.sphere": "conformal_factor expected_radius inverse_stereographic project_to_tangent stereographic",
    "geometry": "lerp slerp",
    "geometry.jacobian": "jvp pullback_vp singular_values singular_vectors vjp",
    "geometry.trace": "hutchinson",
    "geometry.isometry": "anisotropy exact_isometry_loss isometry_loss",
    "geometry.geodesics": "solve_geodesic",
    "datasets.faces": "FACTORS render",
    "diffusion.finetune": "FinetuneConfig finetune",
    "diffusion.hspace": "encode",
    "diffusion.process": "ddim_invert ddim_sample",
    "metrics": "fid kid linear_separability map_variance mean_condition_number perceptual_path_length "
    "relative_trajectory_length",
    "metrics.fidelity": "frechet_distance",
    "metrics.jacobians": "condition_number metric_variance",
    "metrics.separability": "separability_score",
    "metrics.trajectory": "trajectory_ratio",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_are_there(module: str) -> None:
    assert [name for name in NAMES[module].split() if pydoc.locate(f"isodiff.{module}.{name}") is None] == []


def test_the_name_of_eq_11_is_the_formula_and_not_what_measures_it() -> None:
    """`metric_variance` is of singular values; what measures it on a map is `map_variance`."""
    assert metrics.metric_variance is metric_variance
    assert metric_variance(np.array([[4.0, 2.0], [2.0, 1.0]])) == pytest.approx(1 + 1 / 4)


test_other_batches_are_refused = refusals(
    (lambda: geometry.stereographic(torch.zeros(0, 3), 1.0), r"at least one; got shape \(0, 3\)"),
    (lambda: geometry.slerp(torch.zeros(0, 3), torch.zeros(0, 3), 0.5), "non-empty batch"),
    (lambda: geometry.isometry_loss(lambda x: x[:1], torch.ones(2, 3)), "must map 2 rows to 2 rows"),
)
