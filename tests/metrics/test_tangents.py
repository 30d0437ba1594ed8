"""Angles between subspaces, and alignment with the renderer's tangent space: maps whose directions are known."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion import build_unet, load_pipeline
from isodiff.metrics.generator import number_generator
from isodiff.metrics.measure import cached
from isodiff.metrics.tangents import (
    decoder_alignment,
    encoder_alignment,
    principal_angles,
    tangent_alignment,
    tangent_space,
)

SIDE = 16
PIXELS = 3 * SIDE**2
SCHEDULER = DDPMScheduler()


# Principal angles


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_angles_are_the_singular_values_of_the_overlap(seed: int, p: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((9, p)), rng.standard_normal((9, q))
    cosine = np.linalg.svd(np.linalg.qr(a)[0].T @ np.linalg.qr(b)[0], compute_uv=False)
    assert np.allclose(principal_angles(a, b), np.arccos(cosine.clip(-1, 1)), atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.1, 1.0, np.pi / 2])
def test_two_lines_meet_at_their_angle(angle: float) -> None:
    a = np.array([[3.0], [0.0], [0.0]])
    b = -2 * np.array([[np.cos(angle)], [0.0], [np.sin(angle)]])
    assert principal_angles(a, b)[0] == pytest.approx(angle, rel=1e-9, abs=1e-15)


def test_small_and_large_angles_are_ascending() -> None:
    prescribed = np.array([1e-9, 0.3, 1.2])
    b = np.vstack([np.diag(np.cos(prescribed)), np.diag(np.sin(prescribed))])
    mixed = b @ np.random.default_rng(0).standard_normal((3, 3))
    assert np.allclose(principal_angles(np.eye(6)[:, :3], mixed), prescribed, rtol=1e-6, atol=1e-7)


def test_rotations_scales_order_and_batches_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 7, 3)), rng.standard_normal((4, 7, 2))
    rotation = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    expected = principal_angles(a, b)
    assert np.allclose(expected, [principal_angles(one, other) for one, other in zip(a, b, strict=True)])
    assert np.allclose(principal_angles(rotation @ a, rotation @ b), expected)
    assert np.allclose(principal_angles(a * [1e-6, 1, 1e6], b), expected)
    assert np.allclose(principal_angles(b, a), expected)


def test_random_subspaces_share_their_part_of_the_space() -> None:
    """E Σ cos² θ = pq/n: the chance level of the alignment."""
    rng = np.random.default_rng(0)
    angles = principal_angles(rng.standard_normal((1000, 12, 3)), rng.standard_normal((1000, 12, 2)))
    assert np.square(np.cos(angles)).sum(axis=1).mean() == pytest.approx(3 * 2 / 12, rel=0.05)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.eye(5)[:, :2], np.ones((5, 2)), "linearly independent"),
        (np.eye(5)[:, :2], np.eye(5)[:, :2] * [1, 0], "linearly independent"),
        (np.eye(5)[:, :2], np.eye(4)[:, :2], r"one space; got shapes \(5, 2\) and \(4, 2\)"),
        (np.eye(5)[:2], np.eye(5)[:, :2], r"got shape \(2, 5\)"),
        (np.eye(5)[:, :2], np.full((5, 2), np.nan), "finite"),
    ],
)
def test_bad_spans_are_refused(a: np.ndarray, b: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        principal_angles(a, b)


# The tangent space of faces


def test_tangent_space_is_the_derivative_of_the_renderer(generator: torch.Generator) -> None:
    z = 0.9 * sample_factors(2, generator=generator, dtype=torch.float64)
    columns = tangent_space(z, SIDE)
    assert columns.shape == (2, PIXELS, len(FACTORS))
    step = 1e-5
    for index in range(len(FACTORS)):
        shift = step * torch.eye(len(FACTORS), dtype=z.dtype)[index]
        difference = (render(z + shift, SIDE) - render(z - shift, SIDE)).flatten(1) / (2 * step)
        torch.testing.assert_close(columns[:, :, index], difference, rtol=1e-4, atol=1e-5)
    corners = torch.tensor([[-1.0] * 10, [1.0] * 10], dtype=torch.float64)
    assert (torch.linalg.matrix_rank(tangent_space(corners, SIDE)) == 10).all()


# Alignment


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
    measured = decoder_alignment(
        lambda x: face + 1e-3 * (x @ rotation).reshape(-1, 3, SIDE, SIDE), (PIXELS,), num_latents=2
    )
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

    assert decoder_alignment(plane, (400,), k=1, num_latents=2).value == pytest.approx(1, abs=2e-3)
    both = decoder_alignment(plane, (400,), k=2, num_latents=2)
    assert both.value == pytest.approx(0.5, abs=2e-3)
    assert both.details["energy"]["value"] == pytest.approx([1, 0], abs=2e-3)
    assert both.details["angles"]["value"] == pytest.approx([0, 90], abs=3)


def test_an_encoder_that_sees_the_factors_only_is_aligned_and_one_that_sees_all_alike_at_chance() -> None:
    draws = [number_generator(0, "tangent faces", index) for index in range(2)]
    columns = tangent_space(torch.cat([sample_factors(1, generator=draw) for draw in draws]), SIDE)
    for t in (0, 600):
        measured = encoder_alignment(
            lambda x: torch.einsum("bnk,bn->bk", columns, x.flatten(1)), SCHEDULER, t, SIDE, num_faces=2
        )
        assert measured.value > 0.999
        assert measured.protocol["t"] == t
    measured = encoder_alignment(lambda x: 2 * x, SCHEDULER, 300, SIDE, num_faces=8)
    assert measured.details["chance"] == pytest.approx(10 / (PIXELS - 1))
    assert measured.value == pytest.approx(10 / (PIXELS - 1), rel=0.2)


def test_the_batch_does_not_matter_and_finished_rows_are_kept(tmp_path: Path) -> None:
    weights = torch.randn(PIXELS, 12, generator=torch.Generator().manual_seed(2))
    measure = partial(encoder_alignment, scheduler=SCHEDULER, t=100, resolution=SIDE, num_faces=3, k=3, tolerance=1e-4)
    whole = measure(lambda x: x.flatten(1) @ weights)

    def broken(_: Tensor) -> Tensor:
        raise AssertionError("finished rows are not made again")

    with cached(tmp_path):
        rows = measure(lambda x: x.flatten(1) @ weights, batch_size=1)
        assert np.array_equal(measure(broken, batch_size=1).replicates, rows.replicates)
    assert np.allclose(whole.replicates, rows.replicates, atol=1e-4)


def test_a_real_model_knows_more_than_chance() -> None:
    pipeline = load_pipeline("faces32/base")
    sizes = {"num_latents": 2, "t": 400, "num_steps": 2, "k": 2, "tolerance": 0.3}
    for measurement in tangent_alignment(pipeline.unet, pipeline.scheduler, **sizes).values():
        assert 5 * measurement.details["chance"] < measurement.value <= 1
        assert len(measurement.details["angles"]["value"]) == 2


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (
            lambda: tangent_alignment(build_unet("digits16"), SCHEDULER, num_latents=2, t=400, num_steps=2),
            r"makes images \(1, 16, 16\)",
        ),
        (
            lambda: decoder_alignment(lambda x: x, (3, SIDE, SIDE), num_latents=1),
            "at least 2 latents and a batch of 1 are needed; got 1 and 4",
        ),
        (
            lambda: encoder_alignment(lambda x: x, SCHEDULER, 1000, SIDE, num_faces=2),
            "integer steps 0 to 999; got 1000",
        ),
        (
            lambda: encoder_alignment(lambda x: x, SCHEDULER, 0, SIDE, num_faces=2, k=800),
            "k must be between 1 and 767",
        ),
        (
            lambda: decoder_alignment(lambda x: x, (1, SIDE, SIDE), num_latents=2),
            r"got torch.float32 of shape \(2, 1, 16, 16\)",
        ),
    ],
)
def test_bad_alignments_are_refused(measure: partial, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure()
