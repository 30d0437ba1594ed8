r"""Edits, measured: what directions do to known factors, and what DDIM inversion x₀ → x_T → x̂₀ loses.

A direction d at a latent x is followed to both sides, and z(γ) ∈ [−1, 1]ᴷ are the factors of the image at
γ ∈ {0, ±γ₁, …, ±γ_L} with 0 < γ₁ < … < γ_L. The smaller half of these moves, ⌊L/2⌋ sizes, *chooses*, the larger half
*scores*, so that no error can first choose its factor and then count for it:

    target  j = argmax_k |c_k|,   c = mean_{small γ > 0} (z(γ) − z(−γ)),   and d is turned so that c_j > 0,
    change  Δ_k = mean_{large |γ|} |z_k(γ) − z_k(0)| / 2    (a factor has a range of 2),
    share   Δ_j / Σ_k Δ_k,   spill-over  1 − Δ_j / Σ_k Δ_k.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kurtosis, rankdata
from torch import Tensor

from isodiff.datasets import check_images
from isodiff.diffusion import NoiseSchedule, invert, latent_shape
from isodiff.editing import gamma_traversal, local_basis
from isodiff.geometry import expected_radius, project_to_tangent
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.measure import Arrays, Measurement, content_digest, finite, full_precision, over_points, over_units
from isodiff.metrics.path_length import Distance, describe, measure_all
from isodiff.metrics.truth import fit_faces, means

Array = NDArray[np.float64]
TOLERANCE = 0.05  # of monotonicity, in factors: what errors of the factors explain
BASIS_TOLERANCE = 1e-3  # of `local_basis`
TOTAL = 1.0  # summed change, in ranges of a factor, at which spill-over is compared, over all moves, choosing ones too


class Effects(NamedTuple):
    """Effects of moves along one direction at each of n latents, (n,) each; changes in ranges of a factor."""

    target: NDArray[np.intp]  # index of the target factor
    sign: Array  # ±1: the direction times this makes its target rise
    target_change: Array
    other_change: Array  # sum of all other factors
    share: Array  # of the target in all change, 0 to 1; the rest is spill-over
    monotone: NDArray[np.bool_]  # over the scoring moves and 0 the target rises, and never falls, by the tolerance
    correlation: Array  # Spearman's, of γ and the target over the same images; 0 where the target is constant
    share_at_total: Array  # the share where all change is `TOTAL`, linear between moves of all sizes, or at the nearest
    reaches: NDArray[np.bool_]  # whether `TOTAL` lies between these


def effects(factors: ArrayLike, gammas: ArrayLike) -> Effects:
    """Return the effects of moves along one direction at each of n latents.

    Factors (n, G, K) in [−1, 1] along the moves γ, (G,) in any order: 0 and the same two or more sizes to both sides.
    """
    gamma, z = _check_gammas(gammas), finite(factors, "factors", 1, 1, 1)
    if z.shape[1] != gamma.size:
        raise ValueError(f"factors must have shape (n, {gamma.size}, K), one row a move; got {z.shape}")
    z = z[:, np.argsort(np.asarray(gammas, dtype=float))]
    levels, small = len(gamma) // 2, len(gamma) // 4
    up, down, middle = z[:, levels + 1 :], z[:, levels - 1 :: -1], z[:, [levels]]  # both outwards from γ = 0
    large = np.concatenate([up[:, small:], down[:, small:]], axis=1)
    change = np.abs(large - middle).mean(axis=1) / 2  # a factor has a range of 2
    total = change.sum(axis=1)
    if (still := total == 0).any():
        raise ValueError(f"the moves must change a factor; those of latent {int(still.argmax())} change none")
    chosen, rows = (up - down)[:, :small].mean(axis=1), np.arange(len(z))
    target = np.abs(chosen).argmax(axis=1)
    sign = np.where(chosen[rows, target] < 0, -1.0, 1.0)
    offset = np.abs(np.arange(-levels, levels + 1))
    along = sign[:, None] * z[rows, :, target][:, (offset == 0) | (offset > small)]
    fall = (np.maximum.accumulate(along, axis=1) - along).max(axis=1)
    ranks = rankdata(along, axis=1) - (along.shape[1] + 1) / 2
    position = np.arange(along.shape[1]) - (along.shape[1] - 1) / 2
    norm = np.sqrt(np.square(ranks).sum(axis=1) * np.square(position).sum())
    correlation = np.divide(ranks @ position, norm, out=np.zeros(len(z)), where=norm > 0)
    monotone = (fall <= TOLERANCE) & (along[:, -1] - along[:, 0] > TOLERANCE)
    of_target = change[rows, target]
    by_size = (np.abs(up - middle) + np.abs(down - middle)) / 4  # (n, sizes, K)
    totals = np.maximum(by_size.sum(axis=2), 1e-12)
    shares = by_size[rows, :, target] / totals
    order = np.argsort(totals, axis=1)
    totals, shares = (np.take_along_axis(part, order, axis=1) for part in (totals, shares))
    at_total = np.array([np.interp(TOTAL, *pair) for pair in zip(totals, shares, strict=True)])
    reaches = (totals[:, 0] <= TOTAL) & (totals[:, -1] >= TOTAL)
    return Effects(
        target, sign, of_target, total - of_target, of_target / total, monotone, correlation, at_total, reaches
    )


def _check_gammas(gammas: ArrayLike) -> Array:
    """Return sizes of moves in ascending order if there are 0 and two or more to both sides."""
    gamma = np.sort(np.asarray(gammas, dtype=float))
    fits = gamma.ndim == 1 and gamma.size >= 5 and gamma.size % 2 == 1 and np.isfinite(gamma).all()
    if not fits or not np.allclose(gamma, -gamma[::-1], rtol=1e-6, atol=0) or (np.diff(gamma) <= 0).any():
        raise ValueError(f"gammas must hold 0 and the same two or more sizes to both sides; got {gammas}")
    return gamma


def direction_effects(
    generate: Generator,
    unet: UNet2DModel,
    *,
    k: int,
    gammas: Sequence[float],
    num_latents: int,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure what moves along the k leading directions of the bottleneck change in generated faces.

    At each x_T of the stream ``"directions"`` these are the leading right singular vectors of ∂h/∂x on the sphere, with
    h at the sampler's first step. `gammas` are arc lengths in units of x, as in `effects`.

    Returns means over latents and directions of what `Effects` holds and ``move_error``, the mean squared re-rendering
    error of the moved faces. The details of each hold it ``by_direction`` and for the ``control``, a random tangent
    direction at every latent, whose share is the one to beat. Compare models at equal summed change.
    """
    if num_latents < 2:
        raise ValueError(f"num_latents must be at least 2; got {num_latents}")
    gamma, shape = _check_gammas(gammas), latent_shape(unet)
    t = NoiseSchedule.of(generate.scheduler).steps(generate.num_steps)[0][0]
    protocol = {"k": k, "gammas": gamma.tolist(), "basis_tolerance": BASIS_TOLERANCE}
    protocol |= {"num_steps": generate.num_steps, "t": t}

    def compute(start: int, stop: int) -> Arrays:
        draw = partial(draw_latents, shape, start, stop, seed=seed)
        x_T = draw(stream="directions").to(unet.device)
        control = project_to_tangent(draw(stream="control directions").to(unet.device), x_T)
        control = control / control.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        leading = local_basis(unet, x_T, t, k, tolerance=BASIS_TOLERANCE).directions
        directions = torch.cat([leading, control[:, None]], dim=1)
        starts = x_T[:, None].expand_as(directions).flatten(0, 1)
        frames = gamma_traversal(generate, starts, directions.flatten(0, 1), gamma, batch_size=batch_size)
        if (still := (frames - frames[:, [gamma.size // 2]]).flatten(1).abs().amax(dim=1) < 1e-5).any():
            number = start + int(still.int().argmax()) // (k + 1)
            raise ValueError(f"moves must change the image, at latent {number} they do not; got gammas {gammas}")
        return {name: part.reshape(stop - start, k + 1, *part.shape[1:]) for name, part in fit_faces(frames).items()}

    rows = max(1, batch_size // ((k + 1) * gamma.size))
    with torch.no_grad(), full_precision():
        arrays = over_units(compute, num_latents, size=rows, what="direction effects", seed=seed, **protocol)
    found = [effects(z, gamma) for z in np.moveaxis(arrays["factors"], 1, 0)]
    fields = {field: np.stack([getattr(effect, field) for effect in found], axis=1) for field in Effects._fields}
    values = {
        "target_share": fields["share"],
        "spill_over": 1 - fields["share"],
        **{name: fields[name] for name in ("target_change", "other_change")},
        "monotone_share": fields["monotone"].astype(float),
        "rank_correlation": fields["correlation"],
        "spill_over_at_total": 1 - fields["share_at_total"],
        "reaches_total": fields["reaches"].astype(float),
        "move_error": arrays["error"].mean(axis=2),
    }
    shared = {"unit": "latents", "seed": seed, "protocol": {**protocol, "tolerance": TOLERANCE}}
    details = {name: {"by_direction": means(v[:, :k]), "control": means(v[:, k:])} for name, v in values.items()}
    leading = {name: v[:, :k].mean(axis=1) for name, v in values.items()}
    return {name: Measurement.from_units(name, v, details=details[name], **shared) for name, v in leading.items()}


def neighbour_correlation(latents: Tensor) -> Array:
    """Return the lag-1 autocorrelation ``mean(x_{i,j} x_{i,j+1}) / mean(x²)``, and down, of latents (B, C, H, W)."""
    x = finite(latents, "latents", 1, 1, 2, 2)
    power = np.square(x).mean(axis=(1, 2, 3))
    if (power == 0).any():
        raise ValueError(f"latents must not be zero; number {int(power.argmin())} is")
    across = (x[..., :, 1:] * x[..., :, :-1]).mean(axis=(1, 2, 3))
    down = (x[..., 1:, :] * x[..., :-1, :]).mean(axis=(1, 2, 3))
    return (across + down) / 2 / power


def excess_kurtosis(latents: Tensor) -> Array:
    """Return the excess kurtosis of the numbers of each latent (B, C, H, W), (B,); 0 for noise, and unbiased there."""
    return kurtosis(finite(latents, "latents", 1, 1, 1, 1).reshape(len(latents), -1), axis=1, bias=False)


def norm_ratio(latents: Tensor) -> Array:
    """Return the norm of each latent (B, C, H, W) over that of noise, ``‖x‖ / E‖N(0, Iₙ)‖``, (B,)."""
    x = finite(latents, "latents", 1, 1, 1, 1)
    return np.linalg.norm(x.reshape(len(x), -1), axis=1) / expected_radius(x[0].size)


def inversion_error(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    images: Tensor,
    num_steps: int,
    *,
    distances: Mapping[str, Distance],
    refinements: int = 0,
    batch_size: int = 16,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Invert n ≥ 2 images of the model's size in [−1, 1], sample them again, and measure both ends.

    Returns means over images: ``inversion_mse``, of reconstructions clamped to [−1, 1], ``inversion_<name>`` for each
    distance, and of x_T ``latent_norm_ratio``, ``latent_correlation`` and ``latent_kurtosis``, whose details give the
    mean and the standard deviation of one latent that is noise. `seed` is that of the images, whose digest the protocol
    holds. A sampler that clips its estimates of x₀ adds an error that no inversion can remove.
    """
    shape = latent_shape(unet)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) < 2:
        raise ValueError(f"images must have shape (n, {', '.join(map(str, shape))}), n ≥ 2; got {tuple(images.shape)}")
    images = check_images(images, len(images), name="images")
    clips = NoiseSchedule.of(scheduler).clip is not None
    key = {"num_steps": num_steps, "refinements": refinements, "clip_sample": clips}
    described = describe(distances)

    def compute(chunk: Tensor, start: int) -> Arrays:
        x_0 = chunk.to(unet.device)
        inversion = invert(unet, scheduler, x_0, num_steps, refinements=refinements)
        back = inversion.reconstruction.clamp(-1, 1)
        return {
            "mse": (back - x_0).flatten(1).square().mean(dim=1).double().cpu().numpy(),
            "norm_ratio": norm_ratio(inversion.latents),
            "correlation": neighbour_correlation(inversion.latents),
            "kurtosis": excess_kurtosis(inversion.latents),
            **measure_all(distances, x_0, back),
        }

    with torch.no_grad(), full_precision():
        arrays = over_points(compute, images, size=batch_size, what="inversion", version=2, distances=described, **key)
    n, protocol = images[0].numel(), {**key, "images": content_digest(images)}
    root = (2 * n) ** -0.5
    noise = {"norm_ratio": (1.0, root), "correlation": (0.0, root), "kurtosis": (0.0, (24 / n) ** 0.5)}

    def result(name: str, values: Array, own: Mapping[str, Any] = protocol, **details: object) -> Measurement:
        return Measurement.from_units(name, values, unit="images", seed=seed, protocol=own, details=details)

    measured = [result("inversion_mse", arrays["mse"])]
    for name, own in described.items():
        measured.append(result(f"inversion_{name}", arrays[f"distance {name}"], own | protocol))
    for name, (mean, deviation) in noise.items():
        of_noise = {"mean": mean, "standard_deviation": deviation}
        measured.append(result(f"latent_{name}", arrays[name], noise=of_noise))
    return {measurement.name: measurement for measurement in measured}
