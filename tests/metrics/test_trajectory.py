"""Length over chord in closed form, and the driver against a naive loop on a real model."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ellipe

from isodiff.diffusion import build_pipeline, encode, load_pipeline
from isodiff.geometry import slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.trajectory import ROUND_EMBEDDING, relative_trajectory_length, trajectory_ratio

from ..geometry.tensors import refusals


def _arcs(angle: float, segments: int, rows: int = 3) -> np.ndarray:
    """Arcs of one angle and radius 2 in ℝ⁷, (rows, segments + 1, 7)."""
    plane = np.linalg.qr(np.random.default_rng(0).standard_normal((rows, 7, 2)))[0]
    tau = np.linspace(0, angle, segments + 1)
    return 2 * np.stack([np.cos(tau), np.sin(tau)], axis=1) @ plane.transpose(0, 2, 1)


@pytest.mark.parametrize(("angle", "segments"), [(0.3, 2), (3.0, 16)])
def test_an_arc_has_the_ratio_of_its_polygon(angle: float, segments: int) -> None:
    expected = segments * math.sin(angle / 2 / segments) / math.sin(angle / 2)
    np.testing.assert_allclose(trajectory_ratio(_arcs(angle, segments)), expected, rtol=1e-12)
    np.testing.assert_allclose(trajectory_ratio(_arcs(math.pi / 2, 4000)), ROUND_EMBEDDING, rtol=1e-7)


def test_a_linear_map_takes_the_quarter_arc_to_an_ellipse() -> None:
    """It is a quarter of an ellipse, p E(1 − q²/p²) long, over the chord √(p² + q²)."""
    p, q = 1.0, 0.3
    arc = _arcs(math.pi / 2, 2000, rows=1)[0]
    basis = np.linalg.qr(arc[[0, -1]].T)[0]
    stretched = (arc @ basis) * np.array([p, q])
    expected = p * ellipe(1 - q**2 / p**2) / math.hypot(p, q)
    np.testing.assert_allclose(trajectory_ratio(stretched[None]), expected, rtol=1e-6)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_similarities_change_nothing(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = rng.standard_normal((2, 6, 5))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    moved = scale * path @ rotation + rng.standard_normal(5)
    np.testing.assert_allclose(trajectory_ratio(moved), trajectory_ratio(path), rtol=1e-6)
    np.testing.assert_allclose(trajectory_ratio(path[:, ::-1]), trajectory_ratio(path), rtol=1e-12)
    assert (trajectory_ratio(path) >= trajectory_ratio(path[:, [0, 2, 5]]) - 1e-12).all()  # a finer path is no shorter


def _naive(generate: Generator, path: str, num_pairs: int, num_points: int, seed: int) -> tuple[list[int], np.ndarray]:
    """Everything one latent at a time, with diffusers' scheduler and the encoder run apart."""
    scheduler = DDIMScheduler.from_config(generate.scheduler.config)
    scheduler.set_timesteps(generate.num_steps)
    ratios = np.zeros((num_pairs, generate.num_steps))

    def step(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return scheduler.step(generate.unet(x, t).sample, t, x).prev_sample

    for pair in range(num_pairs):
        ends = draw_latents(generate.shape, 2 * pair, 2 * pair + 2, seed=seed, stream="pairs")
        taus = [j / (num_points - 1) for j in range(num_points)]
        points = [slerp(ends[:1], ends[1:], tau) for tau in taus]
        for index, t in enumerate(scheduler.timesteps):
            if path == "x_t":
                points = [slerp(points[0], points[-1], tau) for tau in taus]
            h = [encode(generate.unet, x, t).flatten().double() for x in points]
            length = sum((second - first).norm() for first, second in pairwise(h))
            ratios[pair, index] = length / (h[-1] - h[0]).norm()
            points = [step(x, t) for x in points]
    return scheduler.timesteps.tolist(), ratios


@pytest.mark.parametrize("path", ["x_T", "x_t"])
def test_the_driver_equals_a_naive_loop_on_a_real_model(path: str) -> None:
    faces = Generator(load_pipeline("faces32/base"), num_steps=4)
    measured = relative_trajectory_length(faces, num_pairs=3, num_points=5, path=path, batch_size=11, seed=4)
    with torch.no_grad():
        steps, ratios = _naive(faces, path, 3, 5, seed=4)
    assert measured.details["steps"] == steps
    np.testing.assert_allclose(measured.replicates, ratios.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(measured.details["value"], ratios.mean(axis=0), rtol=1e-5)
    assert measured.value == pytest.approx(ratios.mean(), rel=1e-5)
    assert 1 < measured.details["half_points"] < measured.value
    low, high = np.transpose(measured.details["interval"])
    assert ((low <= measured.details["value"]) & (measured.details["value"] <= high)).all()
    assert measured.protocol == {"path": path, "num_points": 5, "num_steps": 4}
    assert (measured.n, measured.unit, measured.seed) == (3, "pairs", 4)
    assert not faces.unet.mid_block._forward_hooks


def measure(generate: object = None, *, whole: bool = True, **change: object) -> None:
    digits = Generator(build_pipeline("digits16"), num_steps=2)
    digits.unet.mid_block = digits.unet.mid_block if whole else None
    relative_trajectory_length(generate or digits, **{"num_pairs": 2, "num_points": 3} | change)


test_other_input_is_refused = refusals(
    (lambda: trajectory_ratio(np.zeros((2, 2, 4))), r"3.* got shape \(2, 2, 4\)"),
    (lambda: trajectory_ratio(np.full((1, 3, 4), np.nan)), "12 NaN"),
    (lambda: trajectory_ratio(np.array([[[5.0], [1], [5]]])), "path 0 ends where it begins"),
    (lambda: measure(num_pairs=1), "num_pairs must be at least 2 .* got 1 and 3"),
    (lambda: measure(path="x_0"), "x_T, x_t; got 'x_0'"),
    (lambda: measure(whole=False), "no mid block"),
    (lambda: measure(lambda x: x), "must be a Generator.*got function"),
    errors=(ValueError, TypeError),
)
