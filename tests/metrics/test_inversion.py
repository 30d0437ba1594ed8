"""Statistics of latents in closed form, and inversion measured on real models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from isodiff.diffusion.inversion import invert
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry import expected_radius
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.inversion import excess_kurtosis, inversion_error, neighbour_correlation, norm_ratio
from isodiff.metrics.measurement import compare
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_steps import squared_l2
from isodiff.metrics.store import Store

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def digits() -> DDPMPipeline:
    return load_pipeline("digits16/base")


@pytest.fixture(scope="module")
def images(digits: DDPMPipeline) -> torch.Tensor:
    with torch.no_grad():
        return Generator(digits, 5)(draw_latents((1, 16, 16), 0, 4, seed=1))


def test_noise_looks_like_noise() -> None:
    """Every statistic has the mean and, within a tenth, the standard deviation that is claimed of noise."""
    noise = draw_latents(SHAPE, 0, 400, seed=0)
    n = noise[0].numel()
    for statistic, mean, deviation in (
        (norm_ratio, 1, (2 * n) ** -0.5),
        (neighbour_correlation, 0, (2 * n) ** -0.5),
        (excess_kurtosis, 0, (24 / n) ** 0.5),
    ):
        values = statistic(noise)
        assert abs(values.mean() - mean) < 4 * deviation / 20
        assert values.std() == pytest.approx(deviation, rel=0.12)


def test_a_moving_average_has_its_known_correlation() -> None:
    """xⱼ = eⱼ + a eⱼ₊₁ has a lag-1 correlation of a/(1 + a²), here in one direction of the two."""
    e = draw_latents((1, 128, 129), 0, 20, seed=0, dtype=torch.float64)
    x = e[..., :-1] + 0.5 * e[..., 1:]
    assert neighbour_correlation(x).mean() == pytest.approx(0.5 / 1.25 / 2, abs=2e-3)
    assert neighbour_correlation(x.mT).mean() == pytest.approx(0.5 / 1.25 / 2, abs=2e-3)
    assert np.allclose(neighbour_correlation(torch.ones(2, 3, 8, 8)), 1)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (-1.0) ** (rows + columns)
    assert np.allclose(neighbour_correlation(board.expand(1, 2, 8, 8)), -1)


def test_shapes_of_laws_have_their_known_kurtosis() -> None:
    laws = {"laplace": 3.0, "uniform": -1.2, "logistic": 1.2}
    rng = np.random.default_rng(0)
    for law, expected in laws.items():
        x = torch.from_numpy(getattr(rng, law)(size=(20, 3, 64, 64)))
        assert excess_kurtosis(x).mean() == pytest.approx(expected, abs=0.25)
        assert np.allclose(excess_kurtosis(7 * x), excess_kurtosis(x))


def test_statistics_do_not_see_what_they_should_not() -> None:
    x = draw_latents(SHAPE, 0, 3, seed=0, dtype=torch.float64)
    assert np.allclose(neighbour_correlation(-5 * x), neighbour_correlation(x))
    assert np.allclose(norm_ratio(5 * x), 5 * norm_ratio(x))
    assert np.allclose(norm_ratio(x), x.flatten(1).norm(dim=1) / expected_radius(3072))
    order = torch.randperm(3072, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(1)[:, order].view_as(x)
    assert np.allclose(excess_kurtosis(shuffled), excess_kurtosis(x))
    assert np.allclose(norm_ratio(shuffled), norm_ratio(x))


def test_measured_is_what_inversion_gives(digits: DDPMPipeline, images: torch.Tensor) -> None:
    unet, scheduler = digits.unet, digits.scheduler
    measured = inversion_error(unet, scheduler, images, 3, distances={"squared_l2": squared_l2}, seed=1)
    found = invert(unet, scheduler, images, 3)
    back = found.reconstruction.clamp(-1, 1)
    mse = (back - images).square().flatten(1).mean(1).numpy()
    assert np.allclose(measured["inversion_mse"].replicates, mse, rtol=1e-4)
    assert np.allclose(measured["inversion_squared_l2"].replicates, 256 * mse, rtol=1e-4)
    assert np.allclose(measured["latent_norm_ratio"].replicates, norm_ratio(found.latents), rtol=1e-4)
    assert np.allclose(measured["latent_correlation"].replicates, neighbour_correlation(found.latents), atol=1e-4)
    assert np.allclose(measured["latent_kurtosis"].replicates, excess_kurtosis(found.latents), atol=1e-3)
    assert np.allclose(measured["inversion_mse"].details["residuals"], found.residuals.mean(0).numpy(), rtol=1e-3)
    protocol = measured["inversion_mse"].protocol
    assert {k: protocol[k] for k in ("num_steps", "refinements", "clip_sample")} == {
        "num_steps": 3,
        "refinements": 0,
        "clip_sample": True,
    }
    assert all(m.n == 4 and m.unit == "images" and m.seed == 1 for m in measured.values())


def test_models_pair_on_the_same_images_only(digits: DDPMPipeline, images: torch.Tensor) -> None:
    other = load_pipeline("digits16/isometric")
    measure = partial(inversion_error, num_steps=2, distances={"lpips": perceptual_distance("alex")})
    base = measure(digits.unet, digits.scheduler, images[:3])
    isometric = measure(other.unet, other.scheduler, images[:3])
    for name, measurement in base.items():
        assert np.isfinite(compare(isometric[name], measurement).value)
    assert base["inversion_lpips"].protocol["distance"] == "lpips-0.1"
    elsewhere = measure(other.unet, other.scheduler, images[1:4])
    with pytest.raises(ValueError, match="only one protocol compares with itself"):
        compare(elsewhere["inversion_mse"], base["inversion_mse"])


def test_finished_batches_are_kept(digits: DDPMPipeline, images: torch.Tensor, tmp_path: Path) -> None:
    measure = partial(inversion_error, digits.unet, digits.scheduler, images, 2, distances={})
    whole, first = measure(), measure(batch_size=2, store=Store(tmp_path))
    assert len(list(tmp_path.rglob("*.npz"))) == 2
    next(tmp_path.rglob("*.npz")).unlink()
    again = measure(batch_size=2, store=Store(tmp_path))
    for name in whole:
        assert np.allclose(whole[name].replicates, first[name].replicates, rtol=1e-3, atol=1e-5)
        assert np.array_equal(again[name].replicates, first[name].replicates)


def test_what_does_not_fit_the_model_is_refused(digits: DDPMPipeline, images: torch.Tensor) -> None:
    measure = partial(inversion_error, digits.unet, digits.scheduler, distances={})
    with pytest.raises(ValueError, match=r"shape \(n, 1, 16, 16\), n ≥ 2; got \(4, 1, 16, 15\)"):
        measure(images[..., 1:], 2)
    with pytest.raises(ValueError, match=r"got \(4, 3, 16, 16\)"):
        measure(images.expand(-1, 3, -1, -1), 2)
    with pytest.raises(ValueError, match=r"got \(1, 1, 16, 16\)"):
        measure(images[:1], 2)
    with pytest.raises(ValueError, match="images must give images in"):
        measure(images + 1, 2)
    with pytest.raises(ValueError, match="num_steps must be 1 to 1000; got 0"):
        measure(images, 0)
    with pytest.raises(ValueError, match="refinements must be at least 0; got -1"):
        measure(images, 2, refinements=-1)


def test_latents_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"H, W ≥ 2; got \(2, 3, 1, 8\)"):
        neighbour_correlation(torch.ones(2, 3, 1, 8))
    with pytest.raises(ValueError, match=r"got \(2, 8\)"):
        norm_ratio(torch.ones(2, 8))
    with pytest.raises(ValueError, match="must be finite; got 192 NaN"):
        excess_kurtosis(torch.full((1, 3, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="must not be zero; number 1"):
        neighbour_correlation(torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)]))
