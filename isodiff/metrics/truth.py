r"""Generated faces against the truth: do factors move straight along a path, and do a model's directions fit a face?

The renderer is fitted to every frame of a path: z₀, …, z_N ∈ [−1, 1]ᴷ are its factors, and what the fit leaves over is
its distance to the manifold of faces. The manifold's tangent space at a face x = render(z) is spanned by the columns of
T = ∂render/∂z. With Q an orthonormal basis of it and uᵢ the k leading directions of a model,

    alignment = 1/k Σᵢ ‖Qᵀuᵢ‖² = 1/k Σⱼ cos² θⱼ

over the principal angles θⱼ: 1 if every direction is a possible change of the face, 10/n for random ones of ℝⁿ.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import subspace_angles
from torch import Tensor

from isodiff.datasets import check_images
from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import FACTORS, render, sample_factors
from isodiff.diffusion import NoiseSchedule, ddim_sample, encode, latent_shape
from isodiff.editing import Path, traverse
from isodiff.geometry import Linearisation, Map, project_to_tangent, singular_vectors, slerp
from isodiff.metrics.generator import Generate, draw_latents, number_generator
from isodiff.metrics.measure import (
    Arrays,
    Measurement,
    bootstrap_interval,
    finite,
    leave_groups_out,
    means,
    over_points,
    over_units,
)

Floats = NDArray[np.floating]
TOLERANCE = 3e-3  # largest residual of singular directions over σ₁; at 0.03 the last of ten can still be wrong


def excess_variation(factors: ArrayLike) -> Floats:
    """Return how far factors travel beyond their ends, ``Σⱼ |zⱼ₊₁ − zⱼ| − |z_N − z₀|``, (P, N + 1, K) → (P, K)."""
    z = finite(factors, "factors", 1, 2, 1)
    return np.maximum(np.abs(np.diff(z, axis=1)).sum(axis=1) - np.abs(z[:, -1] - z[:, 0]), 0)


def straightness(factors: ArrayLike) -> Floats:
    """Return chord over length, ``‖z_N − z₀‖ / Σⱼ ‖zⱼ₊₁ − zⱼ‖``, (P, N + 1, K) → (P,): 1 is straight, at any speed."""
    z = finite(factors, "factors", 1, 2, 1)
    length = np.linalg.norm(np.diff(z, axis=1), axis=2).sum(axis=1)
    if (length == 0).any():
        raise ValueError(f"path {int(length.argmin())} has length zero in factor space; expected paths that move")
    return np.minimum(np.linalg.norm(z[:, -1] - z[:, 0], axis=1) / length, 1)


def factor_path_length(factors: ArrayLike) -> Floats:
    """Return the mean squared speed of each path, ``N Σⱼ ‖zⱼ₊₁ − zⱼ‖²``, (P, N + 1, K) → (P,): ≥ its length squared."""
    steps = np.diff(finite(factors, "factors", 1, 2, 1), axis=1)
    return steps.shape[1] * np.square(steps).sum(axis=(1, 2))


def path_truth(
    generate: Generate,
    shape: tuple[int, ...],
    *,
    num_pairs: int,
    num_points: int,
    interpolate: Path = slerp,
    floor: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Measurement]:
    """Measure paths of generated faces, (B, *shape) → (B, 3, R, R) in [−1, 1], by their factors of range [−1, 1].

    Path i runs from latent 2i to latent 2i + 1 of the stream ``"paths"`` in `num_points` ≥ 3 frames, by a named
    function of start, end and position. Means over pairs: ``factor_excess`` (details: ``by_points``, seen at fewer),
    ``factor_straightness``, ``factor_path_length`` and ``manifold_distance``, the mean squared re-rendering error of a
    frame. Details of each: its value on the ``floor``, the straight lines between the factors of the ends, with white
    noise of the path's own mean re-rendering error. Compare models at equal distance.
    """
    check_walks(num_pairs, num_points, interpolate, "interpolate")
    key = {"num_points": num_points, "interpolate": interpolate.__name__, **(protocol or {})}

    def compute(start: int, stop: int) -> Arrays:
        ends = draw_latents(shape, 2 * start, 2 * stop, seed=seed, stream="paths")
        frames = traverse(generate, ends[::2], ends[1::2], num_points, path=interpolate, batch_size=batch_size)
        if frames.shape[2] != 3 or frames.shape[3] != frames.shape[4]:
            raise ValueError(f"faces are square with 3 channels; got images of shape {tuple(frames.shape[2:])}")
        if (same := (frames[:, 0] - frames[:, -1]).flatten(1).abs().amax(dim=1) < 1e-5).any():
            raise ValueError(f"path {start + int(same.int().argmax())} begins and ends in the same image")
        arrays = fit_faces(frames)
        if floor:
            straight = _straight_paths(arrays, frames.shape[-1], start, seed).to(frames.device)
            arrays |= {f"floor_{name}": array for name, array in fit_faces(straight).items()}
        return arrays

    size = max(1, batch_size // num_points)
    arrays = over_units(compute, num_pairs, size=size, what="path truth", floor=floor, seed=seed, **key)

    def summaries(kind: str) -> dict[str, Floats]:
        factors = arrays[f"{kind}factors"]
        return {
            "factor_excess": excess_variation(factors).mean(axis=1),
            "factor_straightness": straightness(factors),
            "factor_path_length": factor_path_length(factors),
            "manifold_distance": arrays[f"{kind}error"].mean(axis=1),
        }

    units = summaries("")
    details: dict[str, dict[str, Any]] = {name: {} for name in units}
    for name, values in summaries("floor_").items() if floor else ():
        details[name]["floor"] = {"value": float(values.mean()), "interval": list(bootstrap_interval(values))}
    strides = [stride for stride in range(1, (num_points - 1) // 2 + 1) if (num_points - 1) % stride == 0]
    details["factor_excess"]["by_points"] = {  # the same paths seen at every second frame, every third, …
        "num_points": [(num_points - 1) // stride + 1 for stride in strides],
        "value": [float(excess_variation(arrays["factors"][:, ::stride]).mean()) for stride in strides],
    }
    shared = {"unit": "pairs", "seed": seed, "protocol": key}
    return {n: Measurement.from_units(n, values, details=details[n], **shared) for n, values in units.items()}


def check_walks(num_pairs: int, num_points: int, path: Path, name: str) -> None:
    """Refuse fewer than two pairs of three points, and a path without a name for the protocol."""
    if num_pairs < 2 or num_points < 3:
        raise ValueError(f"num_pairs must be at least 2 and num_points at least 3; got {num_pairs} and {num_points}")
    if getattr(path, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(f"{name} must be a named function, as its name is in the protocol; got {path!r}")


def fit_faces(frames: Tensor) -> Arrays:
    """Return the factors (P, N, K) and re-rendering errors (P, N) of frames (P, N, 3, R, R), as arrays."""
    fit = estimate_factors(frames.flatten(0, 1))
    return {name: part.unflatten(0, frames.shape[:2]).cpu().numpy() for name, part in fit._asdict().items()}


def _straight_paths(fitted: Arrays, resolution: int, start: int, seed: int) -> Tensor:
    """Frames (P, N + 1, 3, R, R) of straight lines between the same ends, with as much white noise as was left over."""
    factors = torch.from_numpy(fitted["factors"])
    weights = torch.linspace(0, 1, factors.shape[1]).view(1, -1, 1)
    lines = (1 - weights) * factors[:, :1] + weights * factors[:, -1:]
    frames = render(lines.flatten(0, 1), resolution).unflatten(0, lines.shape[:2])
    for row, error in enumerate(fitted["error"]):
        noise = torch.randn(frames[row].shape, generator=number_generator(seed, "path floor", start + row))
        frames[row] += float(error.mean()) ** 0.5 * noise
    return frames


def factor_spread(factors: ArrayLike) -> Floats:
    """Return the standard deviation of each factor over n ≥ 2 faces, (n, K) → (K,), over that of the data, 1/√3."""
    return finite(factors, "factors", 2, 1).std(axis=0, ddof=1) * 3**0.5


def diversity(images: np.ndarray, *, seed: int = 0, batch_size: int = 64) -> Measurement:
    """Measure the mean `factor_spread` of generated faces, uint8 (n, 3, R, R): 1 for the data, less for fewer kinds."""

    def compute(faces: np.ndarray, start: int) -> Arrays:
        return {"factors": fit_faces(torch.from_numpy(faces).float()[None] / 127.5 - 1)["factors"][0]}

    factors = over_points(compute, images, size=batch_size, what="factors of images")["factors"]
    value, replicates = leave_groups_out(lambda z: float(factor_spread(z).mean()), factors)
    details = {"by_factor": dict(zip(FACTORS, factor_spread(factors).round(4).tolist(), strict=True))}
    fields = {"n": len(images), "unit": "images", "seed": seed, "protocol": {}, "details": details}
    return Measurement.from_jackknife("factor_spread", value, replicates, **fields)


def principal_angles(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return the angles between spans of columns, (…, n, p), (…, n, q), ascending radians (Björck and Golub 1973)."""
    a, b = _unit_columns(a), _unit_columns(b)
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"both spans must lie in one space; got shapes {a.shape} and {b.shape}")
    return np.vectorize(subspace_angles, signature="(n,p),(n,q)->(k)")(a, b)[..., ::-1]


def _unit_columns(columns: ArrayLike) -> Floats:
    given, matrix = np.asarray(columns), np.array(columns, dtype=float)
    if matrix.ndim < 2 or not 1 <= matrix.shape[-1] <= matrix.shape[-2]:
        raise ValueError(f"expected (…, n, p) with 1 ≤ p ≤ n columns; got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("columns must be finite; got NaN or infinite values")
    length = np.linalg.norm(matrix, axis=-2, keepdims=True)
    matrix = matrix / np.where(length > 0, length, 1)
    precision = np.finfo(given.dtype if given.dtype.kind == "f" else float).eps
    if (np.linalg.matrix_rank(matrix, rtol=precision * matrix.shape[-2]) < matrix.shape[-1]).any():
        raise ValueError(f"the {matrix.shape[-1]} columns must be linearly independent")
    return matrix


def tangent_space(factors: Tensor, resolution: int) -> Tensor:
    """Return the columns ∂render/∂z_k that span the manifold's tangent space, (B, 10) → (B, 3R², 10), without graph."""
    with torch.no_grad():
        at_z = Linearisation(partial(render, resolution=resolution), factors)
        directions = torch.eye(len(FACTORS), dtype=factors.dtype, device=factors.device)
        return torch.stack([at_z.jvp(row.expand_as(factors)).flatten(1) for row in directions], dim=2)


def encoder_alignment(
    f: Map,
    scheduler: SchedulerMixin,
    t: int,
    resolution: int,
    *,
    num_faces: int,
    k: int = len(FACTORS),
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Compare what a map such as X_t → H sees most in noisy faces, √ᾱ_t render(z) + √(1−ᾱ_t) ε, with what can change.

    The directions are the k leading right singular vectors of ∂f/∂x_t; they and the faces' tangent space are taken
    within the tangent space at x_t of the sphere through it. Details: ``chance``, mean principal ``angles`` in degrees,
    mean ``energy`` ‖Qᵀuᵢ‖² of each direction and mean ``sigma``.
    """
    schedule = NoiseSchedule.of(scheduler)
    schedule.check_steps(t)

    def compute(start: int, stop: int) -> Arrays:
        draws = [number_generator(seed, "tangent faces", index) for index in range(start, stop)]
        factors = torch.cat([sample_factors(1, generator=draw) for draw in draws])
        faces = render(factors, resolution)
        noise = draw_latents(faces.shape[1:], start, stop, seed=seed, stream="tangent noise")
        x_t = schedule.add_noise(faces, noise, t).to(device)
        sigma, right = singular_vectors(f, x_t, k, tangent=True, tolerance=TOLERANCE, block_size=min(k, 4))
        columns, at_x = tangent_space(factors.double(), resolution), x_t.flatten(1).double().cpu()
        true = torch.stack([project_to_tangent(column, at_x) for column in columns.unbind(2)], dim=2)
        return _compare(right.flatten(2).mT, true, sigma, true.shape[1] - 1)

    key = {"t": t, "k": k, "tolerance": TOLERANCE, **(protocol or {})}
    return _alignment("encoder_alignment", compute, num_faces, "faces", batch_size, seed, key)


def decoder_alignment(
    f: Map,
    shape: tuple[int, ...],
    *,
    num_latents: int,
    k: int = len(FACTORS),
    batch_size: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> Measurement:
    """Compare what latents (B, *shape) change most in faces f(x_T), (B, 3, R, R), with what can change in a face.

    As `encoder_alignment`, with left singular vectors of ∂f/∂x_T and the tangent space of the fitted face.
    """

    def compute(start: int, stop: int) -> Arrays:
        x_T = draw_latents(shape, start, stop, seed=seed, stream="tangent").to(device)
        sigma, right = singular_vectors(f, x_T, k, tangent=True, tolerance=TOLERANCE, block_size=min(k, 4))
        with torch.no_grad():
            at_x = Linearisation(f, x_T)
            left = torch.stack([at_x.jvp(v).flatten(1) for v in right.unbind(1)], dim=2)
        faces = check_images(at_x.value.clamp(-1, 1), stop - start, name="f")
        fit = estimate_factors(faces)
        true = tangent_space(fit.factors.double(), faces.shape[-1])
        return _compare(left, true, sigma, left.shape[1]) | {"error": fit.error.cpu().numpy()}

    key = {"k": k, "tolerance": TOLERANCE, **(protocol or {})}
    return _alignment("decoder_alignment", compute, num_latents, "latents", batch_size, seed, key)


def tangent_alignment(
    unet: UNet2DModel, scheduler: SchedulerMixin, *, num_latents: int, t: int, num_steps: int, **options: object
) -> dict[str, Measurement]:
    """Measure both ends of a model of faces: `decoder_alignment` of `num_steps` of DDIM, `encoder_alignment` at t."""
    if (shape := latent_shape(unet))[0] != 3 or shape[1] != shape[2]:
        raise ValueError(f"tangent spaces are known of faces only, (3, R, R); this model makes images {shape}")
    options |= {"batch_size": 4, "device": unet.device}
    sampler, encoder = partial(ddim_sample, unet, scheduler, num_steps=num_steps), partial(encode, unet, t=t)
    decoded = decoder_alignment(sampler, shape, num_latents=num_latents, protocol={"num_steps": num_steps}, **options)
    encoded = encoder_alignment(encoder, scheduler, t, shape[1], num_faces=num_latents, **options)
    return {"decoder_alignment": decoded, "encoder_alignment": encoded}


def _compare(directions: Tensor, true: Tensor, sigma: Tensor, dimension: int) -> Arrays:
    """Angles, and energies in the true space (B, n, 10), of directions (B, n, k), leading ones first."""
    model, space = directions.double().cpu().numpy(), true.cpu().numpy()
    basis = np.linalg.qr(space / np.linalg.norm(space, axis=1, keepdims=True))[0]
    unit = model / np.linalg.norm(model, axis=1, keepdims=True)
    return {
        "angles": np.rad2deg(principal_angles(model, space)),
        "energy": np.square(np.swapaxes(basis, 1, 2) @ unit).sum(axis=1),
        "sigma": sigma.cpu().numpy(),
        "dimension": np.full(len(model), dimension),
    }


def _alignment(
    name: str, compute: Callable[[int, int], Arrays], count: int, unit: str, size: int, seed: int, key: dict[str, Any]
) -> Measurement:
    if count < 2:
        raise ValueError(f"at least 2 {unit} are needed; got {count}")
    arrays = over_units(compute, count, size=size, what=name, seed=seed, **key)
    details = {field: means(arrays[field]) for field in ("angles", "energy", "sigma")}
    details["chance"] = len(FACTORS) / int(arrays["dimension"][0])
    details |= {"error": float(arrays["error"].mean())} if "error" in arrays else {}
    shared = {"unit": unit, "seed": seed, "protocol": key, "details": details}
    return Measurement.from_units(name, arrays["energy"].mean(axis=1), **shared)
