r"""Paths between given images, by every method, on the same pairs: are they short, even, sharp and on the manifold?

Two images are inverted to a noise level τ, x₀ → x_τ; a *method* draws a path between the two points, and its nodes are
sampled, x_τ → x₀. The images in between are judged by LPIPS between neighbours, whose sum over a path is its perceptual
length and whose standard deviation its unevenness (PPL and PDV, Saito and Matsubara 2025), and, of faces, by the
renderer that knows them: distance to the manifold and detours of the factors. As blur shortens every perceptual path,
the detail of the images in between is measured beside it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isodiff.datasets.face_factors import estimate_factors
from isodiff.geometry.noise_metrics import TangentialMetric
from isodiff.metrics.factor_paths import excess_variation, straightness
from isodiff.metrics.generator import check_images
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.path_methods import CLOSED_FORM, SOLVED, Ends, Method
from isodiff.metrics.path_steps import describe
from isodiff.metrics.precision import full_precision
from isodiff.metrics.smoothness import adjacent_distances
from isodiff.metrics.store import Arrays, Store, content_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isodiff.diffusion.noise_level import NoiseLevel
    from isodiff.metrics.path_steps import Distance


def interpolation_quality(
    level: NoiseLevel,
    images: Tensor,
    method: str | tuple[str, Method],
    *,
    distance: Distance,
    num_segments: int = 16,
    stride: int = 2,
    refinements: int = 5,
    faces: bool = True,
    pairs_at_once: int = 4,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Draw paths between pairs of images by one method, and judge the images along them.

    Args:
        level: Where the paths are drawn. Its scheduler should not clip, so that the ends come back.
        images: (2P, C, H, W) in [−1, 1], P ≥ 2; pair i is images 2i and 2i + 1.
        method: Name in `CLOSED_FORM` or `SOLVED`, see `path_methods`, or a name with a method of one's own.
        distance: Of neighbouring images, such as LPIPS.
        num_segments: N of the path.
        stride: Every how many nodes an image is sampled; divides N.
        refinements: Of the inversion.
        faces: Whether the images are rendered faces, whose truth is known.
        pairs_at_once: Pairs between two savings.
        seed: With which the images were drawn, for the record; nothing is drawn here.
        store: Where finished pairs are kept; scoped by the caller with the model.

    Returns:
        Means over pairs, by name:

        - ``length``: Σ distance of neighbours (PPL); ``unevenness``: their standard deviation (PDV); ``jerkiness``:
          largest over mean.
        - ``detail``: mean squared difference of neighbouring pixels of the images in between, over that of the ends:
          below 1 for blur.
        - ``endpoint_error``: mean squared difference of the sampled ends and the images.
        - of faces, ``distance``: mean squared re-rendering error of the images in between, ``excess`` and
          ``straightness`` of their factors.
        - ``relative_energy``: tangential energy of the path, ρ = 10⁻³, over the lower bound ½‖ŝ(b) − ŝ(a)‖².
        - ``seconds`` to draw the path (not to invert or to sample), on the machine of the record.
        - ``converged``: share, 1 for a method without a test of convergence; details: the reasons and the iterations.

    Raises:
        ValueError: If images or sizes do not fit, or the method is unknown.

    Note:
        Costs (3 + refinements) · steps evaluations an image to invert, and N/stride + 1 samplings a pair. Compare
        methods and models on the same images: the protocol holds their digest.
    """
    name, draw = (method, (CLOSED_FORM | SOLVED).get(method)) if isinstance(method, str) else method
    if draw is None:
        raise ValueError(f"method must be one of {', '.join([*CLOSED_FORM, *SOLVED])}; got {name!r}")
    images = check_images(images, len(images), name="images")
    if len(images) < 4 or len(images) % 2:
        raise ValueError(f"images must be pairs, at least 2; got {len(images)} images")
    if num_segments < 2 or stride < 1 or num_segments % stride or num_segments // stride < 2:
        raise ValueError(
            f"num_segments must be a multiple of stride, at least twice as large; got {num_segments} and {stride}"
        )
    protocol = {
        "method": name,
        "t": level.t,
        "num_steps": level.num_steps,
        "num_segments": num_segments,
        "stride": stride,
        "refinements": refinements,
        "clip_sample": bool(level.scheduler.config.get("clip_sample", False)),
        "images": content_digest(images.cpu().numpy()),
        **describe({"distance": distance})["distance"],
        **(dataclasses.asdict(draw) if dataclasses.is_dataclass(draw) else {}),
    }

    store, shared = store or Store(), {k: protocol[k] for k in ("t", "num_steps", "refinements", "images")}

    def invert(start: int, stop: int) -> Arrays:
        x_0 = images[2 * start : 2 * stop].to(level.unet.device)
        points = level.invert(x_0, refinements=refinements).latents
        return {"points": points.unflatten(0, (-1, 2)).cpu().numpy()}

    def compute(start: int, stop: int) -> Arrays:
        x_0 = images[2 * start : 2 * stop].to(level.unet.device)
        points = torch.from_numpy(inverted[start:stop]).to(x_0)
        ends = Ends(points[:, 0], points[:, 1], x_0[::2], x_0[1::2])
        began = time.perf_counter()
        paths = draw(level, ends, num_segments)
        seconds = (time.perf_counter() - began) / len(ends.a)
        frames = level.decode(paths.nodes[:, ::stride].flatten(0, 1)).unflatten(0, (len(ends.a), -1))
        outer = torch.stack([ends.image_a, ends.image_b], 1)
        metric = TangentialMetric(level.score, sigma=level.sigma, rho=1e-3)
        with torch.no_grad():
            bound = (level.sigma**2 * (level.score(ends.b) - level.score(ends.a))).flatten(1).square().sum(1) / 2
            energy = torch.cat([metric.energy(path[None], num_subsamples=2) for path in paths.nodes])
        return {
            "steps": adjacent_distances(frames, distance).double().cpu().numpy(),
            "detail": _detail(frames[:, 1:-1]) / _detail(outer),
            "endpoint_error": (frames[:, [0, -1]] - outer).flatten(1).square().mean(1).double().cpu().numpy(),
            "relative_energy": (energy / bound).double().cpu().numpy(),
            "seconds": np.full(len(ends.a), seconds),
            "converged": paths.converged.cpu().numpy().astype(float),
            "iterations": paths.iterations.cpu().numpy().astype(float),
            "reason": np.array(paths.reason, dtype="U300"),
            **(_truth(frames) if faces else {}),
        }

    with torch.no_grad(), full_precision():
        # the ends are the same whatever the method
        inverted = store.chunks(invert, len(images) // 2, size=8, what="ends of paths", version=1, **shared)["points"]
        arrays = store.chunks(
            compute, len(images) // 2, size=pairs_at_once, what=f"paths by {name}", version=1, faces=faces, **protocol
        )
    steps = arrays["steps"]
    values = {
        "length": steps.sum(axis=1),
        "unevenness": steps.std(axis=1),
        "jerkiness": steps.max(axis=1) / steps.mean(axis=1),
        **{key: arrays[key] for key in ("detail", "endpoint_error", "relative_energy", "seconds", "converged")},
    }
    if faces:
        values |= {
            "distance": arrays["error"][:, 1:-1].mean(axis=1),
            "excess": excess_variation(arrays["factors"]).mean(axis=1),
            "straightness": straightness(arrays["factors"]),
        }
    details: dict[str, dict[str, Any]] = {
        "converged": _outcome(arrays),
        "seconds": {"threads": torch.get_num_threads()},
    }
    return {
        key: Measurement.from_units(
            key, column, unit="pairs", seed=seed, protocol=protocol, details=details.get(key, {})
        )
        for key, column in values.items()
    }


def _outcome(arrays: Arrays) -> dict[str, Any]:
    reasons, counts = np.unique(arrays["reason"], return_counts=True)
    return {
        "iterations": arrays["iterations"].tolist(),
        "reasons": {str(reason): int(count) for reason, count in zip(reasons, counts, strict=True) if reason},
    }


def _detail(images: Tensor) -> NDArray[np.float64]:
    """Mean squared difference of neighbouring pixels, over the images (B, F, C, H, W) of each row, (B,)."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return ((across.square().flatten(1).mean(1) + down.square().flatten(1).mean(1)) / 2).double().cpu().numpy()


def _truth(frames: Tensor) -> Arrays:
    fit = estimate_factors(frames.flatten(0, 1))
    rows = tuple(frames.shape[:2])
    return {
        "factors": fit.factors.unflatten(0, rows).cpu().numpy(),
        "error": fit.error.unflatten(0, rows).double().cpu().numpy(),
    }
