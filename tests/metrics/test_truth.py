"""Paths against the truth: generators that render, so that the right answer is known, and one real model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.geometry.sphere import lerp, slerp
from isodiff.metrics import truth
from isodiff.metrics.factor_paths import excess_variation, factor_path_length, straightness
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.store import Store
from isodiff.metrics.truth import path_images, path_truth

SHAPE = (12,)
MIX = 0.08 * torch.randn(12, 10, generator=torch.Generator().manual_seed(5))
SIZES = {"num_pairs": 3, "num_points": 5}


def linear_factors(x_T: Tensor) -> Tensor:
    """Factors that are a linear function of the latent; for these draws no clamp is at work."""
    return (x_T @ MIX).clamp(-0.95, 0.95)


def perfect(x_T: Tensor) -> Tensor:
    """Every image is a face, and its factors are known."""
    return render(linear_factors(x_T), 32)


def true_factors(num_pairs: int, num_points: int) -> np.ndarray:
    """Factors along the same paths, without images or fits."""
    ends = draw_latents(SHAPE, 0, 2 * num_pairs, seed=0, stream="paths")
    points = [linear_factors(slerp(ends[::2], ends[1::2], float(t))) for t in torch.linspace(0, 1, num_points)]
    return torch.stack(points, dim=1).numpy()


def test_straight_paths_are_measured_as_straight() -> None:
    """Lerp through a linear map is straight at constant speed: the control for everything measured here."""
    measured = path_truth(perfect, SHAPE, interpolate=lerp, floor=False, **SIZES)
    assert measured["factor_excess"].value < 1e-3
    assert measured["factor_straightness"].value > 1 - 1e-3
    assert measured["manifold_distance"].value < 1e-6
    overshoot = measured["factor_excess"].details["overshoot"]["value"]
    assert len(overshoot) == len(FACTORS)
    assert max(overshoot) < 1e-3


def test_great_arcs_are_measured_as_the_factors_that_made_them() -> None:
    measured = path_truth(perfect, SHAPE, **SIZES)
    z = true_factors(**SIZES)
    assert excess_variation(z).mean() > 0.01  # there is something to find
    assert np.allclose(measured["factor_excess"].replicates, excess_variation(z).mean(axis=1), atol=2e-3)
    assert np.allclose(measured["factor_excess"].details["by_factor"]["value"], excess_variation(z).mean(0), atol=5e-3)
    assert np.allclose(measured["factor_straightness"].replicates, straightness(z), atol=1e-3)
    assert np.allclose(measured["factor_path_length"].replicates, factor_path_length(z), rtol=1e-2)
    for name in ("factor_excess", "factor_straightness", "factor_path_length", "manifold_distance"):
        assert set(measured[name].details["floor"]) >= {"value", "interval"}
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
    assert np.allclose(distance.details["profile"]["value"], 0.05**2, rtol=0.1)
    floor = measured["factor_excess"].details["floor"]
    assert 1e-3 < floor["value"] < 0.2


def test_path_images_are_the_frames_whatever_the_batch() -> None:
    frames = path_images(perfect, SHAPE, num_pairs=3, num_points=4)
    assert frames.shape == (3, 4, 3, 32, 32)
    assert frames.dtype == np.float32
    assert np.array_equal(frames, path_images(perfect, SHAPE, num_pairs=3, num_points=4, batch_size=3))
    assert np.array_equal(frames[:2], path_images(perfect, SHAPE, num_pairs=2, num_points=4))
    ends = draw_latents(SHAPE, 0, 6, seed=0, stream="paths")
    assert np.allclose(frames[:, 0], perfect(ends[::2]).numpy(), atol=1e-5)
    assert np.allclose(frames[:, -1], perfect(ends[1::2]).numpy(), atol=1e-5)


def test_a_killed_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(x_T: Tensor, *, fails_at: int) -> Tensor:
        calls.append(len(x_T))
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return perfect(x_T)

    measure = partial(path_truth, shape=SHAPE, batch_size=3, num_pairs=3, num_points=3, floor=False)
    with pytest.raises(KeyboardInterrupt):
        measure(partial(counting, fails_at=3), store=Store(tmp_path))
    resumed = measure(partial(counting, fails_at=-1), store=Store(tmp_path))
    assert calls == [3, 3, 3, 3]  # two finished, one killed, and that one again
    fresh = measure(perfect)
    for name, measurement in fresh.items():
        assert np.array_equal(measurement.replicates, resumed[name].replicates)


def test_a_real_model_leaves_the_straight_line_and_stays_near_the_manifold() -> None:
    generate = Generator(load_pipeline("faces32/base"), num_steps=4)
    measured = path_truth(generate, generate.shape, num_pairs=2, num_points=4, floor=False, protocol={"num_steps": 4})
    assert all(np.isfinite(m.value) and m.n == 2 and m.unit == "pairs" for m in measured.values())
    assert 0.3 < measured["factor_straightness"].value < 0.999
    assert measured["manifold_distance"].value < 0.05
    protocol = measured["factor_excess"].protocol
    assert protocol == {"num_points": 4, "interpolate": "slerp", "num_steps": 4}


def test_generators_that_are_no_faces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 channels; got images of shape \(1, 32, 32\)"):
        path_truth(lambda x: perfect(x)[:, :1], SHAPE, **SIZES)
    with pytest.raises(ValueError, match=r"got images of shape \(3, 16, 32\)"):
        path_truth(lambda x: perfect(x)[:, :, :16], SHAPE, **SIZES)
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 32, 32\)"):
        path_truth(lambda x: perfect(x)[:1], SHAPE, **SIZES)
    with pytest.raises(ValueError, match="finite images"):
        path_truth(lambda x: perfect(x) * float("nan"), SHAPE, **SIZES)


def test_identical_ends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="path 0 begins and ends in the same image"):
        path_truth(lambda x: perfect(torch.zeros_like(x)), SHAPE, **SIZES)
    same = torch.ones(6, 12)
    monkeypatch.setattr(truth, "draw_latents", lambda *_, **__: same)
    with pytest.raises(ValueError, match="path 0 begins and ends in the same image"):
        path_truth(perfect, SHAPE, **SIZES)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_points at least 3; got 3 and 2"):
        path_truth(perfect, SHAPE, num_pairs=3, num_points=2)
    with pytest.raises(ValueError, match="num_pairs must be at least 2 for an interval; got 1"):
        path_truth(perfect, SHAPE, num_pairs=1, num_points=5)
    with pytest.raises(ValueError, match="named function"):
        path_images(perfect, SHAPE, interpolate=lambda a, b, t: lerp(a, b, t), **SIZES)
