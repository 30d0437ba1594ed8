"""Paths between images by every method, and how evenly they change: closed forms, and real small models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion import NoiseLevel, load_pipeline
from isodiff.editing import traverse
from isodiff.geometry import lerp, slerp
from isodiff.metrics import interpolation
from isodiff.metrics.generator import draw_latents
from isodiff.metrics.interpolation import (
    CLOSED_FORM,
    SOLVED,
    Ends,
    Paths,
    adjacent_distances,
    interpolation_quality,
    path_smoothness,
    smoothness,
)
from isodiff.metrics.measure import cached
from isodiff.metrics.path_length import squared_l2

SIZES = {"num_segments": 4, "stride": 1, "refinements": 3, "distance": squared_l2, "faces": False}
SHAPE = (1, 4, 6)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a − b‖ of each row."""
    return squared_l2(a, b).sqrt()


def shrink(x: Tensor) -> Tensor:
    """A linear map to images."""
    return (0.1 * x).clamp(-1, 1)


@cache
def level(model: str = "digits16/base", num_steps: int = 10) -> NoiseLevel:
    pipeline = load_pipeline(model)
    pipeline.unet.eval().requires_grad_(False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return NoiseLevel(pipeline.unet, scheduler, share=0.6, num_steps=num_steps)


@cache
def digits(count: int = 4) -> Tensor:
    return torch.stack([open_dataset("digits", 16)[i] for i in range(count)])


@cache
def ends() -> Ends:
    images = digits()
    points = level().invert(images, refinements=3).latents
    return Ends(points[::2], points[1::2], images[::2], images[1::2])


# How evenly images change


def test_constant_speed_is_not_jerky_however_long_and_a_jump_is_as_jerky_as_the_path_has_steps() -> None:
    found = smoothness([[0.2] * 5, [2.0] * 5, [0, 0, 3.0, 0, 0]])
    assert np.allclose(found.jerkiness, [1, 1, 5])
    assert np.allclose(found.variance, [0, 0, 3**2 * (1 / 5) * (4 / 5)])
    assert np.allclose(found.mean, [0.2, 2, 0.6])
    assert np.allclose(found.maximum, [0.2, 2, 3])
    a = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    frames = traverse(torch.sign, a, -a.flip(3), 6, path=lerp)  # an image that only flips between two values
    assert np.allclose(smoothness(adjacent_distances(frames[..., :1, :1], l2)).jerkiness, 5)


@settings(max_examples=10)
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.floats(0.01, 100), st.randoms())
def test_jerkiness_knows_neither_length_nor_order(steps: list[float], scale: float, random: object) -> None:
    shuffled = list(steps)
    random.shuffle(shuffled)
    found, other = smoothness([steps]), smoothness([[scale * step for step in shuffled]])
    assert other.jerkiness == pytest.approx(found.jerkiness)
    assert other.variance == pytest.approx(scale**2 * found.variance, abs=1e-9 * scale**2)
    assert 1 - 1e-9 <= found.jerkiness[0] <= len(steps) + 1e-9


def test_paths_of_a_linear_map_in_closed_form(tmp_path: Path) -> None:
    """Chords of a lerp are equal; those of a slerp of equal radii are 2 r sin(θ/2N), so both are at constant speed."""
    with cached(tmp_path):
        measured = path_smoothness(shrink, SHAPE, l2, path=lerp, num_pairs=4, num_points=6, batch_size=12)
        again = path_smoothness(torch.zeros_like, SHAPE, l2, path=lerp, num_pairs=4, num_points=6, batch_size=12)
    latents = draw_latents(SHAPE, 0, 8, seed=0, stream="paths")
    a, b = latents[::2].flatten(1), latents[1::2].flatten(1)
    chord = 0.1 * (a - b).norm(dim=1)
    assert np.allclose(measured["step_mean"].replicates, chord / 5, rtol=1e-5)
    assert np.array_equal(again["step_mean"].replicates, measured["step_mean"].replicates)  # kept
    assert np.allclose(measured["step_maximum"].replicates, chord / 5, rtol=1e-4)
    assert np.allclose(measured["step_variance"].replicates, 0, atol=1e-9)
    assert measured["step_jerkiness"].value == pytest.approx(1, abs=1e-4)
    assert np.allclose(measured["step_mean"].details["profile"]["value"], (chord / 5).mean(), rtol=1e-4)

    def same_radius(x: Tensor, y: Tensor, tau: float) -> Tensor:
        return slerp(*(0.5 * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (x, y)), tau)

    round_trip = path_smoothness(lambda x: x, SHAPE, l2, path=same_radius, num_pairs=4, num_points=6)
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b))
    assert np.allclose(round_trip["step_mean"].replicates, torch.sin(angle / 10), rtol=1e-5)
    assert round_trip["step_jerkiness"].value == pytest.approx(1, abs=1e-4)
    assert round_trip["step_mean"].protocol == {"distance": "l2", "num_points": 6, "path": "same_radius"}


def walk(**change: object) -> dict:
    given_all = {"generate": shrink, "shape": SHAPE, "distance": l2, "num_pairs": 4, "num_points": 6}
    return path_smoothness(**given_all | change)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: adjacent_distances(torch.zeros(3, 1, 1, 4, 4), l2), r"\(P, N \+ 1, .* N ≥ 1; got \(3, 1, 1, 4, 4\)"),
        (lambda: adjacent_distances(torch.zeros(3, 2, 1, 4, 4), lambda a, b: (a - b).flatten(1)), "one number a row"),
        (lambda: smoothness([[1, 2], [0, 0]]), "path 1 is one image throughout"),
        (lambda: smoothness([[1, -1]]), "distances must not be negative"),
        (lambda: smoothness([[1, np.nan]]), "distances must be finite"),
        (lambda: smoothness([1, 2]), "distances must have shape"),
        (lambda: walk(num_pairs=1), "at least 2 and num_points at least 3; got 1 and 6"),
        (lambda: walk(num_points=2), "at least 2 and num_points at least 3; got 4 and 2"),
        (lambda: walk(path=lambda a, b, t: lerp(a, b, t)), "path must be a named function"),
        (lambda: walk(distance=lambda a, b: l2(a, b)), "must be a named function or have a `protocol`"),
        (lambda: walk(generate=lambda x: x.flatten(1)), "give images"),
    ],
)
def test_what_is_no_path_is_refused(measure: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure()


# Methods


@pytest.mark.parametrize("name", [*CLOSED_FORM, *SOLVED])
def test_every_method_draws_paths_between_the_ends(name: str) -> None:
    paths = (CLOSED_FORM | SOLVED)[name](level(), ends(), 4)
    assert paths.nodes.shape == (2, 5, 1, 16, 16)
    assert (paths.converged is None) == (name != "tangential")
    outer = torch.stack([ends().a, ends().b], 1)
    if name == "noise_diffusion":  # which mixes images in and keeps no end
        assert (paths.nodes[:, [0, -1]] - outer).abs().max() > 0.01
    elif name == "density":  # which brings both ends to one radius
        cosine = torch.nn.functional.cosine_similarity(paths.nodes[:, [0, -1]].flatten(2), outer.flatten(2), dim=2)
        torch.testing.assert_close(cosine, torch.ones(2, 2))
    else:
        torch.testing.assert_close(paths.nodes[:, [0, -1]], outer, rtol=0, atol=1e-5)


def test_the_geodesic_has_the_least_energy_and_says_that_it_converged() -> None:
    found = {name: interpolation_quality(level(), digits(), name, **SIZES) for name in ("lerp", "slerp", "tangential")}
    assert found["tangential"]["converged"].value == 1
    assert found["tangential"]["converged"].details["reasons"] == {}
    energy = {name: measured["relative_energy"].replicates for name, measured in found.items()}
    assert (energy["tangential"] < np.minimum(energy["lerp"], energy["slerp"])).all()
    assert (energy["tangential"] >= 1).all()
    errors = [measured["endpoint_error"].replicates for measured in found.values()]
    np.testing.assert_allclose(errors[1:], errors[:1] * 2, rtol=1e-3)  # the ends are the same
    assert max(errors[0]) < 0.01


def test_a_path_that_does_not_converge_is_counted_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interpolation.TANGENTIAL, "max_iterations", 1)
    converged = interpolation_quality(level(), digits(), "tangential", **SIZES)["converged"]
    assert converged.value == 0
    assert sum(converged.details["reasons"].values()) == 2
    assert all("accepted" in reason for reason in converged.details["reasons"])
    assert converged.protocol["max_iterations"] == 1


def test_numbers_of_known_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that decode to known images: here a path that stays at its start and jumps to its end."""

    def jump(at: NoiseLevel, between: Ends, num_segments: int) -> Paths:
        assert at is level()
        return Paths(torch.stack([between.a] * num_segments + [between.b], 1))

    monkeypatch.setitem(CLOSED_FORM, "jump", jump)
    found = interpolation_quality(level(), digits(), "jump", **SIZES)
    images = level().decode(torch.cat([ends().a, ends().b]))
    apart = squared_l2(images[:2], images[2:]).double().numpy()
    np.testing.assert_allclose(found["length"].replicates, apart, rtol=1e-4)
    np.testing.assert_allclose(found["unevenness"].replicates, apart * np.sqrt(3) / 4, rtol=1e-4)
    np.testing.assert_allclose(found["jerkiness"].replicates, [4, 4], rtol=1e-4)

    def rough(x: Tensor) -> np.ndarray:
        across, down = (x.diff(dim=dim).square().flatten(1).mean(1) for dim in (-1, -2))
        return (across + down).double().numpy()

    detail = rough(images[:2]) / rough(digits()).reshape(2, 2).mean(1)
    np.testing.assert_allclose(found["detail"].replicates, detail, rtol=1e-4)


def test_faces_are_judged_by_their_renderer_and_finished_pairs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = torch.stack(open_dataset("faces", 32, seed=5).__getitems__(list(range(4))))
    measure = partial(interpolation_quality, level("faces32/base", 5), faces, "lerp")
    sizes = SIZES | {"faces": True, "num_segments": 2}
    with cached(tmp_path, model="m"):
        first = measure(**sizes)
        monkeypatch.setitem(CLOSED_FORM, "lerp", lambda *_: 1 / 0)  # never called
        again = measure(**sizes)
    assert {k: m.value for k, m in again.items()} == {k: m.value for k, m in first.items()}
    assert 0 < first["distance"].value < 0.1
    assert 0 <= first["excess"].value < 1
    assert 0 < first["straightness"].value <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "spline"}, "method must be one of lerp, slerp, .*; got 'spline'"),
        ({"images": torch.zeros(3, 1, 16, 16)}, "images must be pairs, at least 2; got 3"),
        ({"images": torch.zeros(4, 1, 8, 8)}, "x_0 must have the shape"),
        ({"num_segments": 4, "stride": 3}, "num_segments must be a multiple of stride"),
        ({"num_segments": 6, "method": "density"}, "must be a power of 2 for the density path; got 6"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    options = {"images": digits(), "method": "lerp", **SIZES} | change
    with pytest.raises(ValueError, match=message):
        interpolation_quality(level(), options.pop("images"), options.pop("method"), **options)
