"""Paths of known factors: closed forms, generators that render, so that the answer is known, and one real model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion import load_pipeline
from isodiff.geometry import lerp, slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measure import cached
from isodiff.metrics.truth import excess_variation, factor_path_length, overshoot, path_truth, straightness

ALL = (excess_variation, overshoot, straightness, factor_path_length)
SHAPE = (12,)
MIX = 0.08 * torch.randn(12, 10, generator=torch.Generator().manual_seed(5))
SIZES = {"num_pairs": 3, "num_points": 5}

paths = arrays(
    np.float64,
    array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7),
    elements=st.floats(-1, 1, allow_subnormal=False),
)


def line(num_points: int = 9) -> np.ndarray:
    """One path from a to b in three factors, at a speed that varies."""
    position = np.linspace(0, 1, num_points)[:, None] ** 2
    return (position * np.array([0.9, -0.4, 0.0]) + np.array([-0.5, 0.3, 0.2]))[None]


def linear_factors(x_T: Tensor) -> Tensor:
    """Factors that are a linear function of the latent; for these draws no clamp is at work."""
    return (x_T @ MIX).clamp(-0.95, 0.95)


def perfect(x_T: Tensor) -> Tensor:
    """Every image is a face, and its factors are known."""
    return render(linear_factors(x_T), 32)


# Factors along a path


def test_a_straight_line_has_no_excess_and_straightness_one() -> None:
    assert np.allclose(excess_variation(line()), 0, atol=1e-12)
    assert np.allclose(overshoot(line()), 0, atol=1e-12)
    assert np.allclose(straightness(line()), 1, atol=1e-12)


def test_there_and_back_travels_the_way_twice_and_wiggles_are_no_overshoot() -> None:
    path = np.zeros((1, 5, 2))
    path[0, :, 0] = [0.8, 0.2, -0.4, 0.2, 0.8]  # a smile that stops on the way
    path[0, :, 1] = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert np.allclose(excess_variation(path), [[2.4, 0]])
    assert np.allclose(overshoot(path), [[1.2, 0]])
    assert straightness(path) == pytest.approx(0.4 / (4 * np.hypot(0.6, 0.1)))
    wiggle = np.array([0.0, 0.6, 0.3, 1.0])[None, :, None]
    assert excess_variation(wiggle)[0, 0] == pytest.approx(0.6)
    assert overshoot(wiggle)[0, 0] == 0


@pytest.mark.parametrize("angle", [0.3, np.pi / 2, np.pi])
def test_an_arc_of_a_circle_has_its_chord_over_its_length(angle: float) -> None:
    theta = np.linspace(0, angle, 2001)
    arc = 0.7 * np.stack([np.cos(theta), np.sin(theta)], axis=1)[None]
    assert straightness(arc)[0] == pytest.approx(2 * np.sin(angle / 2) / angle, rel=1e-6)
    assert factor_path_length(arc)[0] == pytest.approx((0.7 * angle) ** 2, rel=1e-6)
    assert excess_variation(arc)[0, 0] == pytest.approx(0, abs=1e-12)


def test_noise_of_the_factors_adds_at_every_step() -> None:
    """E|z₁ − z₂| = 2s/√π for independent errors, which is why the number of points belongs to the protocol."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((4000, 21, 1))
    expected = 19 * 2 * 0.01 / np.sqrt(np.pi)  # 20 steps, less the one that the ends are apart
    assert excess_variation(noise).mean() == pytest.approx(expected, rel=0.02)


@given(paths)
def test_excess_straightness_and_length_keep_their_bounds(path: np.ndarray) -> None:
    """Constant speed is the shortest way to travel; a detour goes out and comes back."""
    path = np.concatenate([path, path[:, -1:] + 1], axis=1)  # so that every path has a length
    excess, beyond = excess_variation(path), overshoot(path)
    assert (beyond >= 0).all()
    assert (excess >= 2 * beyond - 1e-12).all()
    assert ((straightness(path) >= 0) & (straightness(path) <= 1)).all()
    length = np.linalg.norm(np.diff(path, axis=1), axis=2).sum(axis=1)
    assert (factor_path_length(path) >= length**2 * (1 - 1e-9)).all()


@given(paths)
def test_neither_the_direction_of_time_nor_points_between_two_frames_matter(path: np.ndarray) -> None:
    path = np.concatenate([path, path[:, -1:] + 1], axis=1)
    refined = np.stack([path[:, :-1], (path[:, :-1] + path[:, 1:]) / 2], axis=2).reshape(len(path), -1, path.shape[2])
    refined = np.concatenate([refined, path[:, -1:]], axis=1)
    for measure in ALL:
        assert np.allclose(measure(path), measure(path[:, ::-1]), atol=1e-9)
        assert np.allclose(measure(path), measure(refined), atol=1e-9)


@pytest.mark.parametrize("measure", ALL)
def test_other_shapes_and_values_are_refused(measure: type) -> None:
    for bad, message in (
        (line()[0], r"got shape \(9, 3\)"),
        (line()[:, :1], "at least 2 points"),
        (np.where(np.arange(9)[None, :, None] * 3 + np.arange(3) == 4, np.nan, line()), "1 NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(bad)
    with pytest.raises(ValueError, match="path 1 has length zero"):
        straightness(np.concatenate([line(), np.zeros((1, 9, 3))]))


# Paths of images


def test_straight_paths_are_measured_as_straight() -> None:
    """Lerp through a linear map is straight at constant speed: the control for everything measured here."""
    measured = path_truth(perfect, SHAPE, interpolate=lerp, floor=False, **SIZES)
    assert measured["factor_excess"].value < 1e-3
    assert measured["factor_straightness"].value > 1 - 1e-3
    assert measured["manifold_distance"].value < 1e-6
    overshot = measured["factor_excess"].details["overshoot"]["value"]
    assert len(overshot) == len(FACTORS)
    assert max(overshot) < 1e-3


def test_great_arcs_are_measured_as_the_factors_that_made_them() -> None:
    measured = path_truth(perfect, SHAPE, **SIZES)
    ends = draw_latents(SHAPE, 0, 6, seed=0, stream="paths")
    points = [linear_factors(slerp(ends[::2], ends[1::2], t)) for t in (0, 0.25, 0.5, 0.75, 1)]
    z = torch.stack(points, dim=1).numpy()
    assert excess_variation(z).mean() > 0.01  # there is something to find
    assert np.allclose(measured["factor_excess"].replicates, excess_variation(z).mean(axis=1), atol=2e-3)
    assert np.allclose(measured["factor_excess"].details["by_factor"]["value"], excess_variation(z).mean(0), atol=5e-3)
    assert np.allclose(measured["factor_straightness"].replicates, straightness(z), atol=1e-3)
    assert np.allclose(measured["factor_path_length"].replicates, factor_path_length(z), rtol=1e-2)
    for measurement in measured.values():
        assert set(measurement.details["floor"]) >= {"value", "interval"}
    assert measured["factor_excess"].details["floor"]["value"] < 1e-3
    by_points = measured["factor_excess"].details["by_points"]
    assert by_points["num_points"] == [5, 3]
    assert by_points["value"][1] == pytest.approx(excess_variation(z[:, ::2]).mean(), abs=2e-3)


def test_noise_is_found_as_distance_and_as_floor() -> None:
    """Pixel noise of a known size is the mean re-rendering error, less what ten factors fit away."""
    noise = 0.05 * torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    # short paths, so that errors of the fit turn factors back
    measured = path_truth(lambda x: (perfect(0.1 * x) + noise).clamp(-1, 1), SHAPE, num_pairs=2, num_points=4)
    distance = measured["manifold_distance"]
    assert distance.value == pytest.approx(0.05**2, rel=0.1)
    assert distance.details["floor"]["value"] == pytest.approx(distance.value, rel=0.1)
    assert 1e-3 < measured["factor_excess"].details["floor"]["value"] < 0.2


def test_a_killed_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(x_T: Tensor, *, fails_at: int) -> Tensor:
        calls.append(len(x_T))
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return perfect(x_T)

    measure = partial(path_truth, shape=SHAPE, batch_size=3, num_pairs=3, num_points=3, floor=False)
    with cached(tmp_path):
        with pytest.raises(KeyboardInterrupt):
            measure(partial(counting, fails_at=3))
        resumed = measure(partial(counting, fails_at=-1))
    assert calls == [3, 3, 3, 3]  # two finished, one killed, and that one again
    for name, measurement in measure(perfect).items():
        assert np.array_equal(measurement.replicates, resumed[name].replicates)


def test_a_real_model_leaves_the_straight_line_and_stays_near_the_manifold() -> None:
    generate = Generator(load_pipeline("faces32/base"), num_steps=4)
    measured = path_truth(generate, generate.shape, num_pairs=2, num_points=4, floor=False, protocol={"num_steps": 4})
    assert all(np.isfinite(m.value) and m.n == 2 and m.unit == "pairs" for m in measured.values())
    assert 0.3 < measured["factor_straightness"].value < 0.999
    assert measured["manifold_distance"].value < 0.05
    protocol = measured["factor_excess"].protocol
    assert protocol == {"num_points": 4, "interpolate": "slerp", "num_steps": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generate": lambda x: perfect(x)[:, :1]}, r"3 channels; got images of shape \(1, 32, 32\)"),
        ({"generate": lambda x: perfect(x)[:, :, :16]}, r"got images of shape \(3, 16, 32\)"),
        ({"generate": lambda x: perfect(x)[:1]}, r"got shape \(1, 3, 32, 32\)"),
        ({"generate": lambda x: perfect(x) * float("nan")}, "finite images"),
        ({"generate": lambda x: perfect(torch.zeros_like(x))}, "path 0 begins and ends in the same image"),
        ({"num_points": 2}, "num_points at least 3; got 3 and 2"),
        ({"num_pairs": 1}, "num_pairs must be at least 2 and .*; got 1 and 5"),
        ({"interpolate": lambda a, b, t: lerp(a, b, t)}, "named function"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        path_truth(**{"generate": perfect, "shape": SHAPE, **SIZES} | change)
