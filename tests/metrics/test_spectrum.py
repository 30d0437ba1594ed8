"""Spectra of maps over points: closed forms, dense against iterative, batches, the store, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_pipeline, load_pipeline
from isodiff.diffusion.process import ddim_sample
from isodiff.geometry import exact_isometry_loss, isotropy, singular_values
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.isotropy import affine_invariant_variance
from isodiff.metrics.spectrum import (
    encoder_map,
    map_isotropy,
    mean_condition_number,
    metric_variance,
    noisy_images,
    sampler_map,
    singular_spectrum,
)
from isodiff.metrics.store import Store


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(points(n, n, seed=seed))[0]


def bend(x: Tensor) -> Tensor:
    """Map row by row, with another Jacobian at every point; its last output grows with the radius."""
    a = points(30, x[0].numel(), seed=2)
    return torch.sin(x.flatten(1) @ a.mT / 4)


@pytest.fixture(scope="module")
def small() -> tuple[Tensor, object]:
    pipeline = build_pipeline("digits16", resolution=8)
    x_0 = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return noisy_images(pipeline.scheduler, x_0, 600, seed=0), pipeline


@pytest.mark.parametrize("method", ["dense", "iterative"])
def test_a_scaled_isometry_has_condition_number_one_and_no_variation(method: str) -> None:
    q = 2.5 * orthogonal(40)
    f, x = lambda z: z @ q, points(5, 40)
    assert mean_condition_number(f, x, k=6, method=method).value == pytest.approx(1, abs=1e-9)
    for form in ("sigma", "sigma_squared", "affine-invariant"):
        measured = metric_variance(f, x, k=6, form=form, method=method, tangent=False)
        assert measured.value == pytest.approx(0, abs=1e-9)
    assert map_isotropy(f, x, num_probes=400).value == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("method", "accuracy"), [("dense", 1e-6), ("iterative", 1e-2)])
@pytest.mark.parametrize("decay", [0.02, 0.1, 1.0])
def test_prescribed_spectra_are_recovered(method: str, accuracy: float, decay: float) -> None:
    k, spectrum = 20, 3 * (1 + torch.arange(150, dtype=torch.float64)) ** -decay
    a = (orthogonal(200)[:, :150] * spectrum) @ orthogonal(150, seed=3).mT
    sigma = singular_spectrum(lambda z: z @ a, points(2, 200), k, method=method, tangent=False)
    np.testing.assert_allclose(sigma, spectrum[:k].expand(2, k), rtol=accuracy)


def test_the_radial_direction_is_left_out_on_the_tangent_space() -> None:
    x = points(3, 12)
    unit = x / x.norm(dim=1, keepdim=True)
    stretch = lambda z: z + 9 * (z * unit[: len(z)]).sum(1, keepdim=True) * unit[: len(z)]  # noqa: E731
    assert singular_spectrum(stretch, x, 2, tangent=False).max() == pytest.approx(10)
    assert singular_spectrum(stretch, x, 2, tangent=True).max() == pytest.approx(1)


def test_variance_of_a_family_of_scalings_in_closed_form() -> None:
    x = points(40, 3)
    f = lambda z: 0.5 * z.square().sum(1, keepdim=True)  # noqa: E731 - its gradient is z, of length r
    r = x.norm(dim=1).numpy()
    measured = metric_variance(f, x, k=1, tangent=False)
    assert measured.value == pytest.approx(r.var(), rel=1e-9)
    assert metric_variance(f, x, k=1, form="sigma_squared", tangent=False).value == pytest.approx((r**2).var())
    assert measured.interval[0] < measured.value < measured.interval[1]
    assert len(measured.replicates) == 20


def test_the_affine_invariant_form_is_that_of_the_metrics_on_shared_directions() -> None:
    x = points(4, 10)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda z: bend(z[None])[0], r) for r in x])
    metrics = jacobian.mT @ jacobian
    leading = torch.linalg.eigh(metrics.mean(0))[1][:, -4:]
    expected = affine_invariant_variance(leading.mT @ metrics @ leading)
    for method in ("dense", "iterative"):
        measured = metric_variance(bend, x, k=4, form="affine-invariant", method=method, tangent=False)
        assert measured.value == pytest.approx(expected, rel=1e-6 if method == "dense" else 0.02)
        assert measured.protocol["form"] == "affine-invariant"


def test_the_sampler_is_measured_like_any_map() -> None:
    pipeline = build_pipeline("digits16", resolution=8)
    generate = Generator(pipeline, num_steps=2)
    x_T = draw_latents(generate.shape, 0, 3, seed=0)
    f = sampler_map(generate)
    torch.testing.assert_close(f(x_T), ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 2))
    dense = singular_spectrum(f, x_T, 4, method="dense")
    np.testing.assert_allclose(singular_spectrum(f, x_T, 4, method="iterative"), dense, rtol=1e-2)
    measured = mean_condition_number(f, x_T, k=4)
    assert measured.protocol["map"] == "sampler"
    assert measured.protocol["num_steps"] == 2
    assert measured.value == pytest.approx((dense[:, 0] / dense[:, -1]).mean(), rel=2e-2)


def test_a_linear_generator_has_the_spectrum_of_its_matrix() -> None:
    a = points(48, 48, seed=4)
    generate = lambda x_T: (x_T.flatten(1) @ a).reshape(x_T.shape)  # noqa: E731
    sigma = torch.linalg.svdvals(a)
    measured = mean_condition_number(generate, points(3, 3, 4, 4), k=5, squared=True, method="iterative", tangent=False)
    assert measured.value == pytest.approx((sigma[0] / sigma[4]).square().item(), rel=0.02)
    assert measured.protocol["convention"] == "sigma squared"
    assert measured.unit == "points"


def test_iteration_agrees_with_dense_on_a_trained_encoder() -> None:
    pipeline = load_pipeline("faces32/base")
    pipeline.unet.requires_grad_(False)
    x_0 = torch.stack(list(open_dataset("faces", 32, seed=1).__getitems__([0])))
    x_t = noisy_images(pipeline.scheduler, x_0, 600, seed=0)
    f = encoder_map(pipeline.unet, 600, pooling=2)  # 96 · 2 · 2 outputs: quick to do densely, too
    dense = singular_spectrum(f, x_t, 10, method="dense")
    np.testing.assert_allclose(singular_spectrum(f, x_t, 10, method="iterative"), dense, rtol=1e-2)


def test_pooling_averages_the_bottleneck(small: tuple) -> None:
    x_t, pipeline = small
    h = encode(pipeline.unet, x_t, 600)
    torch.testing.assert_close(encoder_map(pipeline.unet, 600)(x_t), h)
    torch.testing.assert_close(encoder_map(pipeline.unet, 600, pooling="mean")(x_t).flatten(1), h.mean((2, 3)))
    assert encoder_map(pipeline.unet, 600, pooling=1).protocol == {"map": "encoder", "t": 600, "pooling": 1}
    with pytest.raises(ValueError, match="pooling must be None, 'mean' or a number of at least 1, got 0"):
        encoder_map(pipeline.unet, 600, pooling=0)


def test_noise_is_a_function_of_the_images_number(small: tuple) -> None:
    _, pipeline = small
    x_0 = torch.zeros(5, 1, 8, 8)
    whole = noisy_images(pipeline.scheduler, x_0, 300, seed=2)
    torch.testing.assert_close(noisy_images(pipeline.scheduler, x_0[:2], 300, seed=2, start=3), whole[3:])
    assert whole.std() == pytest.approx((1 - pipeline.scheduler.alphas_cumprod[300]).sqrt().item(), rel=0.15)
    with pytest.raises(ValueError, match="0 to 999"):
        noisy_images(pipeline.scheduler, x_0, 1000, seed=2)


def test_batches_change_nothing(small: tuple) -> None:
    x_t, pipeline = small
    f = encoder_map(pipeline.unet, 600)
    one, all_at_once = (singular_spectrum(f, x_t, 8, method="iterative", batch_size=b) for b in (1, 6))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-4)
    first, second = (map_isotropy(f, x_t, batch_size=b).value for b in (2, 6))
    assert first == pytest.approx(second, rel=1e-5)


def test_isotropy_agrees_with_the_dense_oracle(small: tuple) -> None:
    x_t, pipeline = small
    f = encoder_map(pipeline.unet, 600)
    with torch.no_grad():
        exact = isotropy(exact_isometry_loss(f, x_t).item(), 64, 48 * 2 * 2)
    measured = map_isotropy(f, x_t, num_probes=24)
    assert measured.value == pytest.approx(exact, rel=0.2)
    assert measured.details["rank"] == 63
    assert abs(measured.details["jackknife_bias"]) < 0.1 * exact


def test_what_is_finished_is_not_computed_again(small: tuple, tmp_path: Path) -> None:
    x_t, pipeline = small
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return encode(pipeline.unet, x, 600)

    def spectrum(num_points: int) -> np.ndarray:
        return singular_spectrum(counted, x_t[:num_points], 4, batch_size=2, key={"map": "e"}, store=Store(tmp_path))

    first = spectrum(4)
    calls.clear()
    np.testing.assert_array_equal(spectrum(6)[:4], first)
    assert calls == [1, 2]  # one row for the shape, and the third batch
    calls.clear()
    measure = partial(map_isotropy, counted, x_t, batch_size=3, key={"map": "e"}, store=Store(tmp_path))
    value = measure().value
    calls.clear()
    assert measure().value == value
    assert calls == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: singular_spectrum(bend, x, 31), "k must be between 1 and 9, got 31"),
        (lambda x: singular_spectrum(bend, x, 2, method="exact"), "method must be one of .* got 'exact'"),
        (lambda x: singular_spectrum(bend, x, 2, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda x: singular_spectrum(bend, x, 2, store=Store("anywhere")), "needs a key that says what f is"),
        (lambda x: mean_condition_number(bend, x[:1], k=2), "at least 2 points, got 1"),
        (lambda x: mean_condition_number(lambda z: z[:, :4] * 0, x, k=2), "the rank is less than k"),
        (lambda x: metric_variance(bend, x[:2], k=2), "at least 3 points, got 2"),
        (lambda x: metric_variance(bend, x, k=2, form="log"), "form must be one of .* got 'log'"),
        (lambda x: map_isotropy(bend, x[:2]), "at least 3 points, got 2"),
        (lambda x: map_isotropy(bend, x, metric="flat"), "metric must be one of"),
        (lambda x: singular_spectrum(bend, x * torch.nan, 2), "x must be finite"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(points(4, 10))


def test_an_overflowing_jacobian_is_an_error() -> None:
    f = lambda z: (z * 1e30).pow(3).to(torch.float32)  # noqa: E731
    with pytest.raises(RuntimeError, match="not finite"):
        singular_values(f, points(2, 40).float(), 2, criterion="values")
