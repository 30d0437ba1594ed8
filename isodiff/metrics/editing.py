r"""Walks through latent space, measured; see `isodiff.metrics.smoothness` for how evenly a path changes.

`direction_effects` follows the leading directions of the bottleneck at x_T to both sides and reads the factors of the
faces on the way: what does a direction change, and what else? The arithmetic is in `isodiff.metrics.effects`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isodiff.datasets.face_factors import FactorEstimate, estimate_factors
from isodiff.datasets.faces import FACTORS, render
from isodiff.diffusion.process import check_steps, ddim_trajectory
from isodiff.editing import gamma_traversal, local_basis
from isodiff.geometry import project_to_tangent
from isodiff.metrics.effects import Effects, check_gammas, effects
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.intervals import bootstrap_interval
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.precision import full_precision
from isodiff.metrics.smoothness import Smoothness, adjacent_distances, path_smoothness, smoothness
from isodiff.metrics.store import Arrays, Store

__all__ = [
    "Effects",
    "Smoothness",
    "adjacent_distances",
    "direction_effects",
    "effects",
    "path_smoothness",
    "smoothness",
]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import UNet2DModel
    from numpy.typing import NDArray

    from isodiff.metrics.generator import Generate


def direction_effects(
    generate: Generate,
    unet: UNet2DModel,
    *,
    k: int,
    gammas: Sequence[float],
    num_latents: int,
    t: int | None = None,
    tolerance: float = 0.05,
    basis_tolerance: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    store: Store | None = None,
) -> dict[str, Measurement]:
    """Measure what moves along the leading directions of the bottleneck change in generated faces.

    At each x_T the directions are the leading right singular vectors of ∂h/∂x on the sphere. They differ from latent to
    latent and have no sign, so each gets its own target and sign from small moves; large moves say how much of the
    change the target takes (see `isodiff.metrics.effects`).

    Args:
        generate: Map from latents to faces (B, 3, R, R) in [−1, 1].
        unet: The model whose bottleneck gives the directions.
        k: Number of directions.
        gammas: Lengths of the moves along the great circle, in units of x: 0 and two or more to both sides.
        num_latents: Number of latents, at least 2, from the stream ``"directions"``.
        t: Step at which the bottleneck sees x_T; by default the first step of `generate`, if that is a `Generator`.
        tolerance: Of monotonicity, in factors (range 2).
        basis_tolerance: Of the directions, see `isodiff.editing.local_basis`.
        batch_size: Images at once, as far as the moves at one latent allow.
        seed: Seed of latents and control directions.
        store: Where finished latents are kept; scoped by the caller with the model.

    Returns:
        Means over latents of means over the k directions:

        - ``target_share`` and ``spill_over``: shares of the target and of all other factors in the change. Details:
          ``largest_share``, which bounds the share from above; ``shared_target``, the share if all latents must agree
          on the target of the i-th direction; ``targets``, how often each factor is one; ``noise``, 1/K, what errors of
          equal size would give.
        - ``target_change`` and ``other_change``: the changes themselves, in ranges of a factor.
        - ``monotone_share``: of moves on which the target rises throughout. Details: ``fit_noise``, root mean square
          error of each factor when a face is drawn with as much white noise as the fit leaves over: the scale below
          which a tolerance means nothing.
        - ``rank_correlation``: Spearman's, of γ and target.
        - ``move_error``: mean squared re-rendering error of the moved faces, how far off the manifold they are.

        The details of each hold it ``by_direction`` and for the ``control``, a random tangent direction at every
        latent. Those of ``target_share`` hold the singular values and the ratios σᵢ/σᵢ₊₁ as well.

    Raises:
        ValueError: If a size, the step or the moves are out of range, `generate` does not return faces or returns the
            same one whatever the move, or t is missing for a generator that is no `Generator`.
        RuntimeError: If the directions do not settle.

    Note:
        Where σᵢ/σᵢ₊₁ is close to 1, as isometry aims at, the i-th direction is any vector of a whole subspace, and
        spill-over is expected whatever the model knows of factors. Any direction moves some factor most: the share to
        beat is the control's, well above 1/K. Equal γ is not equal change: a longer move takes factors to the ends of
        their range, which evens out the changes and lowers the share, and leaves the manifold. Compare models at equal
        summed change, or say that it differs. Cost: (k + 1) · len(gammas) images and fits a latent, and the
        singular vectors.
    """
    if num_latents < 2 or batch_size < 1:
        raise ValueError(f"num_latents must be at least 2 and batch_size at least 1; got {num_latents}, {batch_size}")
    gamma = check_gammas(gammas)
    size = unet.config.sample_size
    shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    t = _first_step(generate, shape) if t is None else t
    protocol = {"t": t, "k": k, "gammas": gamma.tolist(), "basis_tolerance": basis_tolerance}
    if isinstance(generate, Generator):
        check_steps(generate.scheduler, t)
        protocol["num_steps"] = generate.num_steps

    def compute(start: int, stop: int) -> Arrays:
        x_T = draw_latents(shape, start, stop, seed=seed, stream="directions").to(unet.device)
        control = draw_latents(shape, start, stop, seed=seed, stream="control directions").to(unet.device)
        control = project_to_tangent(control, x_T)
        control = control / control.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        basis = local_basis(unet, x_T, t, k, tolerance=basis_tolerance)
        directions = torch.cat([basis.directions, control[:, None]], dim=1)
        starts = x_T[:, None].expand_as(directions).flatten(0, 1)
        frames = gamma_traversal(generate, starts, directions.flatten(0, 1), gamma, batch_size=batch_size)
        if (still := (frames - frames[:, [gamma.size // 2]]).flatten(1).abs().amax(dim=1) < 1e-5).any():
            number = start + int(still.int().argmax()) // (k + 1)
            raise ValueError(f"moves must change the image, at latent {number} they do not; got gammas {gammas}")
        fit = estimate_factors(frames.flatten(0, 1))
        rows = (stop - start, k + 1, gamma.size)
        at_x = (
            fit.factors.unflatten(0, rows)[:, 0, gamma.size // 2],
            fit.error.unflatten(0, rows)[:, 0, gamma.size // 2],
        )
        return {
            "factors": fit.factors.unflatten(0, rows).cpu().numpy(),
            "error": fit.error.unflatten(0, rows).cpu().numpy(),
            "fit_noise": _fit_noise(FactorEstimate(*at_x), frames.shape[-1], start, seed),
            "sigma": basis.sigma.cpu().numpy(),
        }

    rows = max(1, batch_size // ((k + 1) * gamma.size))
    with torch.no_grad(), full_precision():
        arrays = (store or Store()).chunks(
            compute, num_latents, size=rows, what="direction effects", version=1, seed=seed, **protocol
        )
    found = [effects(z, gamma, tolerance=tolerance) for z in np.moveaxis(arrays["factors"], 1, 0)]
    shared = [effects(z, gamma, target="shared").share for z in np.moveaxis(arrays["factors"], 1, 0)]
    protocol["tolerance"] = tolerance
    values = _by_direction(found) | {"move_error": arrays["error"].mean(axis=2)}
    details: dict[str, dict[str, Any]] = {name: {} for name in values}
    details["target_share"] = {
        "noise": 1 / len(FACTORS),
        "largest_share": _means(np.stack([effect.largest_share for effect in found[:k]], axis=1)),
        "shared_target": _means(np.stack(shared[:k], axis=1)),
        "factors": list(FACTORS),
        "targets": [np.bincount(effect.target, minlength=len(FACTORS)).tolist() for effect in found[:k]],
        "sigma": _means(arrays["sigma"]),
        "sigma_ratio": _means(arrays["sigma"][:, :-1] / arrays["sigma"][:, 1:]),
    }
    details["monotone_share"]["fit_noise"] = np.sqrt(np.square(arrays["fit_noise"]).mean(axis=0)).tolist()
    return {
        name: Measurement.from_units(
            name,
            columns[:, :k].mean(axis=1),
            unit="latents",
            seed=seed,
            protocol=protocol,
            details={"by_direction": _means(columns[:, :k]), "control": _means(columns[:, k:]), **details[name]},
        )
        for name, columns in values.items()
    }


def _by_direction(found: Sequence[Effects]) -> dict[str, NDArray[np.float64]]:
    """One number a latent and direction, (n, k + 1), for each measurement."""
    fields = {
        "target_share": "share",
        "spill_over": "spill_over",
        "target_change": "target_change",
        "other_change": "other_change",
        "monotone_share": "monotone",
        "rank_correlation": "correlation",
    }
    return {
        name: np.stack([getattr(effect, field) for effect in found], axis=1).astype(float)
        for name, field in fields.items()
    }


def _fit_noise(fit: FactorEstimate, resolution: int, start: int, seed: int) -> NDArray[np.floating]:
    """Errors (B, K) of the factors of faces drawn with as much white noise as the fit left over."""
    faces = render(fit.factors, resolution)
    noise = draw_latents(tuple(faces.shape[1:]), start, start + len(faces), seed=seed, stream="fit noise").to(faces)
    noisy = faces + fit.error.sqrt().view(-1, 1, 1, 1) * noise
    return (estimate_factors(noisy).factors - fit.factors).cpu().numpy()


def _first_step(generate: Generate, shape: tuple[int, ...]) -> int:
    if not isinstance(generate, Generator):
        raise ValueError(f"t must be given for a generator that is no Generator; got t = None and {generate!r}")
    x_T = torch.zeros(1, *shape, device=generate.unet.device)
    with torch.no_grad():
        return int(next(ddim_trajectory(generate.unet, generate.scheduler, x_T, generate.num_steps))[0])


def _means(columns: NDArray[np.floating]) -> dict[str, list]:
    """Means of columns over rows, with their intervals."""
    intervals = [list(bootstrap_interval(column)) for column in columns.T]
    return {"value": columns.mean(axis=0).tolist(), "interval": intervals}
