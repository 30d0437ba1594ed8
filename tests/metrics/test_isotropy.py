"""Condition number and variation of spectra in closed form, and the isotropy of an encoder, step by step."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_pipeline
from isodiff.geometry.isometry import exact_isometry_loss, isotropy
from isodiff.metrics.isotropy import (
    affine_invariant_variance,
    condition_number,
    condition_numbers,
    encoder_isotropy,
    metric_variance,
)


def _images(num: int) -> torch.Tensor:
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_estimate_agrees_with_the_dense_oracle() -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    x_0, t = _images(8), 700
    estimates = encoder_isotropy(pipeline.unet, pipeline.scheduler, x_0, t, num_batches=4, num_probes=64, seed=3)
    exact = []
    for index, batch in enumerate(x_0.split(2)):
        eps = torch.randn(batch.shape, generator=torch.Generator().manual_seed(3000 + index))
        x_t = pipeline.scheduler.add_noise(batch, eps, torch.full((2,), t))
        with torch.no_grad():
            loss = exact_isometry_loss(partial(encode, pipeline.unet, t=t), x_t)
        exact.append(isotropy(loss.item(), 64, 48 * 2 * 2))
    np.testing.assert_allclose(estimates, exact, rtol=0.25)
    assert estimates.mean() == pytest.approx(np.mean(exact), rel=0.1)


def test_estimate_is_seeded() -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    measure = partial(encoder_isotropy, pipeline.unet, pipeline.scheduler, _images(4), 500, num_batches=2)
    np.testing.assert_array_equal(measure(seed=1), measure(seed=1))
    assert not np.array_equal(measure(seed=1), measure(seed=2))


@pytest.mark.parametrize(("t", "batches", "message"), [(1000, 2, "0 to 999"), (500, 5, "number of images, 4; got 5")])
def test_bad_input_is_refused(t: int, batches: int, message: str) -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    with pytest.raises(ValueError, match=message):
        encoder_isotropy(pipeline.unet, pipeline.scheduler, _images(4), t, num_batches=batches)


def test_condition_number_is_the_mean_of_the_ratios() -> None:
    sigma = [[4.0, 2.0, 1.0], [3.0, 3.0, 1.5]]
    assert condition_number(sigma) == 3
    assert condition_number(sigma, squared=True) == 10
    np.testing.assert_array_equal(condition_numbers(torch.tensor(sigma)), [4, 2])


def test_scaled_isometries_have_condition_number_one_and_no_variation() -> None:
    sigma = np.full((5, 7), 2.5)
    assert condition_number(sigma) == 1
    assert metric_variance(sigma) == 0


def test_conformal_maps_of_varying_scale_vary() -> None:
    scales = np.array([1.0, 2.0, 6.0])
    sigma = scales[:, None] * np.ones(4)
    assert condition_number(sigma) == 1
    assert metric_variance(sigma) == pytest.approx(4 * scales.var())


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_variation_scales_with_the_square_and_the_condition_number_not_at_all(seed: int, scale: float) -> None:
    sigma = np.sort(np.random.default_rng(seed).uniform(0.5, 3, size=(4, 5)), axis=1)[:, ::-1]
    assert metric_variance(scale * sigma) == pytest.approx(scale**2 * metric_variance(sigma))
    assert condition_number(scale * sigma) == pytest.approx(condition_number(sigma))


def _metrics(seed: int, num: int = 5, k: int = 4) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(num, k, 3 * k))
    return a @ a.swapaxes(1, 2)


@given(st.integers(0, 1000))
def test_the_affine_invariant_form_does_not_depend_on_coordinates(seed: int) -> None:
    metrics = _metrics(seed)
    change = np.eye(4) + 0.3 * np.random.default_rng(seed + 1).normal(size=(4, 4))
    changed = change.T @ metrics @ change
    changed = (changed + changed.swapaxes(1, 2)) / 2
    assert affine_invariant_variance(changed) == pytest.approx(affine_invariant_variance(metrics), rel=1e-6)


def test_equal_metrics_do_not_vary() -> None:
    assert affine_invariant_variance(np.repeat(_metrics(0, 1), 6, axis=0)) == pytest.approx(0, abs=1e-20)


def test_scaled_identities_vary_by_the_squared_logarithms_of_their_scales() -> None:
    scales = np.array([0.5, 1.0, 4.0])
    expected = 3 * np.mean(np.log(scales / scales.mean()) ** 2)
    assert affine_invariant_variance(torch.tensor(scales)[:, None, None] * torch.eye(3)) == pytest.approx(expected)


def test_turning_metrics_vary_though_their_spectra_agree() -> None:
    turned = np.array([np.diag([1.0, 4.0]), np.diag([4.0, 1.0])])
    assert affine_invariant_variance(turned) == pytest.approx(np.log(0.4) ** 2 + np.log(1.6) ** 2)


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        (condition_number, [[2.0, 0.0]], "row 0 is 0"),
        (condition_number, [[1.0, 2.0]], "descend"),
        (condition_number, [[np.nan, 1.0]], "1 NaN or infinite"),
        (condition_number, [[-1.0, -2.0]], "not be negative, got -2"),
        (condition_number, [2.0, 1.0], r"shape \(n, k\) with n ≥ 1 and k ≥ 1, got \(2,\)"),
        (condition_number, np.zeros((0, 2)), r"got \(0, 2\)"),
        (metric_variance, [[2.0, 1.0]], r"n ≥ 2 and k ≥ 1, got \(1, 2\)"),
        (metric_variance, [[2.0, np.inf], [2.0, 1.0]], "1 NaN or infinite"),
        (affine_invariant_variance, np.eye(2)[None], r"n ≥ 2, got \(1, 2, 2\)"),
        (affine_invariant_variance, np.ones((2, 2, 3)), r"got \(2, 2, 3\)"),
        (affine_invariant_variance, [[[1.0, 2.0], [0.0, 1.0]]] * 2, "symmetric"),
        (affine_invariant_variance, [np.eye(2), np.diag([1.0, -0.5])], "positive definite.* at row 1"),
        (affine_invariant_variance, np.zeros((2, 2, 2)), "the mean metric must be positive definite"),
    ],
)
def test_what_is_no_spectrum_or_metric_is_refused(function: object, values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(values)
