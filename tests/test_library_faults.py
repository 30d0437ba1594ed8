"""What functions refuse, tabled: NaN, no rows, wrong shapes, generators that fail; the error names what it received."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.geometry import (
    expected_radius,
    hutchinson,
    inverse_stereographic,
    isometry_loss,
    jvp,
    project_to_tangent,
    singular_values,
    slerp,
    stereographic,
)
from isodiff.geometry.geodesics import solve_geodesic
from isodiff.metrics.feature_distances import frechet_distance, kernel_distance
from isodiff.metrics.fidelity import extract_features
from isodiff.metrics.intervals import bootstrap_interval, paired_bootstrap_interval
from isodiff.metrics.isotropy import condition_number, metric_variance
from isodiff.metrics.path_length import perceptual_path_length, squared_l2
from isodiff.metrics.separability import separability_score
from isodiff.metrics.spectrum import map_isotropy, mean_condition_number
from isodiff.metrics.trajectory import trajectory_ratio
from isodiff.metrics.truth import excess_variation

nan, rows = np.full((40, 3), np.nan), np.random.default_rng(0).normal(size=(40, 3))
ones, zeros, image = torch.ones, torch.zeros, (3, 8, 8)
LIBRARY = [
    # metrics
    ("NaN in features", lambda: frechet_distance(nan, rows), "must be finite; got 120"),
    ("features of two networks", lambda: kernel_distance(rows, rows[:, :2]), "one dimension; got 3 and 2"),
    ("one feature", lambda: frechet_distance(rows[:1], rows), "at least 2 are needed"),
    ("images that are numbers", lambda: extract_features(rows, None), "images must be a uint8 array"),
    ("NaN along a path", lambda: trajectory_ratio(np.full((2, 3, 4), np.nan)), "h must be finite"),
    ("a path without axis", lambda: trajectory_ratio(rows), "h must be (paths"),
    ("a path to itself", lambda: trajectory_ratio(np.zeros((2, 3, 4))), "no chord"),
    ("NaN in a spectrum", lambda: condition_number(nan), "sigma must be finite"),
    ("a singular matrix", lambda: condition_number(np.zeros((3, 2))), "condition number infinite"),
    ("the variance of one", lambda: metric_variance(rows[:1]), "n ≥ 2"),
    ("NaN in latents", lambda: separability_score(nan, np.ones((40, 1), bool)), "latents must be finite"),
    ("labels of others", lambda: separability_score(rows, np.ones((39, 1), bool)), "one row a latent"),
    ("one class", lambda: separability_score(rows, np.ones((40, 1), bool)), "40 latents with it and 0 without"),
    ("an interval of NaN", lambda: bootstrap_interval(nan[:, 0]), "values must be finite"),
    ("an interval of nothing", lambda: bootstrap_interval(rows[:0, 0]), "at least 2 entries"),
    ("pairs of two lengths", lambda: paired_bootstrap_interval(rows[:, 0], rows[:5, 0]), "must be paired"),
    ("NaN in factors", lambda: excess_variation(np.full((2, 3, 10), np.nan)), "factors must be finite"),
    ("a generator of NaN", lambda: _path_length(lambda x: x * torch.nan), "generate must give finite images"),
    ("a generator of one", lambda: _path_length(lambda x: x[:1].tanh()), "generate must give images (32,"),
    ("a generator of bytes", lambda: _path_length(lambda x: 255 * x.tanh()), "generate must give images in [−1, 1]"),
    ("a generator of halves", lambda: _path_length(lambda x: x.tanh().half()), "float32 or better"),
    ("a map to NaN", lambda: map_isotropy(lambda x: x * torch.nan, torch.randn(20, 5)), "must be finite"),
    ("its spectrum", lambda: mean_condition_number(lambda x: x * torch.nan, torch.randn(9, 5), k=2), "must be finite"),
    ("no point", lambda: mean_condition_number(torch.tanh, zeros(0, 5), k=2), "at least"),
    # geometry
    ("a sphere without dimension", lambda: expected_radius(0), "n must be at least 2"),
    ("no row in a chart", lambda: stereographic(zeros(0, 3), 1.0), "at least one; got shape (0, 3)"),
    ("the pole of a chart", lambda: stereographic(torch.tensor([[0.0, 0.0, 1.0]]), 1.0), "must not hold the pole"),
    ("a negative radius", lambda: inverse_stereographic(ones(2, 3), -1.0), "radius must be positive"),
    ("a tangent at zero", lambda: project_to_tangent(ones(2, 3), zeros(2, 3)), "no zero rows"),
    ("a tangent of another shape", lambda: project_to_tangent(ones(2, 3), ones(2, 4)), "the shape of x"),
    ("no row to interpolate", lambda: slerp(zeros(0, 3), zeros(0, 3), 0.5), "non-empty batch"),
    ("positions of others", lambda: slerp(ones(2, 3), ones(2, 3), ones(3)), "a number or of shape (2,)"),
    ("a direction of another shape", lambda: jvp(torch.tanh, ones(2, 3), ones(2, 4)), "the shape of x, (2, 3)"),
    ("no row in a spectrum", lambda: singular_values(torch.tanh, zeros(0, 3), 1), "non-empty batch"),
    ("no probe", lambda: hutchinson(lambda v: v, zeros(0, 3)), "non-empty tensor"),
    ("no row in a loss", lambda: isometry_loss(torch.tanh, zeros(0, 3)), "non-empty batch"),
    ("a map that loses rows", lambda: isometry_loss(lambda x: x[:1], ones(2, 3)), "must map 2 rows to 2 rows"),
    ("a path to elsewhere", lambda: _geodesic(b=ones(1, 3)), "the shape of a, (1, 2)"),
    ("a path from NaN", lambda: _geodesic(a=ones(1, 2) * torch.nan), "a must be finite"),
    ("a score of NaN", lambda: _geodesic(lambda x: x * torch.nan), "must be finite, got nan"),
    ("no noise", lambda: _geodesic(sigma=0.0), "sigma must be positive"),
    ("no segment", lambda: _geodesic(num_segments=0), "num_segments must be at least 2"),
]


def _path_length(generate: Callable[[Tensor], Tensor]) -> object:
    return perceptual_path_length(generate, image, squared_l2, num_pairs=40)


def _geodesic(score: Callable[[Tensor], Tensor] = lambda x: -x, **options: object) -> object:
    ends = {"a": ones(1, 2), "b": -2 * ones(1, 2), "sigma": 1.0, "num_segments": 4}
    return solve_geodesic(score, **ends | options)


@pytest.mark.parametrize(("what", "attempt", "words"), LIBRARY, ids=[what for what, _, _ in LIBRARY])
def test_the_library_names_what_it_refuses(what: str, attempt: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        attempt()
    assert words in str(refused.value)
