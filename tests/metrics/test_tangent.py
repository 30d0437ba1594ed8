"""Alignment with the renderer's tangent space: maps whose directions are known, and one real model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion.pretrained import build_unet, load_pipeline
from isodiff.metrics.generator import number_generator
from isodiff.metrics.store import Store
from isodiff.metrics.tangent import decoder_alignment, encoder_alignment, tangent_alignment, tangent_space

SIDE = 16
PIXELS = 3 * SIDE**2
SCHEDULER = DDPMScheduler()


def _faces(count: int) -> Tensor:
    """Factors of the faces that `encoder_alignment` draws from seed 0."""
    draws = [number_generator(0, "tangent faces", index) for index in range(count)]
    return torch.cat([sample_factors(1, generator=draw) for draw in draws])


def test_tangent_space_is_the_derivative_of_the_renderer(generator: torch.Generator) -> None:
    z = 0.9 * sample_factors(2, generator=generator, dtype=torch.float64)
    columns = tangent_space(z, SIDE)
    assert columns.shape == (2, PIXELS, len(FACTORS))
    step = 1e-5
    for index in range(len(FACTORS)):
        shift = step * torch.eye(len(FACTORS), dtype=z.dtype)[index]
        difference = (render(z + shift, SIDE) - render(z - shift, SIDE)).flatten(1) / (2 * step)
        torch.testing.assert_close(columns[:, :, index], difference, rtol=1e-4, atol=1e-5)


def test_tangent_space_has_its_ten_dimensions_at_the_corners() -> None:
    corners = torch.tensor([[-1.0] * 10, [1.0] * 10], dtype=torch.float64)
    assert (torch.linalg.matrix_rank(tangent_space(corners, SIDE)) == 10).all()


def test_a_decoder_that_renders_is_aligned(generator: torch.Generator) -> None:
    """The columns of its Jacobian are combinations of ∂render/∂z: one space, all angles zero."""
    mix = 0.03 * torch.randn(40, 10, generator=generator)
    measured = decoder_alignment(lambda x: render((x @ mix).clamp(-1, 1), SIDE), (40,), num_latents=2)
    assert measured.value > 0.999
    assert max(measured.details["angles"]["value"]) < 2.5
    assert measured.details["error"] < 1e-6
    assert measured.details["chance"] == pytest.approx(10 / PIXELS)
    assert measured.n == 2


def test_a_decoder_of_white_noise_is_at_chance(generator: torch.Generator) -> None:
    """An orthogonal map prefers no direction."""
    face = render(0.5 * sample_factors(1, generator=generator), SIDE).clamp(-0.9, 0.9)
    rotation = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=generator))[0]

    def rotate(x: Tensor) -> Tensor:
        return face + 1e-3 * (x @ rotation).reshape(-1, 3, SIDE, SIDE)

    measured = decoder_alignment(rotate, (PIXELS,), num_latents=2)
    assert measured.details["chance"] == pytest.approx(10 / PIXELS)
    # the relative standard deviation of one latent is √(2/100); the search starts alike at both, so they hardly average
    assert measured.value == pytest.approx(10 / PIXELS, rel=0.5)


def test_prescribed_directions_have_their_energy(generator: torch.Generator) -> None:
    """Of the two leading directions one lies in the tangent space, the other is orthogonal to it."""
    z = 0.5 * sample_factors(1, generator=generator)
    face = render(z, SIDE)
    basis = torch.linalg.qr(torch.cat([tangent_space(z, SIDE)[0], torch.randn(PIXELS, 1, generator=generator)], 1))[0]
    inside, outside = basis[:, 3], basis[:, 10]

    def plane(x: Tensor) -> Tensor:
        moved = 2e-6 * x[:, :1] * inside + 1e-6 * x[:, 1:2] * outside + 1e-9 * x[:, 2:3] * basis[:, 4]
        return face + moved.reshape(-1, 3, SIDE, SIDE)

    measured = decoder_alignment(plane, (400,), k=1, num_latents=2)
    directions = decoder_alignment(plane, (400,), k=2, num_latents=2)
    assert measured.value == pytest.approx(1, abs=2e-3)
    assert directions.value == pytest.approx(0.5, abs=2e-3)
    assert directions.details["energy"]["value"] == pytest.approx([1, 0], abs=2e-3)
    assert directions.details["angles"]["value"] == pytest.approx([0, 90], abs=3)


def test_an_encoder_that_sees_the_factors_only_is_aligned() -> None:
    columns = tangent_space(_faces(2), SIDE)

    def see(x: Tensor) -> Tensor:
        return torch.einsum("bnk,bn->bk", columns, x.flatten(1))

    for t in (0, 600):
        measured = encoder_alignment(see, SCHEDULER, t, SIDE, num_faces=2)
        assert measured.value > 0.999
        assert measured.protocol["t"] == t


def test_an_encoder_that_sees_all_alike_is_at_chance() -> None:
    measured = encoder_alignment(lambda x: 2 * x, SCHEDULER, 300, SIDE, num_faces=8)
    assert measured.details["chance"] == pytest.approx(10 / (PIXELS - 1))
    assert measured.value == pytest.approx(10 / (PIXELS - 1), rel=0.2)


def test_the_batch_does_not_matter_and_finished_rows_are_kept(tmp_path: Path) -> None:
    weights = torch.randn(PIXELS, 12, generator=torch.Generator().manual_seed(2))
    measure = partial(encoder_alignment, scheduler=SCHEDULER, t=100, resolution=SIDE, num_faces=3, k=3, tolerance=1e-4)
    whole = measure(lambda x: x.flatten(1) @ weights)
    rows = measure(lambda x: x.flatten(1) @ weights, batch_size=1, store=Store(tmp_path))
    assert np.allclose(whole.replicates, rows.replicates, atol=1e-4)

    def broken(_: Tensor) -> Tensor:
        raise AssertionError("finished rows are not made again")

    assert np.array_equal(measure(broken, batch_size=1, store=Store(tmp_path)).replicates, rows.replicates)


def test_a_real_model_knows_more_than_chance() -> None:
    pipeline = load_pipeline("faces32/base")
    sizes = {"num_latents": 2, "t": 400, "num_steps": 2, "k": 2, "tolerance": 0.3}
    measured = tangent_alignment(pipeline.unet, pipeline.scheduler, **sizes)
    for measurement in measured.values():
        assert 5 * measurement.details["chance"] < measurement.value <= 1
        assert len(measurement.details["angles"]["value"]) == 2


def test_bad_input_is_refused() -> None:
    digits = build_unet("digits16")
    with pytest.raises(ValueError, match=r"makes images \(1, 16, 16\)"):
        tangent_alignment(digits, SCHEDULER, num_latents=2, t=400, num_steps=2)
    with pytest.raises(ValueError, match="at least 2 latents and a batch of 1 are needed; got 1 and 4"):
        decoder_alignment(lambda x: x, (3, SIDE, SIDE), num_latents=1)
    with pytest.raises(ValueError, match="t must hold integer steps 0 to 999; got 1000"):
        encoder_alignment(lambda x: x, SCHEDULER, 1000, SIDE, num_faces=2)
    with pytest.raises(ValueError, match=r"k must be between 1 and 767"):
        encoder_alignment(lambda x: x, SCHEDULER, 0, SIDE, num_faces=2, k=800)
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(2, 1, 16, 16\)"):
        decoder_alignment(lambda x: x, (1, SIDE, SIDE), num_latents=2)
