"""Paths between images by every method: what is known of them in closed form, and a real small model."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets.images import open_digits
from isodiff.diffusion.noise_level import NoiseLevel
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.metrics.interpolation import interpolation_quality
from isodiff.metrics.path_methods import CLOSED_FORM, SOLVED, Ends, Paths, Tangential
from isodiff.metrics.path_steps import squared_l2
from isodiff.metrics.store import Store

SIZES = {"num_segments": 4, "stride": 1, "refinements": 3, "distance": squared_l2, "faces": False}


@cache
def level(share: float = 0.6) -> NoiseLevel:
    pipeline = load_pipeline("digits16/base")
    pipeline.unet.eval().requires_grad_(False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return NoiseLevel(pipeline.unet, scheduler, share=share, num_steps=10)


@cache
def digits(count: int = 4) -> Tensor:
    return torch.stack([open_digits(16)[i] for i in range(count)])


@cache
def ends() -> Ends:
    images = digits()
    points = level().invert(images, refinements=3).latents
    return Ends(points[::2], points[1::2], images[::2], images[1::2])


@pytest.mark.parametrize("name", [*CLOSED_FORM, *SOLVED])
def test_every_method_draws_paths_between_the_ends(name: str) -> None:
    paths = (CLOSED_FORM | SOLVED)[name](level(), ends(), 4)
    assert paths.nodes.shape == (2, 5, 1, 16, 16)
    assert len(paths.converged) == len(paths.reason) == len(paths.iterations) == 2
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


def test_a_path_that_does_not_converge_is_counted_and_explained() -> None:
    method = ("hasty", Tangential(max_iterations=1))
    converged = interpolation_quality(level(), digits(), method, **SIZES)["converged"]
    assert converged.value == 0
    assert sum(converged.details["reasons"].values()) == 2
    assert all("accepted" in reason for reason in converged.details["reasons"])
    assert converged.protocol["max_iterations"] == 1


def test_numbers_of_known_images() -> None:
    """Nodes that decode to known images: here a path that stays at its start and jumps to its end."""

    def jump(at: NoiseLevel, between: Ends, num_segments: int) -> Paths:
        assert at is level()
        return Paths.closed(torch.stack([between.a] * num_segments + [between.b], 1))

    found = interpolation_quality(level(), digits(), ("jump", jump), **SIZES)
    images = level().decode(torch.cat([ends().a, ends().b]))
    apart = squared_l2(images[:2], images[2:]).double().numpy()
    np.testing.assert_allclose(found["length"].replicates, apart, rtol=1e-4)
    np.testing.assert_allclose(found["unevenness"].replicates, apart * np.sqrt(3) / 4, rtol=1e-4)
    np.testing.assert_allclose(found["jerkiness"].replicates, [4, 4], rtol=1e-4)
    rough = images.diff(dim=-1).square().flatten(1).mean(1) + images.diff(dim=-2).square().flatten(1).mean(1)
    outer = digits()
    own = outer.diff(dim=-1).square().flatten(1).mean(1) + outer.diff(dim=-2).square().flatten(1).mean(1)
    np.testing.assert_allclose(
        found["detail"].replicates, (rough[:2] / own.view(2, 2).mean(1)).double().numpy(), rtol=1e-4
    )


def test_faces_are_judged_by_their_renderer_and_finished_pairs_are_kept(tmp_path: Path) -> None:
    from isodiff.datasets import open_dataset

    pipeline = load_pipeline("faces32/base")
    pipeline.unet.eval().requires_grad_(False)
    at = NoiseLevel(pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False), num_steps=5)
    faces = torch.stack(open_dataset("faces", 32, seed=5).__getitems__(list(range(4))))
    sizes = SIZES | {"faces": True, "num_segments": 2}
    first = interpolation_quality(at, faces, "lerp", **sizes, store=Store(tmp_path, model="m"))
    assert 0 < first["distance"].value < 0.1
    assert 0 <= first["excess"].value < 1
    assert 0 < first["straightness"].value <= 1

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    again = interpolation_quality(at, faces, ("lerp", never), **sizes, store=Store(tmp_path, model="m"))
    assert {k: m.value for k, m in again.items()} == {k: m.value for k, m in first.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "spline"}, "method must be one of lerp, slerp, .*; got 'spline'"),
        ({"images": torch.zeros(3, 1, 16, 16)}, "images must be pairs, at least 2; got 3"),
        ({"images": torch.zeros(2, 1, 16, 16)}, "images must be pairs, at least 2; got 2"),
        ({"images": torch.zeros(4, 1, 8, 8)}, "x_0 must have the shape"),
        ({"num_segments": 1}, "num_segments must be a multiple of stride"),
        ({"num_segments": 4, "stride": 3}, "num_segments must be a multiple of stride"),
        ({"num_segments": 6, "method": "density"}, "must be a power of 2 for the density path; got 6"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    options = {"images": digits(), "method": "lerp", **SIZES} | change
    with pytest.raises(ValueError, match=message):
        interpolation_quality(level(), options.pop("images"), options.pop("method"), **options)
