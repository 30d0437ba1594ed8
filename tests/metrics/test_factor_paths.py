"""Paths of known factors: closed forms, invariances, properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from isodiff.metrics.factor_paths import excess_variation, factor_path_length, overshoot, straightness

ALL = (excess_variation, overshoot, straightness, factor_path_length)

paths = arrays(
    np.float64,
    array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=7),
    elements=st.floats(-1, 1, allow_subnormal=False),
)


def _line(num_points: int = 9) -> np.ndarray:
    """One path from a to b in three factors, at a speed that varies."""
    position = np.linspace(0, 1, num_points)[:, None] ** 2
    return (position * np.array([0.9, -0.4, 0.0]) + np.array([-0.5, 0.3, 0.2]))[None]


def test_a_straight_line_has_no_excess_and_straightness_one() -> None:
    assert np.allclose(excess_variation(_line()), 0, atol=1e-12)
    assert np.allclose(overshoot(_line()), 0, atol=1e-12)
    assert np.allclose(straightness(_line()), 1, atol=1e-12)


def test_there_and_back_travels_the_way_twice() -> None:
    path = np.zeros((1, 5, 2))
    path[0, :, 0] = [0.8, 0.2, -0.4, 0.2, 0.8]  # a smile that stops on the way
    path[0, :, 1] = [0.0, 0.1, 0.2, 0.3, 0.4]
    assert np.allclose(excess_variation(path), [[2.4, 0]])
    assert np.allclose(overshoot(path), [[1.2, 0]])
    assert straightness(path) == pytest.approx(0.4 / (4 * np.hypot(0.6, 0.1)))


def test_wiggles_between_the_ends_are_excess_but_no_overshoot() -> None:
    path = np.array([0.0, 0.6, 0.3, 1.0])[None, :, None]
    assert excess_variation(path)[0, 0] == pytest.approx(0.6)
    assert overshoot(path)[0, 0] == 0


@pytest.mark.parametrize("angle", [0.3, np.pi / 2, np.pi])
def test_an_arc_of_a_circle_has_its_chord_over_its_length(angle: float) -> None:
    theta = np.linspace(0, angle, 2001)
    arc = 0.7 * np.stack([np.cos(theta), np.sin(theta)], axis=1)[None]
    assert straightness(arc)[0] == pytest.approx(2 * np.sin(angle / 2) / angle, rel=1e-6)
    assert factor_path_length(arc)[0] == pytest.approx((0.7 * angle) ** 2, rel=1e-6)
    assert excess_variation(arc)[0, 0] == pytest.approx(0, abs=1e-12)


def test_constant_speed_is_the_shortest_way_to_travel() -> None:
    even = np.linspace(0, 1, 9)[None, :, None]
    assert factor_path_length(even)[0] == pytest.approx(1)
    assert factor_path_length(even**2)[0] > 1.2


def test_noise_of_the_factors_adds_at_every_step() -> None:
    """E|z₁ − z₂| = 2s/√π for independent errors, which is why the number of points belongs to the protocol."""
    noise = 0.01 * np.random.default_rng(0).standard_normal((4000, 21, 1))
    expected = 19 * 2 * 0.01 / np.sqrt(np.pi)  # 20 steps, less the one that the ends are apart
    assert excess_variation(noise).mean() == pytest.approx(expected, rel=0.02)


@given(paths)
def test_excess_is_not_negative_and_at_least_twice_the_overshoot(path: np.ndarray) -> None:
    excess, beyond = excess_variation(path), overshoot(path)
    assert (beyond >= 0).all()
    assert (excess >= 2 * beyond - 1e-12).all()


@given(paths)
def test_the_direction_of_time_does_not_matter(path: np.ndarray) -> None:
    moving = np.concatenate([path, path[:, -1:] + 1], axis=1)  # so that every path has a length
    for measure in ALL:
        assert np.allclose(measure(moving), measure(moving[:, ::-1]), atol=1e-9)


@given(paths)
def test_points_between_two_frames_change_nothing_but_the_speed(path: np.ndarray) -> None:
    refined = np.stack([path[:, :-1], (path[:, :-1] + path[:, 1:]) / 2], axis=2).reshape(len(path), -1, path.shape[2])
    refined = np.concatenate([refined, path[:, -1:]], axis=1)
    assert np.allclose(excess_variation(path), excess_variation(refined), atol=1e-9)
    assert np.allclose(overshoot(path), overshoot(refined), atol=1e-9)
    assert np.allclose(factor_path_length(path), factor_path_length(refined), atol=1e-9)


@given(paths)
def test_straightness_lies_between_zero_and_one(path: np.ndarray) -> None:
    moving = np.concatenate([path, path[:, -1:] + 1], axis=1)
    assert ((straightness(moving) >= 0) & (straightness(moving) <= 1)).all()
    length = np.linalg.norm(np.diff(moving, axis=1), axis=2).sum(axis=1)
    assert (factor_path_length(moving) >= length**2 * (1 - 1e-9)).all()


def test_a_path_that_stands_still_has_no_straightness() -> None:
    with pytest.raises(ValueError, match="path 1 has length zero"):
        straightness(np.concatenate([_line(), np.zeros((1, 9, 3))]))


@pytest.mark.parametrize("measure", ALL)
def test_other_shapes_and_values_are_refused(measure: type) -> None:
    with pytest.raises(ValueError, match=r"got shape \(9, 3\)"):
        measure(_line()[0])
    with pytest.raises(ValueError, match="at least 2 points"):
        measure(_line()[:, :1])
    with pytest.raises(ValueError, match="1 NaN"):
        measure(np.where(np.arange(9)[None, :, None] * 3 + np.arange(3) == 4, np.nan, _line()))
