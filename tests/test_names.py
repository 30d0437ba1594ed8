"""The names that others rely on, each called once, with the shapes it states; what they refuse by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from isodiff import geometry, metrics
from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion import build_pipeline
from isodiff.diffusion.finetune import FinetuneConfig, finetune
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import ddim_invert, ddim_sample
from isodiff.geometry import geodesics, isometry, jacobian, sphere, trace
from isodiff.metrics.fidelity import frechet_distance
from isodiff.metrics.jacobians import condition_number, metric_variance
from isodiff.metrics.separability import separability_score
from isodiff.metrics.trajectory import trajectory_ratio

B, n = 3, 8
x, J = torch.randn(B + 5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).split((B, 5))
v = x.flip(0, 1)


def f(x: torch.Tensor) -> torch.Tensor:
    return x @ J.T


def test_sphere() -> None:
    assert sphere.expected_radius(n) == pytest.approx(math.sqrt(2) * math.gamma((n + 1) / 2) / math.gamma(n / 2))
    assert sphere.expected_radius(10**7) == pytest.approx(math.sqrt(10**7), rel=1e-6)
    z = sphere.stereographic(2 * torch.nn.functional.normalize(x), 2.0)
    assert z.shape == (B, n - 1)
    assert sphere.inverse_stereographic(z, 2.0).shape == (B, n)
    assert sphere.conformal_factor(z, 2.0).shape == (B,)
    assert sphere.project_to_tangent(v, x).shape == x.shape
    for between in (sphere.lerp, sphere.slerp):
        assert between(x, -x, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).shape == x.shape
        torch.testing.assert_close(between(x, x.flip(0), 1.0), x.flip(0))


def test_jacobian() -> None:
    torch.testing.assert_close(jacobian.jvp(f, x, v)[1], v @ J.T)
    torch.testing.assert_close(jacobian.vjp(f, x, torch.ones(B, 5, dtype=x.dtype))[1], J.sum(0).expand(B, n))
    torch.testing.assert_close(jacobian.pullback_vp(f, x, v)[1:], (v @ J.T, v @ J.T @ J))
    for tangent in (False, True):
        assert jacobian.singular_values(f, x, 2, tangent=tangent).shape == (B, 2)


def test_trace_and_isometry() -> None:
    matrix, probes = torch.diag(torch.arange(4.0)), torch.tensor([[1.0, -1, 1, 1], [1, 1, -1, 1]])
    estimate = trace.hutchinson(lambda v: v @ matrix, probes)
    assert (estimate.mean, estimate.standard_error) == (6, 0)
    for metric in ("stereographic", "chart_identity", "euclidean"):
        exact = isometry.exact_isometry_loss(f, x, metric=metric)
        loss = isometry.isometry_loss(f, x, metric=metric, num_probes=2000)
        assert loss.shape == exact.shape == ()
        assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    assert isometry.anisotropy(0.5, n, 5) == 2.5


def test_geodesics() -> None:
    a, b = torch.eye(2, dtype=torch.float64)[:, None]
    result = geodesics.solve_geodesic(lambda x: -x, a, b, sigma=1.0, num_segments=4)
    assert result.path.shape == (1, 5, 2)
    assert result.energy.shape == (1,)
    assert len(result.length) == len(result.converged) == len(result.reason) == 1


def test_datasets_and_diffusion() -> None:
    assert render(torch.zeros(2, len(FACTORS)), 16).shape == (2, 3, 16, 16)
    pipeline, x = build_pipeline("digits16", channels=1, seed=0), torch.randn(2, 1, 16, 16)
    assert encode(pipeline.unet, x, torch.tensor([600, 600])).shape[0] == 2
    with torch.no_grad():
        assert ddim_sample(pipeline.unet, pipeline.scheduler, x, 2).shape == x.shape
        assert ddim_invert(pipeline.unet, pipeline.scheduler, x, 2).shape == x.shape
    (state,) = finetune(pipeline, list(x.clamp(-1, 1)), FinetuneConfig(num_steps=1, batch_size=2))
    assert state.step == 1


def test_metrics() -> None:
    """`metric_variance` is Eq. 11 itself, of singular values; what measures it on a map is `map_variance`."""
    a, sigma = np.random.default_rng(0).normal(size=(50, 4)), np.array([[4.0, 2.0], [2.0, 1.0]])
    assert trajectory_ratio(np.array([[[0.0, 0], [1, 0], [1, 1]]])) == pytest.approx([math.sqrt(2)])
    assert frechet_distance(a, a + 2) == pytest.approx(16, rel=1e-6)
    assert condition_number(sigma) == 2
    assert metric_variance(sigma) == pytest.approx(np.var(sigma, axis=0).sum())
    assert separability_score(a, a[:, :1] > 0) >= 1
    assert metrics.metric_variance is metric_variance
    drivers = "fid kid perceptual_path_length relative_trajectory_length mean_condition_number linear_separability"
    assert all(callable(getattr(metrics, name)) for name in (*drivers.split(), "map_variance"))


nan, rows = np.full((40, 3), np.nan), np.random.default_rng(0).normal(size=(40, 3))
ones, zeros, yes = torch.ones, torch.zeros, np.ones((40, 1), bool)
BLANK = partial(torch.mul, other=torch.nan)
LIBRARY = [
    (lambda: metrics.frechet_distance(rows[:1], rows), "must have shape (≥ 2, ≥ 1)"),
    (lambda: metrics.extract_features(rows, None), "images must be a uint8 array"),
    (lambda: metrics.trajectory_ratio(rows), "h must have shape"),
    (lambda: metrics.trajectory_ratio(np.zeros((2, 3, 4))), "no chord"),
    (lambda: metrics.condition_number(np.zeros((3, 2))), "the rank is less than k"),
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
