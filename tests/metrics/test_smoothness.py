"""Distances between adjacent frames: closed forms, one real model, and what is no path."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isodiff.diffusion.pretrained import load_pipeline
from isodiff.editing import traverse
from isodiff.geometry import lerp, slerp
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measurement import compare
from isodiff.metrics.networks import perceptual_distance
from isodiff.metrics.path_steps import squared_l2
from isodiff.metrics.smoothness import adjacent_distances, path_smoothness, smoothness
from isodiff.metrics.store import Store

SHAPE = (1, 4, 6)
SIZES = {"num_pairs": 4, "num_points": 6}


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a − b‖ of each row."""
    return squared_l2(a, b).sqrt()


def shrink(x: Tensor) -> Tensor:
    """A linear map to images."""
    return (0.1 * x).clamp(-1, 1)


def test_adjacent_distances_are_those_of_neighbours(generator: torch.Generator) -> None:
    frames = torch.rand(3, 5, 1, 4, 4, generator=generator)
    found = adjacent_distances(frames, l2)
    assert found.shape == (3, 4)
    for path in range(3):
        for step in range(4):
            assert found[path, step].item() == pytest.approx(
                (frames[path, step + 1] - frames[path, step]).norm().item()
            )


def test_a_walk_at_constant_speed_is_not_jerky_however_long() -> None:
    found = smoothness([[0.2] * 5, [2.0] * 5])
    assert np.allclose(found.jerkiness, 1)
    assert np.allclose(found.variance, 0)
    assert np.allclose(found.mean, [0.2, 2])
    assert np.allclose(found.maximum, [0.2, 2])


def test_a_jump_is_as_jerky_as_the_path_has_steps() -> None:
    found = smoothness([[0, 0, 3.0, 0, 0]])
    assert found.jerkiness == pytest.approx(5)
    assert found.variance == pytest.approx(3**2 * (1 / 5) * (4 / 5))


@settings(max_examples=10)
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.floats(0.01, 100), st.randoms())
def test_jerkiness_knows_neither_length_nor_order(steps: list[float], scale: float, random: object) -> None:
    shuffled = list(steps)
    random.shuffle(shuffled)
    found, other = smoothness([steps]), smoothness([[scale * step for step in shuffled]])
    assert other.jerkiness == pytest.approx(found.jerkiness)
    assert other.variance == pytest.approx(scale**2 * found.variance, abs=1e-9 * scale**2)
    assert 1 - 1e-9 <= found.jerkiness[0] <= len(steps) + 1e-9


def test_paths_of_a_linear_map_in_closed_form() -> None:
    """Chords of a lerp are equal; those of a slerp of equal radii are 2 r sin(θ/2N), so both are at constant speed."""
    measured = path_smoothness(shrink, SHAPE, l2, path=lerp, **SIZES)
    ends = draw_latents(SHAPE, 0, 8, seed=0, stream="paths")
    a, b = ends[::2].flatten(1), ends[1::2].flatten(1)
    chord = 0.1 * (a - b).norm(dim=1)
    assert np.allclose(measured["step_mean"].replicates, chord / 5, rtol=1e-5)
    assert np.allclose(measured["step_maximum"].replicates, chord / 5, rtol=1e-4)
    assert np.allclose(measured["step_variance"].replicates, 0, atol=1e-9)
    assert measured["step_jerkiness"].value == pytest.approx(1, abs=1e-4)
    profile = measured["step_mean"].details["profile"]
    assert np.allclose(profile["value"], (chord / 5).mean(), rtol=1e-4)

    def same_radius(x: Tensor, y: Tensor, tau: float) -> Tensor:
        return slerp(*(0.5 * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (x, y)), tau)

    round_trip = path_smoothness(lambda x: x, SHAPE, l2, path=same_radius, **SIZES)
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b))
    assert np.allclose(round_trip["step_mean"].replicates, torch.sin(angle / 10), rtol=1e-5)
    assert round_trip["step_jerkiness"].value == pytest.approx(1, abs=1e-4)
    assert round_trip["step_mean"].protocol == {"distance": "l2", "num_points": 6, "path": "same_radius"}


def test_a_threshold_is_a_jump(generator: torch.Generator) -> None:
    """An image that only ever flips between two values changes in one step of five."""
    a = torch.rand(4, 1, 2, 2, generator=generator) + 0.1
    frames = traverse(torch.sign, a, -a.flip(3), 6, path=lerp)
    one_pixel = frames[..., :1, :1]
    assert np.allclose(smoothness(adjacent_distances(one_pixel, l2)).jerkiness, 5)


def test_chunks_do_not_matter_and_finished_ones_are_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return shrink(x)

    whole = path_smoothness(shrink, SHAPE, l2, **SIZES)
    kept = path_smoothness(counting, SHAPE, l2, batch_size=12, store=Store(tmp_path), **SIZES)
    done = len(calls)
    again = path_smoothness(counting, SHAPE, l2, batch_size=12, store=Store(tmp_path), **SIZES)
    assert len(calls) == done > 1
    for name in whole:
        assert np.allclose(whole[name].replicates, kept[name].replicates, rtol=1e-6)
        assert np.array_equal(again[name].replicates, kept[name].replicates)


def test_two_models_on_the_same_pairs_by_lpips() -> None:
    lpips = perceptual_distance("alex")
    measured = {}
    for kind in ("base", "isometric"):
        generate = Generator(load_pipeline(f"digits16/{kind}"), num_steps=2)
        measured[kind] = path_smoothness(generate, generate.shape, lpips, num_pairs=2, num_points=4)
    for name, base in measured["base"].items():
        assert base.n == 2
        assert base.unit == "pairs"
        assert base.value > 0
        assert math.isfinite(compare(measured["isometric"][name], base).value)
    assert measured["base"]["step_jerkiness"].protocol["distance"] == "lpips-0.1"


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(P, N \+ 1, C, H, W\), N ≥ 1; got \(3, 1, 1, 4, 4\)"):
        adjacent_distances(torch.zeros(3, 1, 1, 4, 4), l2)
    with pytest.raises(ValueError, match="one number a row"):
        adjacent_distances(torch.zeros(3, 2, 1, 4, 4), lambda a, b: (a - b).flatten(1))
    with pytest.raises(ValueError, match="path 1 is one image throughout"):
        smoothness([[1, 2], [0, 0]])
    for bad in ([[1, -1]], [[1, np.nan]], [1, 2], [[]]):
        with pytest.raises(ValueError, match="distances must be finite, not negative"):
            smoothness(bad)


def test_sizes_and_names_out_of_range_are_refused() -> None:
    measure = partial(path_smoothness, shrink, SHAPE)
    with pytest.raises(ValueError, match="at least 2 and num_points at least 3; got 1 and 6"):
        measure(l2, num_pairs=1, num_points=6)
    with pytest.raises(ValueError, match="at least 2 and num_points at least 3; got 4 and 2"):
        measure(l2, num_pairs=4, num_points=2)
    with pytest.raises(ValueError, match="path must be a named function or have a `protocol`"):
        measure(l2, path=lambda a, b, t: lerp(a, b, t), **SIZES)
    with pytest.raises(ValueError, match="must be a named function or have a `protocol`"):
        measure(lambda a, b: l2(a, b), **SIZES)
    with pytest.raises(ValueError, match="give images"):
        path_smoothness(lambda x: x.flatten(1), SHAPE, l2, **SIZES)
