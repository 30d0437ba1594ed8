"""Effects of a model's directions on faces: factors that are known of every latent, and one real model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.editing import local_basis, move
from isodiff.metrics import editing
from isodiff.metrics.editing import direction_effects, effects
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.store import Store

GAMMAS = (-4.0, -2.0, 0.0, 2.0, 4.0)
MIX = 0.06 * torch.randn(256, 10, generator=torch.Generator().manual_seed(5)) / 4
SIZES = {"k": 2, "gammas": GAMMAS, "num_latents": 3, "t": 999, "basis_tolerance": 0.05}


def known_factors(x_T: Tensor) -> Tensor:
    """Factors that are a linear function of the latent."""
    return (x_T.flatten(1) @ MIX).clamp(-0.95, 0.95)


def perfect(x_T: Tensor) -> Tensor:
    """Every image is a face, and its factors are known."""
    return render(known_factors(x_T), 16)


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    """The bottleneck that gives the directions; the faces do not come from it."""
    return load_pipeline("digits16/base").unet


@pytest.fixture(scope="module")
def measured(unet: UNet2DModel) -> dict[str, Measurement]:
    """Return what is measured one latent at a time."""
    return direction_effects(perfect, unet, batch_size=15, **SIZES)


def test_measured_effects_are_those_of_the_factors_that_drew_the_faces(
    unet: UNet2DModel, measured: dict[str, Measurement]
) -> None:
    x_T = draw_latents((1, 16, 16), 0, 3, seed=0, stream="directions")
    directions = local_basis(unet, x_T, 999, 2, tolerance=0.05).directions
    truth = [
        effects(torch.stack([known_factors(move(x_T, d, g)) for g in GAMMAS], dim=1).numpy(), GAMMAS)
        for d in directions.unbind(1)
    ]
    share = np.stack([effect.share for effect in truth], axis=1)
    assert np.allclose(measured["target_share"].replicates, share.mean(axis=1), atol=0.02)
    assert np.allclose(measured["spill_over"].replicates, 1 - share.mean(axis=1), atol=0.02)
    assert np.allclose(measured["target_share"].details["by_direction"]["value"], share.mean(axis=0), atol=0.02)
    for name in ("target_change", "other_change"):
        expected = np.stack([getattr(effect, name) for effect in truth], axis=1).mean(axis=1)
        assert np.allclose(measured[name].replicates, expected, atol=2e-3)
    monotone = np.stack([effect.monotone for effect in truth], axis=1).mean(axis=1)
    assert np.array_equal(measured["monotone_share"].replicates, monotone)
    assert measured["rank_correlation"].value == pytest.approx(
        1
    )  # factors are linear in γ, but for the curve of the arc
    assert measured["move_error"].value < 1e-6
    details = measured["target_share"].details
    assert details["noise"] == 1 / len(FACTORS)
    assert details["targets"] == [np.bincount(effect.target, minlength=10).tolist() for effect in truth]
    assert len(details["sigma"]["value"]) == 2
    assert min(details["sigma_ratio"]["value"]) >= 1
    assert len(measured["monotone_share"].details["fit_noise"]) == 10
    assert max(measured["monotone_share"].details["fit_noise"]) < 1e-2


def test_every_unit_has_its_number(unet: UNet2DModel, measured: dict[str, Measurement]) -> None:
    """Measured one latent at a time, or together in a smaller sample: the same."""
    fewer = direction_effects(perfect, unet, **{**SIZES, "num_latents": 2})
    for name, measurement in measured.items():
        assert np.allclose(fewer[name].replicates, measurement.replicates[:2], atol=5e-3)
        assert len(measurement.details["control"]["value"]) == 1


def test_the_control_is_a_random_direction(unet: UNet2DModel) -> None:
    """Of a random linear map a random direction changes each factor by a normal amount, and the largest is the target.

    The expected share of the largest of ten normal magnitudes is 0.24, with a standard deviation of 0.05 a draw.
    """
    measured = direction_effects(perfect, unet, **{**SIZES, "k": 1, "num_latents": 6})
    control = measured["target_share"].details["control"]
    assert control["value"][0] == pytest.approx(0.24, abs=4 * 0.05 / 6**0.5)


def test_noise_of_the_images_is_what_the_fit_noise_says(unet: UNet2DModel) -> None:
    def noisy(x_T: Tensor) -> Tensor:
        rows = [torch.Generator().manual_seed(int(row.abs().sum() * 1e3)) for row in x_T]
        noise = torch.stack([torch.randn(3, 16, 16, generator=g) for g in rows])
        return (perfect(x_T) + 0.05 * noise).clamp(-1, 1)

    measured = direction_effects(noisy, unet, **SIZES)
    assert measured["move_error"].value == pytest.approx(0.05**2, rel=0.2)
    assert 2e-3 < np.median(measured["monotone_share"].details["fit_noise"]) < 0.1


def test_a_killed_measurement_goes_on_where_it_stopped(
    unet: UNet2DModel, measured: dict[str, Measurement], tmp_path: Path
) -> None:
    calls = [0]

    def counting(x_T: Tensor, *, fails_at: int) -> Tensor:
        calls[0] += 1
        if calls[0] == fails_at:
            raise KeyboardInterrupt
        return perfect(x_T)

    measure = partial(direction_effects, unet=unet, batch_size=15, **SIZES)
    with pytest.raises(KeyboardInterrupt):
        measure(partial(counting, fails_at=2), store=Store(tmp_path))
    resumed = measure(partial(counting, fails_at=-1), store=Store(tmp_path))
    assert calls[0] == 4  # one finished, one killed, and that one and the last
    for name, measurement in measured.items():
        assert np.array_equal(resumed[name].replicates, measurement.replicates)


def test_a_real_model_is_moved_from_its_first_step() -> None:
    pipeline = load_pipeline("faces32/base")
    generate = Generator(pipeline, num_steps=2)
    sizes = {"k": 1, "gammas": (-8, -4, 0, 4, 8), "num_latents": 2, "basis_tolerance": 0.1}
    measured = direction_effects(generate, pipeline.unet, **sizes)
    protocol = measured["target_share"].protocol
    assert protocol["t"] == 999
    assert protocol["num_steps"] == 2
    for measurement in measured.values():
        assert np.isfinite(measurement.value)
        assert measurement.n == 2
    assert measured["target_share"].value + measured["spill_over"].value == pytest.approx(1)
    assert measured["target_change"].value > 0.01
    assert measured["target_share"].value <= measured["target_share"].details["largest_share"]["value"][0]


def test_bad_input_is_refused(unet: UNet2DModel) -> None:
    measure = partial(direction_effects, perfect, unet)
    with pytest.raises(ValueError, match="t must be given for a generator that is no Generator"):
        measure(**{**SIZES, "t": None})
    with pytest.raises(ValueError, match="num_latents must be at least 2 and batch_size at least 1; got 1"):
        measure(**{**SIZES, "num_latents": 1})
    with pytest.raises(ValueError, match="two or more sizes to both sides"):
        measure(**{**SIZES, "gammas": (0, 1, 2)})
    with pytest.raises(ValueError, match=r"half a great circle.*arc of length 60"):
        measure(**{**SIZES, "gammas": (-60, -1, 0, 1, 60)})
    with pytest.raises(ValueError, match="0 to 999"):
        measure(**{**SIZES, "t": 1000})
    with pytest.raises(ValueError, match="255, got 257"):
        measure(**{**SIZES, "k": 257})
    with pytest.raises(ValueError, match=r"\(B, 3, R, R\)"):
        direction_effects(lambda x: perfect(x)[:, :1], unet, **SIZES)
    with pytest.raises(ValueError, match="moves must change the image, at latent 0 they do not"):
        direction_effects(lambda x: perfect(torch.zeros_like(x)), unet, **SIZES)


def test_what_notebooks_import_is_here() -> None:
    assert all(callable(getattr(editing, name)) for name in editing.__all__)
