"""The score's Jacobian against closed-form spectra, double reverse mode, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isodiff.geometry.jacobian import dense_jacobian
from isodiff.geometry.manifold_scores import NoisyShell
from isodiff.geometry.score_jacobian import score_jacobian_product, score_spectrum, tangent_filter
from isodiff.geometry.scores import GaussianMixture, LowRankGaussian


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(d: int, k: int, sigma: float = 0.5) -> LowRankGaussian:
    basis = torch.linalg.qr(noise(d, k))[0]
    return LowRankGaussian(sigma=sigma, basis=basis, variances=torch.linspace(1, 3, k, dtype=torch.float64), alpha=0.9)


def eigenvalues(score: LowRankGaussian) -> Tensor:
    """Return σ²/(α²λᵢ + σ²), ascending: λ is."""
    return (score.sigma**2 / (score.alpha**2 * score.variances + score.sigma**2)).flip(0)


@pytest.mark.parametrize("d", [2, 7, 20])
def test_products_agree_with_double_reverse_mode_and_finite_differences(d: int) -> None:
    score = GaussianMixture(means=noise(5, d, seed=5), sigma=0.8)
    x, v = noise(3, d, seed=1), noise(3, d, seed=2)
    product = score_jacobian_product(score, x, v, sigma=0.8)
    dense = torch.stack([torch.autograd.functional.jacobian(lambda z: score(z[None])[0], row) for row in x])
    torch.testing.assert_close(product, -0.64 * (dense @ v[..., None])[..., 0], rtol=0, atol=1e-12)
    reverse = torch.autograd.functional.jvp(score, x, v)[1]
    torch.testing.assert_close(product, -0.64 * reverse, rtol=0, atol=1e-12)
    step = 1e-5
    difference = (score(x + step * v) - score(x - step * v)) / (2 * step)
    torch.testing.assert_close(product, -0.64 * difference, rtol=0, atol=1e-8)
    torch.testing.assert_close(tangent_filter(score, x, v, sigma=0.8), v - product, rtol=0, atol=0)


def test_the_filter_keeps_tangents_and_removes_normals_of_a_subspace() -> None:
    """Exact at every σ: tangents shrink by α²λ/(α²λ + σ²), normals vanish."""
    score = gaussian(6, 2, sigma=0.01)
    tangent = score.basis @ torch.tensor([0.6, -0.8], dtype=torch.float64)
    v = noise(1, 6, seed=3)
    normal = v - v @ score.basis @ score.basis.mT
    x = noise(1, 6, seed=4)
    kept = tangent_filter(score, x, tangent[None], sigma=0.01)
    torch.testing.assert_close(kept, tangent[None], rtol=0, atol=2e-4)
    removed = tangent_filter(score, x, normal, sigma=0.01)
    torch.testing.assert_close(removed, torch.zeros_like(v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dimension", "sigma", "tabulated"),
    [(2, 0.1, 0.99496), (2, 0.2, 0.97936), (2, 0.4, 0.90687), (3, 0.1, 0.98990), (3, 0.2, 0.95826), (3, 0.4, 0.80012)],
)
def test_eigenvalues_on_the_ridge_of_a_noisy_shell(dimension: int, sigma: float, tabulated: float) -> None:
    """Exactly 0 along the d − 1 tangents; along the radius 1 − R²A′/σ², A′ = 1 − A² − (d−1)A/κ with A = r*/R there."""
    score = NoisyShell(sigma=sigma, shell_dimension=dimension)
    assert score.ridge_radius == pytest.approx(tabulated, abs=5e-6)
    x = score.ridge_radius * torch.nn.functional.normalize(noise(4, dimension), dim=1)
    found = score_spectrum(score, x, sigma=sigma, k=dimension)
    r = score.ridge_radius
    slope = 1 - r**2 - (dimension - 1) * sigma**2
    radial = torch.full((4,), 1 - slope / sigma**2, dtype=torch.float64)
    torch.testing.assert_close(found.leading[:, 0], radial, rtol=1e-9, atol=0)
    assert found.smallest[:, : dimension - 1].max() < 1e-9
    assert (found.dimension == dimension - 1).all()
    assert found.asymmetry.max() < 1e-12


@pytest.mark.parametrize("d", [20, 200])  # dense and by Krylov spaces
def test_the_spectrum_of_a_subspace(d: int) -> None:
    score = gaussian(d, 4)
    found = score_spectrum(score, noise(2, d, seed=1), sigma=score.sigma, k=8)
    expected = torch.cat([eigenvalues(score), torch.ones(4, dtype=torch.float64)]).expand(2, -1)
    torch.testing.assert_close(found.smallest, expected, rtol=0, atol=5e-3 if d > 128 else 1e-12)
    torch.testing.assert_close(found.leading, torch.ones(2, 8, dtype=torch.float64), rtol=0, atol=1e-9)
    assert found.dimension.tolist() == [4, 4]
    assert found.asymmetry.max() < 1e-9


def test_the_dimension_is_that_of_the_variances_that_the_noise_does_not_drown() -> None:
    """σ²/(λ + σ²) < ½ exactly where λ > σ²."""
    basis = torch.linalg.qr(noise(12, 5))[0]
    variances = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    for sigma, dimension in ((0.3, 5), (0.6, 4), (0.9, 3), (1.2, 2), (1.7, 1), (2.5, 0)):
        score = LowRankGaussian(sigma=sigma, basis=basis, variances=variances)
        found = score_spectrum(score, noise(1, 12, seed=1), sigma=sigma, k=12)
        assert found.dimension.item() == dimension
        assert score_spectrum(score, noise(1, 12, seed=1), sigma=sigma, k=1).dimension.item() == min(dimension, 1)


def test_between_two_modes_the_eigenvalue_is_negative_and_no_tangent() -> None:
    """Ĵ = 1 − m²/σ² along the line through modes at ±m: −8 for m = 1.5, σ = 0.5, which no projector has."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=torch.float64)
    score = GaussianMixture(means=means, sigma=0.5)
    x = torch.zeros(1, 2, dtype=torch.float64)
    along = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(score_jacobian_product(score, x, along, sigma=0.5), -8 * along)
    found = score_spectrum(score, x, sigma=0.5, k=2)
    torch.testing.assert_close(found.leading, torch.tensor([[8.0, 1.0]], dtype=torch.float64))
    assert found.dimension.item() == 0


@pytest.mark.parametrize("n", [6, 150])
def test_asymmetry_of_a_linear_map(n: int) -> None:
    """‖A − Aᵀ‖ / ‖A‖ for a score −(S + K)x/σ²: exactly 2‖K‖ / ‖S + K‖, S symmetric and K not."""
    square = noise(n, n) / math.sqrt(n)
    symmetric, skew = torch.eye(n, dtype=torch.float64) + square + square.mT, 0.3 * (square - square.mT)
    matrix = symmetric + skew
    expected = (2 * skew.norm() / matrix.norm()).item()
    score = lambda x: -(x @ matrix.mT) / 0.25  # noqa: E731
    found = score_spectrum(score, noise(2, n), sigma=0.5, k=2, num_probes=64, max_iterations=n)
    assert found.asymmetry.tolist() == pytest.approx([expected] * 2, rel=0.05 if n > 128 else 1e-10)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(found.leading, values[:2].expand(2, -1), rtol=2e-2 if n > 128 else 1e-10, atol=0)
    torch.testing.assert_close(
        found.smallest, values.flip(0)[:2].expand(2, -1), rtol=0, atol=2e-2 if n > 128 else 1e-10
    )


def test_by_krylov_spaces_the_smallest_values_bound_the_true_ones_from_above() -> None:
    """For a nonlinear score in 140 dimensions whose Jacobian is known densely."""
    n = 140
    means = torch.zeros(3, n, dtype=torch.float64)
    means[0, 0], means[1, 1], means[2, :2] = 2.0, 2.0, -1.0
    score = GaussianMixture(means=means, sigma=1.0)
    x = 0.3 * noise(2, n, seed=3)
    found = score_spectrum(score, x, sigma=1.0, k=5)
    exact = torch.linalg.svdvals(dense_jacobian(score, x)).flip(1)[:, :5]
    assert (found.smallest >= exact - 1e-10).all()
    torch.testing.assert_close(found.smallest, exact, rtol=0, atol=1e-3)


def test_a_spectrum_that_does_not_settle_is_an_error() -> None:
    """A thousand singular values spread from 0 up: twenty dimensions cannot tell the smallest apart."""
    spread = torch.linspace(0, 1, 1000, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="did not converge"):
        score_spectrum(lambda x: -spread * x, noise(1, 1000), sigma=1.0, k=4, max_iterations=5)


def test_points_may_have_any_shape() -> None:
    score = gaussian(12, 2)
    x, v = noise(2, 12), noise(2, 12, seed=1)
    folded = score_jacobian_product(
        lambda y: score(y.flatten(1)).reshape(y.shape), x.reshape(2, 3, 2, 2), v.reshape(2, 3, 2, 2), sigma=0.5
    )
    torch.testing.assert_close(folded.flatten(1), score_jacobian_product(score, x, v, sigma=0.5))


def test_bad_input_is_refused() -> None:
    score, x = gaussian(4, 2), noise(2, 4)
    for sigma in (0.0, -0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            score_jacobian_product(score, x, x, sigma=sigma)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k must be between 1 and 4, got {k}"):
            score_spectrum(score, x, sigma=0.5, k=k)
    with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
        score_spectrum(score, x, sigma=0.5, k=1, num_probes=0)
    with pytest.raises(ValueError, match="v must have the shape of x"):
        score_jacobian_product(score, x, x[:, :3], sigma=0.5)
    with pytest.raises(ValueError, match=r"score must return the shape \(2, 4\) of its argument, got \(2, 3\)"):
        tangent_filter(lambda y: y[:, :3], x, x, sigma=0.5)
    with pytest.raises(ValueError, match="x must be finite"):
        score_jacobian_product(score, x * math.nan, x, sigma=0.5)
