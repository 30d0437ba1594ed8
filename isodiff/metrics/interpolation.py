r"""Paths between given images, by every method, on the same pairs: are they short, even, sharp and on the manifold?

Two images are inverted to a noise level τ, x₀ → x_τ; a *method* draws a path between the two points, and its nodes are
sampled, x_τ → x₀. The images in between are judged by LPIPS between neighbours (PPL its sum over a path, PDV its
standard deviation, Saito and Matsubara 2025), by their detail, as blur shortens every perceptual path, and, of faces,
by the renderer that knows them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from isodiff import geometry
from isodiff.datasets import check_images
from isodiff.diffusion import NoiseLevel
from isodiff.editing import Path, traverse
from isodiff.metrics.generator import Generate, draw_latents
from isodiff.metrics.measure import Arrays, Measurement, content_digest, finite, full_precision, over_points, over_units
from isodiff.metrics.path_length import Distance, describe, measure
from isodiff.metrics.truth import check_walks, excess_variation, fit_faces, means, straightness

Array = NDArray[np.float64]


class Smoothness(NamedTuple):
    """Distances between adjacent frames of P paths, (P,) each (the plot under Fig. 6 of Hahm et al. 2024)."""

    mean: Array
    maximum: Array
    variance: Array  # over the N steps of a path, N in the denominator
    jerkiness: Array  # maximum/mean: 1 at constant speed, N for one jump; without unit, so length is not called jerky


@torch.no_grad()
def adjacent_distances(frames: Tensor, distance: Distance) -> Tensor:
    """Return the distances (P, N) between adjacent frames of paths (P, N + 1, C, H, W), N ≥ 1."""
    if frames.ndim != 5 or frames.shape[1] < 2 or 0 in frames.shape:
        raise ValueError(f"frames must have shape (P, N + 1, C, H, W), N ≥ 1; got {tuple(frames.shape)}")
    found = measure(distance, frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
    return found.unflatten(0, (frames.shape[0], frames.shape[1] - 1))


def smoothness(distances: ArrayLike) -> Smoothness:
    """Summarise the distances (P, N) between adjacent frames of each path."""
    d = finite(distances, "distances", 1, 1)
    if (d < 0).any():
        raise ValueError(f"distances must not be negative; got {d.min()}")
    mean, maximum = d.mean(axis=1), d.max(axis=1)
    if (mean == 0).any():
        raise ValueError(f"path {int(mean.argmin())} is one image throughout, so that it has no jerkiness")
    return Smoothness(mean, maximum, d.var(axis=1), maximum / mean)


def path_smoothness(
    generate: Generate,
    shape: tuple[int, ...],
    distance: Distance,
    *,
    num_pairs: int,
    num_points: int,
    path: Path = geometry.slerp,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure how evenly images change along paths: ``step_mean``, ``_maximum``, ``_variance`` and ``_jerkiness``.

    Path i runs from latent 2i to latent 2i + 1 of the stream ``"paths"``, those of `path_truth`, in num_points ≥ 3
    frames, by a named function. Compare at equal num_points.
    """
    check_walks(num_pairs, num_points, path, "path")
    protocol = describe({"distance": distance})["distance"] | {"num_points": num_points, "path": path.__name__}

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="paths")
        frames = traverse(generate, ends[::2], ends[1::2], num_points, path=path, batch_size=batch_size)
        return {"distances": adjacent_distances(frames, distance).double().cpu().numpy()}

    size = max(1, batch_size // num_points)
    with torch.no_grad(), full_precision():
        found = over_units(compute, num_pairs, size=size, what="path smoothness", seed=seed, **protocol)["distances"]
    shared = {"unit": "pairs", "seed": seed, "protocol": protocol}
    details = {"mean": {"profile": means(found)}}  # along the path
    return {
        f"step_{name}": Measurement.from_units(f"step_{name}", values, details=details.get(name, {}), **shared)
        for name, values in smoothness(found)._asdict().items()
    }


class Paths(NamedTuple):
    """What a method draws: nodes (B, N + 1, *S), and of one that tests it, whether and why not each pair converged."""

    nodes: Tensor
    converged: Tensor | None = None
    reason: list[str] | None = None


class Ends(NamedTuple):
    """Pairs of images and their points at the level, (B, C, H, W) each."""

    a: Tensor
    b: Tensor
    image_a: Tensor
    image_b: Tensor


Method = Callable[[NoiseLevel, Ends, int], Paths]  # draws paths of N segments between the ends at a level


def _closed(path: Callable[[Tensor, Tensor, float], Tensor]) -> Method:
    def draw(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
        positions = torch.linspace(0, 1, num_segments + 1, dtype=torch.float64).tolist()
        return Paths(torch.stack([path(ends.a, ends.b, tau) for tau in positions], 1))

    return draw


def _norm_aware(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    """Draw norm-aware paths between the ends brought to the norm of noise, for which the cost is made, and back."""
    noise = (ends.a[0].numel() - 1) ** 0.5
    share_a, share_b = ((x.flatten(1).norm(dim=1) / noise).view(-1, *[1] * x.ndim) for x in (ends.a, ends.b))
    nodes = geometry.norm_aware_path(ends.a / share_a[:, 0], ends.b / share_b[:, 0], num_segments)
    tau = torch.linspace(0, 1, num_segments + 1).to(nodes).view(-1, *[1] * (ends.a.ndim - 1))
    return Paths(nodes * ((1 - tau) * share_a + tau * share_b))


def _noise_diffusion(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    def point(a: Tensor, b: Tensor, tau: float) -> Tensor:
        return geometry.noise_diffusion(a, b, tau, image_a=ends.image_a, image_b=ends.image_b, alpha_bar=level.alpha**2)

    return _closed(point)(level, ends, num_segments)


def _density(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    doublings = num_segments.bit_length() - 1
    if 2**doublings != num_segments:
        raise ValueError(f"num_segments must be a power of 2 for the density path; got {num_segments}")
    options = {"num_levels": doublings, "iterations_per_level": 100}
    return Paths(geometry.density_path(lambda x: -level.eps(x), ends.a, ends.b, **options))


TANGENTIAL = {"rho": 1e-3, "num_subsamples": 2, "max_iterations": 100, "initial": "slerp"}  # the last as published


def _tangential(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    sizes = {"sigma": level.sigma, "num_segments": num_segments, "batch_size": 64}
    found = geometry.solve_geodesic(level.score, ends.a, ends.b, **sizes, **TANGENTIAL)
    return Paths(found.path, found.converged, found.reason)


# methods that cost nothing beside the sampling, and those that search for their path, two with the model's score
CLOSED_FORM: dict[str, Method] = {name: _closed(getattr(geometry, name)) for name in ("lerp", "slerp")}
CLOSED_FORM["noise_diffusion"] = _noise_diffusion
SOLVED: dict[str, Method] = {"norm_aware": _norm_aware, "density": _density, "tangential": _tangential}


def interpolation_quality(
    level: NoiseLevel,
    images: Tensor,
    method: str,
    *,
    distance: Distance,
    num_segments: int = 16,
    stride: int = 2,
    refinements: int = 5,
    faces: bool = True,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Draw paths of N segments between pairs of images by one method, and judge every `stride`-th image along them.

    Pair i is images 2i and 2i + 1, (2P, C, H, W) in [−1, 1]; `seed` is theirs, and the protocol holds their digest. The
    level should not clip, so that the ends come back; `faces` are rendered ones. Means over pairs:

    - ``length``: Σ distance of neighbours (PPL); ``unevenness``: their standard deviation (PDV); ``jerkiness``.
    - ``detail``: mean squared difference of neighbouring pixels in between, over that of the ends: below 1 for blur.
    - ``endpoint_error``: mean squared difference of the sampled ends and the images.
    - of faces in between, ``distance``: mean squared re-rendering error; ``excess``, ``straightness`` of their factors.
    - ``relative_energy``: tangential energy of the path, ρ = 10⁻³, over the lower bound ½‖ŝ(b) − ŝ(a)‖².
    - ``seconds`` to draw the path; ``converged``: share, 1 where nothing tests it, with the reasons as details.
    """
    if (draw := (CLOSED_FORM | SOLVED).get(method)) is None:
        raise ValueError(f"method must be one of {', '.join([*CLOSED_FORM, *SOLVED])}; got {method!r}")
    images = check_images(images, len(images), name="images")
    if len(images) < 4 or len(images) % 2:
        raise ValueError(f"images must be pairs, at least 2; got {len(images)} images")
    if stride < 1 or num_segments % stride or num_segments < 2 * stride:
        raise ValueError(f"num_segments must be a multiple of stride, at least twice; got {num_segments} and {stride}")
    inverting = {"t": level.t, "num_steps": level.num_steps, "refinements": refinements}
    key = inverting | {"method": method, "num_segments": num_segments, "stride": stride}
    key |= {"clip_sample": level.schedule.clip is not None, **describe({"distance": distance})["distance"]}
    key |= TANGENTIAL if method == "tangential" else {}
    pairs = images.unflatten(0, (-1, 2))

    def invert(outer: Tensor, start: int) -> Arrays:
        x_0 = outer.flatten(0, 1).to(level.unet.device)
        points = level.invert(x_0, refinements=refinements).latents
        return {"points": points.unflatten(0, (-1, 2)).cpu().numpy()}

    def compute(outer: Tensor, start: int) -> Arrays:
        outer = outer.to(level.unet.device)
        points = torch.from_numpy(inverted[start : start + len(outer)]).to(outer)
        ends = Ends(*points.unbind(1), *outer.unbind(1))
        began = time.perf_counter()
        paths = draw(level, ends, num_segments)
        seconds = (time.perf_counter() - began) / len(outer)
        frames = level.decode(paths.nodes[:, ::stride].flatten(0, 1)).unflatten(0, (len(outer), -1))
        metric = geometry.TangentialMetric(level.score, sigma=level.sigma, rho=1e-3)
        bound = (level.sigma**2 * (level.score(ends.b) - level.score(ends.a))).flatten(1).square().sum(1) / 2
        energy = torch.cat([metric.energy(path[None], num_subsamples=2) for path in paths.nodes])
        return {
            "steps": adjacent_distances(frames, distance).double().cpu().numpy(),
            "detail": _detail(frames[:, 1:-1]) / _detail(outer),
            "endpoint_error": (frames[:, [0, -1]] - outer).flatten(1).square().mean(1).double().cpu().numpy(),
            "relative_energy": (energy / bound).double().cpu().numpy(),
            "seconds": np.full(len(outer), seconds),
            "converged": np.ones(len(outer)) if paths.converged is None else paths.converged.double().cpu().numpy(),
            "reason": np.array(paths.reason or [""] * len(outer), dtype="U300"),
            **(fit_faces(frames) if faces else {}),
        }

    with torch.no_grad(), full_precision():  # the ends are the same whatever the method
        inverted = over_points(invert, pairs, size=8, what="ends of paths", **inverting)["points"]
        arrays = over_points(compute, pairs, size=4, what=f"paths by {method}", faces=faces, **key)
    steps = smoothness(arrays["steps"])
    values = {
        "length": arrays["steps"].sum(axis=1),
        "unevenness": np.sqrt(steps.variance),
        "jerkiness": steps.jerkiness,
        **{name: arrays[name] for name in ("detail", "endpoint_error", "relative_energy", "seconds", "converged")},
    }
    if faces:
        values["distance"] = arrays["error"][:, 1:-1].mean(axis=1)
        values["excess"] = excess_variation(arrays["factors"]).mean(axis=1)
        values["straightness"] = straightness(arrays["factors"])
    reasons, counts = np.unique(arrays["reason"][arrays["reason"] != ""], return_counts=True)
    details = {"seconds": {"threads": torch.get_num_threads()}}
    details["converged"] = {"reasons": dict(zip(reasons.tolist(), counts.tolist(), strict=True))}
    shared = {"unit": "pairs", "seed": seed, "protocol": {**key, "images": content_digest(images)}}
    return {n: Measurement.from_units(n, v, details=details.get(n, {}), **shared) for n, v in values.items()}


def _detail(images: Tensor) -> Array:
    """Mean squared difference of neighbouring pixels, over the images (B, F, C, H, W) of each row, (B,)."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return ((across.square().flatten(1).mean(1) + down.square().flatten(1).mean(1)) / 2).double().cpu().numpy()
