"""The names that others rely on, each called once, with the shapes it states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import isodiff.geometry.geodesics as geodesics
import isodiff.geometry.isometry as isometry
import isodiff.geometry.jacobian as jacobian
import isodiff.geometry.sphere as sphere
import isodiff.geometry.trace as trace
from isodiff import metrics
from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion import build_pipeline
from isodiff.diffusion.finetune import FinetuneConfig, finetune
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.process import ddim_invert, ddim_sample
from isodiff.metrics.fidelity import frechet_distance
from isodiff.metrics.jacobians import condition_number, metric_variance
from isodiff.metrics.separability import separability_score
from isodiff.metrics.trajectory import trajectory_ratio

B, n = 3, 8


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(B, n, dtype=torch.float64)


@pytest.fixture
def f() -> nn.Module:
    return nn.Linear(n, 5, bias=False).double()


def test_sphere(x: torch.Tensor) -> None:
    assert sphere.expected_radius(n) == pytest.approx(math.sqrt(2) * math.gamma((n + 1) / 2) / math.gamma(n / 2))
    assert sphere.expected_radius(10**7) == pytest.approx(math.sqrt(10**7), rel=1e-6)
    on_sphere = 2 * nn.functional.normalize(x)
    z = sphere.stereographic(on_sphere, 2.0)
    assert z.shape == (B, n - 1)
    torch.testing.assert_close(sphere.inverse_stereographic(z, 2.0), on_sphere)
    assert sphere.conformal_factor(z, 2.0).shape == (B,)
    assert (sphere.project_to_tangent(torch.randn_like(x), x) * x).sum(1).abs().max() < 1e-12
    for between in (sphere.lerp, sphere.slerp):
        assert between(x, -x, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).shape == x.shape
        torch.testing.assert_close(between(x, x.flip(0), 1.0), x.flip(0))


def test_jacobian(f: nn.Module, x: torch.Tensor) -> None:
    J, v = f.weight, torch.randn_like(x)
    torch.testing.assert_close(jacobian.jvp(f, x, v)[1], v @ J.T)
    torch.testing.assert_close(jacobian.vjp(f, x, torch.ones(B, 5, dtype=x.dtype))[1], J.sum(0).expand(B, n))
    _, Jv, JtJv = jacobian.pullback_vp(f, x, v)
    torch.testing.assert_close((Jv, JtJv), (v @ J.T, v @ J.T @ J))
    expected = torch.linalg.svdvals(J)[:2].expand(B, 2)
    torch.testing.assert_close(jacobian.singular_values(f, x, 2), expected, rtol=1e-6, atol=0)
    assert jacobian.singular_values(f, x, 2, tangent=True).shape == (B, 2)


def test_trace_and_isometry(f: nn.Module, x: torch.Tensor) -> None:
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
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    result = geodesics.solve_geodesic(lambda x: -x, a.double(), b.double(), sigma=1.0, num_segments=4)
    assert result.path.shape == (1, 5, 2)
    assert result.energy.shape == (1,)
    assert isinstance(result.converged, torch.Tensor | list | tuple | bool)
    assert result.reason is not None


def test_datasets_and_diffusion() -> None:
    factors = torch.zeros(2, len(FACTORS), requires_grad=True)
    images = render(factors, 16)
    assert images.shape == (2, 3, 16, 16)
    images.sum().backward()
    pipeline = build_pipeline("digits16", channels=1, seed=0)
    images = torch.zeros(2, 1, 16, 16)
    assert encode(pipeline.unet, images, torch.tensor([600, 600])).shape[0] == 2
    x_T = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 2).shape == x_T.shape
        assert ddim_invert(pipeline.unet, pipeline.scheduler, images, 2).shape == x_T.shape
    config = FinetuneConfig(num_steps=1, batch_size=2)
    (state,) = finetune(pipeline, _Images(images), config)
    assert state.step == 1


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_metrics_on_arrays() -> None:
    rng = np.random.default_rng(0)
    arc = np.linspace(0, np.pi / 2, 65)
    h = np.stack([np.cos(arc), np.sin(arc)], axis=1)[None]
    assert trajectory_ratio(h) == pytest.approx([np.pi / 2 / np.sqrt(2)], rel=1e-4)
    a = rng.normal(size=(50, 4))
    assert frechet_distance(a, a + 2) == pytest.approx(16, rel=1e-6)
    sigma = np.array([[4.0, 2.0], [2.0, 1.0]])
    assert condition_number(sigma) == 2
    assert metrics.metric_variance is metric_variance
    assert metric_variance(sigma) == pytest.approx(np.var(sigma, axis=0).sum())
    labels = rng.integers(0, 2, (50, 1)).astype(bool)
    assert separability_score(a, labels) >= 1


def test_drivers_are_handed_on() -> None:
    """`metric_variance` is Eq. 11 itself, of singular values; what measures it on a map is `map_variance`."""
    drivers = (
        *("fid", "kid", "perceptual_path_length", "relative_trajectory_length", "mean_condition_number"),
        *("map_variance", "linear_separability"),
    )
    assert all(callable(getattr(metrics, name)) for name in drivers)
