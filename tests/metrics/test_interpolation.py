"""Paths between images by every method, and how evenly they change: closed forms, and real small models."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion import NoiseLevel, load_pipeline
from isodiff.geometry import lerp
from isodiff.metrics import interpolation
from isodiff.metrics.generator import draw_latents
from isodiff.metrics.interpolation import CLOSED_FORM, SOLVED, Ends, Paths, adjacent_distances, smoothness
from isodiff.metrics.measure import Measurement, cached
from isodiff.metrics.path_length import squared_l2

from ..geometry.tensors import refusals

SHAPE = (1, 4, 6)


@cache
def level(model: str = "digits16/base", num_steps: int = 10) -> NoiseLevel:
    pipeline = load_pipeline(model)
    pipeline.unet.eval().requires_grad_(False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return NoiseLevel(pipeline.unet, scheduler, share=0.6, num_steps=num_steps)


@cache
def digits() -> Tensor:
    return torch.stack([open_dataset("digits", 16)[i] for i in range(4)])


@cache
def ends() -> Ends:
    images = digits()
    points = level().invert(images, refinements=3).latents
    return Ends(points[::2], points[1::2], images[::2], images[1::2])


def walk(generate: Callable = lambda x: 0.1 * x, **change: object) -> dict[str, Measurement]:
    options = {"distance": squared_l2, "path": lerp, "num_pairs": 4, "num_points": 6, "batch_size": 12} | change
    return interpolation.path_smoothness(generate, SHAPE, **options)


def judge(method: str, **change: object) -> dict[str, Measurement]:
    options = {"level": level(), "images": digits(), "num_segments": 4, "stride": 1, "refinements": 3, "faces": False}
    return interpolation.interpolation_quality(**options | {"method": method, "distance": squared_l2} | change)


def test_paths_of_a_linear_map_in_closed_form(tmp_path: Path) -> None:
    """Chords of a lerp are equal, so that its image moves at constant speed."""
    with cached(tmp_path):
        measured, kept = walk(), walk(torch.zeros_like)
    latents = draw_latents(SHAPE, 0, 8, seed=0, stream="paths")
    step = (0.1 / 5 * (latents[::2] - latents[1::2])).square().flatten(1).sum(dim=1)
    assert np.allclose(measured["step_mean"].replicates, step, rtol=1e-5)
    assert np.array_equal(kept["step_mean"].replicates, measured["step_mean"].replicates)
    assert np.allclose(measured["step_maximum"].replicates, step, rtol=1e-4)
    assert np.allclose(measured["step_variance"].replicates, 0, atol=1e-9)
    assert measured["step_jerkiness"].value == pytest.approx(1, abs=1e-4)
    assert np.allclose(measured["step_mean"].details["profile"]["value"], step.mean(), rtol=1e-4)
    assert measured["step_mean"].protocol == {"distance": "squared_l2", "num_points": 6, "path": "lerp"}


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


def test_the_geodesic_has_the_least_energy_and_says_whether_it_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: judge(name) for name in ("lerp", "slerp", "tangential")}
    energy = {name: measured["relative_energy"].replicates for name, measured in found.items()}
    assert (energy["tangential"] < np.minimum(energy["lerp"], energy["slerp"])).all()
    assert (energy["tangential"] >= 1).all()
    errors = [measured["endpoint_error"].replicates for measured in found.values()]
    np.testing.assert_allclose(errors[1:], errors[:1] * 2, rtol=1e-3)  # the ends are the same
    assert max(errors[0]) < 0.01
    assert found["tangential"]["converged"].value == 1
    assert found["tangential"]["converged"].details["reasons"] == {}
    monkeypatch.setitem(interpolation.TANGENTIAL, "max_iterations", 1)
    stopped = judge("tangential")["converged"]
    assert (stopped.value, stopped.protocol["max_iterations"]) == (0, 1)
    assert sum(stopped.details["reasons"].values()) == 2
    assert all("accepted" in reason for reason in stopped.details["reasons"])


def test_numbers_of_known_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that stays at its start and jumps to its end has nodes that decode to known images."""
    monkeypatch.setitem(CLOSED_FORM, "jump", lambda _, ends, n: Paths(torch.stack([ends.a] * n + [ends.b], 1)))
    found = judge("jump")
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


def test_faces_are_judged_by_their_renderer_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = torch.stack(open_dataset("faces", 32, seed=5).__getitems__(list(range(4))))
    options = {"images": faces, "level": level("faces32/base", 5), "faces": True, "num_segments": 2}
    with cached(tmp_path, model="m"):
        first = judge("lerp", **options)
        monkeypatch.setitem(CLOSED_FORM, "lerp", lambda *_: 1 / 0)  # never called
        again = judge("lerp", **options)
    assert {k: m.value for k, m in again.items()} == {k: m.value for k, m in first.items()}
    assert 0 < first["distance"].value < 0.1
    assert 0 <= first["excess"].value < 1
    assert 0 < first["straightness"].value <= 1


test_bad_input_is_refused = refusals(
    (lambda: adjacent_distances(torch.zeros(3, 1, 1, 4, 4), squared_l2), r"N ≥ 1; got \(3, 1, 1, 4, 4\)"),
    (lambda: smoothness([[1, 2], [0, 0]]), "path 1 is one image throughout"),
    (lambda: smoothness([[1, -1]]), "distances must not be negative"),
    (lambda: walk(num_pairs=1), "at least 2 and num_points at least 3; got 1 and 6"),
    (lambda: walk(path=lambda a, b, t: lerp(a, b, t)), "path must be a named function"),
    (lambda: judge("spline"), "method must be one of lerp, slerp, .*; got 'spline'"),
    (lambda: judge("lerp", images=digits()[:3]), "images must be pairs, at least 2; got 3"),
    (lambda: judge("lerp", stride=3), "num_segments must be a multiple of stride"),
    (lambda: judge("density", num_segments=6), "must be a power of 2 for the density path; got 6"),
)
