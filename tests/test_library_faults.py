"""What the library refuses beside the tables of its modules' own tests; the error names what it received."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from isodiff import geometry, metrics

nan, rows = np.full((40, 3), np.nan), np.random.default_rng(0).normal(size=(40, 3))
ones, zeros, yes = torch.ones, torch.zeros, np.ones((40, 1), bool)
BLANK = partial(torch.mul, other=torch.nan)
LIBRARY = [
    (lambda: metrics.frechet_distance(rows[:1], rows), "at least 2 are needed"),
    (lambda: metrics.extract_features(rows, None), "images must be a uint8 array"),
    (lambda: metrics.trajectory_ratio(rows), "h must be (paths"),
    (lambda: metrics.trajectory_ratio(np.zeros((2, 3, 4))), "no chord"),
    (lambda: metrics.condition_number(np.zeros((3, 2))), "condition number infinite"),
    (lambda: metrics.separability_score(rows, yes[1:]), "one row a latent"),
    (lambda: metrics.bootstrap_interval(nan[:, 0]), "values must be finite"),
    (lambda: metrics.paired_bootstrap_interval(rows[:, 0], rows[:5, 0]), "must be paired"),
    (lambda: metrics.perceptual_path_length(BLANK, (3, 8, 8), metrics.squared_l2, num_pairs=40), "must give finite"),
    (lambda: metrics.map_anisotropy(BLANK, torch.randn(20, 5)), "must be finite"),
    (lambda: metrics.mean_condition_number(torch.tanh, zeros(0, 5), k=2), "at least"),
    (lambda: geometry.expected_radius(0), "n must be at least 2"),
    (lambda: geometry.stereographic(zeros(0, 3), 1.0), "at least one; got shape (0, 3)"),
    (lambda: geometry.project_to_tangent(ones(2, 3), zeros(2, 3)), "no zero rows"),
    (lambda: geometry.slerp(zeros(0, 3), zeros(0, 3), 0.5), "non-empty batch"),
    (lambda: geometry.isometry_loss(lambda x: x[:1], ones(2, 3)), "must map 2 rows to 2 rows"),
]


@pytest.mark.parametrize(("attempt", "words"), LIBRARY, ids=[words for _, words in LIBRARY])
def test_the_library_names_what_it_refuses(attempt: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        attempt()
    assert words in str(refused.value)
