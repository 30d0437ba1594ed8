"""Spectra of maps and what is made of them: closed forms, dense against iterative, batches, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Tensor

from isodiff.diffusion import build_pipeline, ddim_sample, encode
from isodiff.geometry import anisotropy, exact_isometry_loss
from isodiff.metrics import compare, jacobians
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.jacobians import affine_invariant_variance, condition_number, map_variance, mean_condition_number

from ..geometry.tensors import noise, refusals


def orthogonal(n: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(noise(n, n, seed=seed))[0]


def bend(x: Tensor) -> Tensor:
    """Map row by row, with another Jacobian at every point."""
    return torch.sin(x @ noise(30, 40, seed=2).mT / 4)


@pytest.fixture(scope="module")
def pipeline() -> DiffusionPipeline:
    return build_pipeline("digits16", resolution=8)


RANK = 10
X_0 = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("k", "method"), [(2, "iterative"), (6, "dense")])
def test_a_scaled_isometry_has_condition_number_one_and_no_variation(k: int, method: str) -> None:
    q = 2.5 * orthogonal(40)
    f, x = lambda z: z @ q, noise(5, 40)
    measured = mean_condition_number(f, x, k=k)
    assert (measured.value, measured.protocol["method"]) == (pytest.approx(1, abs=1e-9), method)
    for form in ("sigma", "sigma_squared"):
        assert map_variance(f, x, k=k, form=form).value == pytest.approx(0, abs=1e-9)
    assert jacobians.map_anisotropy(f, noise(500, 40)).value == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("method", "accuracy"), [("dense", 1e-6), ("iterative", 1e-2)])
def test_prescribed_spectra_are_recovered(method: str, accuracy: float) -> None:
    """Of a map that is blind to the radial direction of its points, which all lie on one axis."""
    k, spectrum = 20, 3 * (1 + torch.arange(150, dtype=torch.float64)) ** -0.1
    axes = orthogonal(200)
    a, x = (axes[:, :150] * spectrum) @ orthogonal(150, seed=3).mT, torch.stack([axes[:, -1], -2 * axes[:, -1]])
    sigma = jacobians.singular_spectrum(lambda z: z @ a, x, k, method=method)
    np.testing.assert_allclose(sigma, spectrum[:k].expand(2, k), rtol=accuracy)
    ratio = (spectrum[0] / spectrum[1]).item()
    np.testing.assert_allclose(mean_condition_number(lambda z: z @ a, x, k=2).replicates, ratio, rtol=0.02)


def test_variance_of_a_family_of_scalings_in_closed_form() -> None:
    """The gradient of (aᵀz)² / 2 is (aᵀz) a, whose tangent part is that of length |aᵀx| |a − (aᵀx̂) x̂|."""
    x, a = noise(40, 3), noise(3, seed=5)
    f = lambda z: 0.5 * (z @ a).square()[:, None]  # noqa: E731
    unit = x / x.norm(dim=1, keepdim=True)
    sigma = ((x @ a).abs() * (a - (unit @ a)[:, None] * unit).norm(dim=1)).numpy()
    measured = map_variance(f, x, k=1)
    assert measured.value == pytest.approx(sigma.var(), rel=1e-9)
    assert map_variance(f, x, k=1, form="sigma_squared").value == pytest.approx((sigma**2).var())
    assert measured.interval[0] < measured.value < measured.interval[1]


@pytest.mark.parametrize(("k", "accuracy"), [(3, 0.02), (4, 1e-6)], ids=["iterative", "dense"])
def test_the_affine_invariant_form_is_that_of_the_metrics_on_shared_directions(k: int, accuracy: float) -> None:
    """They are the JᵀJ of J (I − x̂x̂ᵀ), by autograd and by hand."""
    x = noise(4, 40)
    unit = x / x.norm(dim=1, keepdim=True)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: bend(z[None])[0], row) for row in x])
    jacobian -= (jacobian @ unit[:, :, None]) * unit[:, None]
    metrics = jacobian.mT @ jacobian
    leading = torch.linalg.eigh(metrics.mean(0))[1][:, -k:]
    expected = affine_invariant_variance(leading.mT @ metrics @ leading)
    assert map_variance(bend, x, k=k, form="affine-invariant").value == pytest.approx(expected, rel=accuracy)


def test_pooling_averages_the_bottleneck_and_the_sampler_is_not_clamped(pipeline: DiffusionPipeline) -> None:
    h, pooled = encode(pipeline.unet, X_0, 600), jacobians.encoder_map(pipeline.unet, 600, pooling="mean")
    torch.testing.assert_close(jacobians.encoder_map(pipeline.unet, 600)(X_0), h)
    torch.testing.assert_close(pooled(X_0).flatten(1), h.mean((2, 3)))
    generate = Generator(pipeline, num_steps=2)
    x_T, f = draw_latents(generate.shape, 0, 3, seed=0), jacobians.sampler_map(generate)
    torch.testing.assert_close(f(x_T), ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 2))


def test_the_estimate_over_batches_agrees_with_the_dense_oracle(pipeline: DiffusionPipeline) -> None:
    x_0 = X_0.repeat(16, 1, 1, 1)
    estimates = jacobians.encoder_anisotropy(pipeline.unet, pipeline.scheduler, x_0, 700, num_batches=4, seed=3)
    exact = []
    for index, batch in enumerate(x_0.split(32)):
        eps = torch.randn(batch.shape, generator=torch.Generator().manual_seed(3000 + index))
        x_t = pipeline.scheduler.add_noise(batch, eps, torch.full((32,), 700))
        with torch.no_grad():
            loss = exact_isometry_loss(partial(encode, pipeline.unet, t=700), x_t)
        exact.append(anisotropy(loss.item(), 64, 48 * 2 * 2))
    np.testing.assert_allclose(estimates, exact, rtol=0.25)
    assert estimates.mean() == pytest.approx(np.mean(exact), rel=0.1)


def blind(count: int) -> Tensor:
    """Return points whose first coordinates are 0, so that these span directions of the sphere's tangent space."""
    return torch.cat([torch.zeros(count, RANK, dtype=torch.float64), noise(count, 60 - RANK)], 1)


@pytest.mark.parametrize("sigma", [torch.ones(RANK), torch.linspace(0.2, 2, RANK)], ids=["isometry", "other"])
def test_a_map_of_known_rank_has_its_known_anisotropy(sigma: torch.Tensor) -> None:
    """The isometry is the floor: log(rK/2) − ψ(rK/2) is all that K = 16 probes add to 0."""
    sigma = sigma.double()
    found = jacobians.log_anisotropy(lambda x: 3 * x[:, :RANK] * sigma, blind(48), rank=RANK, num_probes=16)
    expected = (RANK * (sigma**4).sum() / (sigma**2).sum() ** 2).log().item()
    bias = np.log(8 * RANK) - digamma(8 * RANK) if expected == 0 else 0
    assert found.value == pytest.approx(expected + bias, abs=4 * found.details["standard_error"])
    assert found.details["standard_error"] < 0.05


def test_pairs_see_a_few_per_cent_and_a_scale_alone_is_no_difference() -> None:
    sigma = torch.linspace(0.5, 1.5, RANK, dtype=torch.float64)
    first, again, flatter = (
        jacobians.log_anisotropy(lambda x, s=s: x[:, :RANK] * s, blind(32), rank=RANK)
        for s in (sigma, 5 * sigma, sigma**0.9)
    )
    assert compare(again, first).value == pytest.approx(0, abs=1e-9)
    low, high = compare(flatter, first).interval
    exact = [np.log((s**4).sum() / (s**2).sum() ** 2) for s in (sigma**0.9, sigma)]
    assert low < exact[0] - exact[1] < high < 0


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_variation_scales_with_the_square_and_the_condition_number_not_at_all(seed: int, scale: float) -> None:
    sigma = np.sort(np.random.default_rng(seed).uniform(0.5, 3, size=(4, 5)), axis=1)[:, ::-1]
    assert condition_number(sigma) == pytest.approx(np.mean(sigma[:, 0] / sigma[:, -1]))
    assert jacobians.metric_variance(scale * sigma) == pytest.approx(scale**2 * jacobians.metric_variance(sigma))
    assert condition_number(scale * sigma) == pytest.approx(condition_number(sigma))


@given(st.integers(0, 1000))
def test_the_affine_invariant_form_does_not_depend_on_coordinates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    roots, change = rng.normal(size=(5, 4, 12)), np.eye(4) + 0.3 * rng.normal(size=(4, 4))
    metrics, changed = (a @ a.swapaxes(1, 2) for a in (roots, change.T @ roots))
    assert affine_invariant_variance(changed) == pytest.approx(affine_invariant_variance(metrics), rel=1e-6)


def test_scales_and_turns_of_metrics_vary_in_closed_form() -> None:
    scales = np.array([0.5, 1.0, 4.0])
    expected = 3 * np.mean(np.log(scales / scales.mean()) ** 2)
    assert affine_invariant_variance(torch.tensor(scales)[:, None, None] * torch.eye(3)) == pytest.approx(expected)
    turned = np.array([np.diag([1.0, 4.0]), np.diag([4.0, 1.0])])
    assert affine_invariant_variance(turned) == pytest.approx(np.log(0.4) ** 2 + np.log(1.6) ** 2)


test_other_input_is_refused = refusals(
    (lambda: condition_number([[1.0, 2.0]]), "descend"),
    (lambda: jacobians.metric_variance([[2.0, 1.0]]), r"≥ 2.*≥ 1.*got .*\(1, 2\)"),
    (lambda: affine_invariant_variance([np.eye(2), np.diag([1.0, -0.5])]), "positive definite.* at row 1"),
    (lambda: jacobians.encoder_map(None, 600, pooling=0), "pooling must be None or 'mean', got 0"),
    (lambda: jacobians.noisy_images(DDPMScheduler(), torch.zeros(1, 1, 8, 8), 1000, seed=2), "0 to 999"),
    (lambda: jacobians.encoder_anisotropy(None, DDPMScheduler(), torch.zeros(3, 1), 700), "number of images, 3; got 8"),
    (lambda: jacobians.singular_spectrum(lambda z: z * np.inf, noise(4, 10), 2), "must be finite"),
    (lambda: jacobians.map_anisotropy(lambda z: z * np.inf, noise(4, 10)), "traces of the map must be finite"),
    (lambda: mean_condition_number(lambda z: z[:, :4] * 0, noise(4, 10), k=2), "the rank is less than k"),
    (lambda: mean_condition_number(bend, noise(1, 40), k=2), "at least 2 points, got 1"),
    (lambda: map_variance(bend, noise(2, 40), k=2), "at least 3 points, got 2"),
)
