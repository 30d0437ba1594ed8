r"""How isometric a map is: condition number, variation and anisotropy of its Jacobian, over points.

With J the Jacobian at one point, G = JᵀJ is the metric that the map pulls back, σᵢ are the singular values of J and
σᵢ² the eigenvalues of G (Eq. 10 of Hahm et al. 2024 prints σᵢ = λᵢ²; what holds is σᵢ = √λᵢ). A scaled isometry has
G = c² I with one c everywhere. The map is any f from (B, *S) to (B, *M), row by row: the encoder X_t → H, about which
the paper's figures are, or the whole sampler x_T → x₀, about which its claim is. Jacobians are taken on the tangent
space at x of the sphere through x, J (I − x̂x̂ᵀ). Of every driver x are points (n, *S).
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from torch import Tensor

from isodiff import geometry
from isodiff.diffusion import NoiseSchedule, encode
from isodiff.geometry import Map, anisotropy
from isodiff.metrics.generator import Generator, draw_latents, number_generator
from isodiff.metrics.measure import Measurement, finite, is_cached, leave_groups_out, over_points

Method = Literal["auto", "dense", "iterative"]
Form = Literal["sigma", "sigma_squared", "affine-invariant"]

_TOLERANCE = 5e-3  # of the iteration's values, which are then right to a per cent
_PROBES = 4  # at each point, of the traces behind anisotropy


def condition_number(sigma: ArrayLike | Tensor) -> float:
    """Return ``MCN = Eₓ[σ₁ / σₖ]`` ≥ 1 of the k leading singular values at n points, (n, k) (Hahm et al. 2024)."""
    return float(_condition_numbers(sigma).mean())


def _condition_numbers(sigma: ArrayLike | Tensor) -> NDArray[np.floating]:
    values = _check_sigma(sigma, minimum=1)
    if (zero := values[:, -1] == 0).any():
        last = f"singular value {values.shape[1]} of row {int(zero.argmax())} is 0"
        raise ValueError(f"{last}, so that the rank is less than k; take a smaller k")
    return values[:, 0] / values[:, -1]


def metric_variance(sigma: ArrayLike | Tensor) -> float:
    """Return ``VoR = Σᵢ Varₙ[σᵢ]`` (Eq. 11, Hahm et al. 2024) of singular values (n, k), n ≥ 2; divided by n."""
    return float(_check_sigma(sigma, minimum=2).var(axis=0).sum())


def affine_invariant_variance(metrics: ArrayLike | Tensor) -> float:
    """Return the affine-invariant variation of a metric, ``Eₙ Σᵢ log² λᵢ(Ḡ⁻¹ Gₙ)`` (Lee et al. 2022), (n, k, k), n ≥ 2.

    ``Ḡ`` is the arithmetic mean of the ``Gₙ``. It is the same for ``AᵀGA`` with any invertible ``A``.
    """
    matrices = finite(metrics, "metrics", 2, 1, 1)
    try:
        eigenvalues = np.array([eigh(matrix, matrices.mean(axis=0), eigvals_only=True) for matrix in matrices])
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the mean metric must be positive definite: {error}; take fewer directions") from error
    if eigenvalues.min() <= 0:
        row = int(eigenvalues.min(axis=1).argmin())
        raise ValueError(f"metrics must be positive definite, which that at row {row} is not; take fewer directions")
    return float((np.log(eigenvalues) ** 2).sum(axis=1).mean())


@dataclasses.dataclass(frozen=True)
class DescribedMap:
    """A map with what decides it, plain JSON values; the model's weights belong to the scope of the cache."""

    f: Map
    protocol: Mapping[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``f(x)``."""
        return self.f(x)


def encoder_map(unet: UNet2DModel, t: int, *, pooling: Literal["mean"] | None = None, **facts: str) -> DescribedMap:
    """Return the encoder X_t → H at one step; `pooling` ``"mean"`` averages h over pixels, as in the authors' code."""
    if pooling not in (None, "mean"):
        raise ValueError(f"pooling must be None or 'mean', got {pooling!r}")

    def f(x: Tensor) -> Tensor:
        h = encode(unet, x, t)
        return h if pooling is None else torch.nn.functional.adaptive_avg_pool2d(h, 1)

    return DescribedMap(f, {"map": "encoder", "t": t, "pooling": pooling, **facts})


def sampler_map(generate: Generator) -> DescribedMap:
    """Return the whole sampler x_T → x₀, a decoder and a scheduler's clipping included, before the last clamp."""
    return DescribedMap(generate.unclamped, {"map": "sampler", "num_steps": generate.num_steps})


def noisy_images(scheduler: SchedulerMixin, x_0: Tensor, t: int, *, seed: int) -> Tensor:
    """Draw true noisy images, ``x_t ~ p(x_t | x₀)``; image i by its number and the seed."""
    schedule = NoiseSchedule.of(scheduler)
    schedule.check_steps(t)
    eps = draw_latents(tuple(x_0.shape[1:]), 0, len(x_0), seed=seed, stream="noise").to(x_0)
    return schedule.add_noise(x_0, eps, t)


def singular_spectrum(
    f: Map, x: Tensor, k: int, *, method: Method = "auto", seed: int = 0, batch_size: int = 16
) -> np.ndarray:
    """Return the k leading singular values at each point, (n, k): exact by ``"dense"``, to 1 % by ``"iterative"``."""
    facts = _facts(f, x, k, method=method)

    def compute(points: Tensor, start: int) -> dict[str, np.ndarray]:
        if facts["method"] == "dense":
            with torch.no_grad():
                jacobian = _finite(geometry.dense_jacobian(f, points, tangent=True), "Jacobian")
            values = torch.linalg.svdvals(jacobian)[:, :k]
        else:
            options = {"criterion": "values", "tolerance": _TOLERANCE, "generator": number_generator(seed, "krylov", 0)}
            values = geometry.singular_values(f, points, k, tangent=True, **options)
        return {"values": _finite(values, "singular values").cpu().numpy()}

    return over_points(compute, x, size=batch_size, what="singular values", version=1, seed=seed, **facts)["values"]


def mean_condition_number(f: Map, x: Tensor, *, k: int, seed: int = 0, batch_size: int = 16) -> Measurement:
    """Measure `condition_number` at n ≥ 2 points; k decides the number as much as the model does."""
    facts = _facts(f, x, k, minimum=2)
    sigma = singular_spectrum(f, x, k, seed=seed, batch_size=batch_size)
    fields = {"protocol": facts | {"convention": "sigma"}, "details": {"mean_sigma": sigma.mean(0).tolist()}}
    return Measurement.from_units("mcn", _condition_numbers(sigma), unit="points", seed=seed, **fields)


def map_variance(
    f: Map, x: Tensor, *, k: int, form: Form = "sigma", seed: int = 0, batch_size: int = 16
) -> Measurement:
    """Measure the variation of the pulled-back metric over n ≥ 3 points, with its jackknife interval.

    `form` is ``"sigma"``, `metric_variance`; ``"sigma_squared"``, that of the σᵢ²; or ``"affine-invariant"``,
    `affine_invariant_variance` of G on the k leading directions of the mean metric.
    """
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {get_args(Form)}, got {form!r}")
    facts = _facts(f, x, k, minimum=3)
    protocol = facts | {"form": form}
    if form == "affine-invariant":

        def compute(points: Tensor, start: int) -> dict[str, np.ndarray]:
            options = {"dense": facts["method"] == "dense", "generator": number_generator(seed, "krylov", 0)}
            metrics = geometry.restrict_to_mean(f, points, k, tangent=True, tolerance=_TOLERANCE, **options)
            return {"metrics": metrics.cpu().numpy()}

        values = over_points(compute, x, size=len(x), what="metrics", version=1, seed=seed, **protocol)["metrics"]
        value, replicates = leave_groups_out(affine_invariant_variance, values)
    else:
        sigma = singular_spectrum(f, x, k, seed=seed, batch_size=batch_size)
        value, replicates = leave_groups_out(metric_variance, sigma if form == "sigma" else sigma**2)
    return Measurement.from_jackknife("vor", value, replicates, n=len(x), unit="points", seed=seed, protocol=protocol)


def map_anisotropy(f: Map, x: Tensor, *, seed: int = 0, batch_size: int = 16) -> Measurement:
    """Measure anisotropy, ``L_iso · rank`` with ``L_iso = E[Tr R²] / E[Tr R]²`` (Eq. 6), over n ≥ 3 points.

    1 is a scaled isometry. The bias is O(1/(points · probes)); ``details`` has an estimate of it.
    """
    n, m, described = _described(f, x, 3)
    protocol = described | {"metric": "stereographic", "num_probes": _PROBES}

    def compute(points: Tensor, start: int) -> dict[str, np.ndarray]:
        drawn = []
        for index, point in enumerate(points, start):
            probes = number_generator(seed, "probes", index)
            options = {"metric": "stereographic", "num_probes": _PROBES, "generator": probes}
            traces = geometry.trace_samples(f, point[None], **options)
            drawn.append(_finite(torch.cat(traces), "traces").cpu().numpy())
        return {"values": np.stack(drawn)}  # (points, 2, probes)

    def statistic(traces: np.ndarray) -> float:
        first, second = traces.astype(np.float64).mean(axis=(0, 2))
        return anisotropy(second / first**2, n, m)

    key = {"version": 1, "seed": seed, "numbered": True, **protocol}
    with torch.no_grad():
        samples = over_points(compute, x, size=batch_size, what="traces", **key)["values"]
    value, replicates = leave_groups_out(statistic, samples)
    bias = float((len(replicates) - 1) * (replicates.mean() - value))
    details = {"mean_trace": float(samples[:, 0].mean()), "rank": int(anisotropy(1, n, m)), "jackknife_bias": bias}
    fields = {"n": len(x), "unit": "points", "seed": seed, "protocol": protocol, "details": details}
    return Measurement.from_jackknife("anisotropy", value, replicates, **fields)


def log_anisotropy(f: Map, x: Tensor, *, rank: int, num_probes: int = 16, seed: int = 0) -> Measurement:
    """Measure log(rank · Tr R² / (Tr R)²) at each of n ≥ 2 points: 0 if R is c² I on so many directions, whatever c.

    `rank` is what the data allow, at most that of the map. Two maps measured at the same points share their probes, so
    that `compare` gives the mean log ratio of pairs with its interval. Of a map that is isotropic on r directions K
    probes show log(rK/2) − ψ(rK/2) ≈ 1/(rK) instead of 0.
    """
    n, m, described = _described(f, x, 2)
    if not 1 <= rank <= min(n - 1, m):
        raise ValueError(f"rank must be 1 to {min(n - 1, m)}; got {rank}")
    protocol = described | {"rank": rank, "num_probes": num_probes}

    def compute(points: Tensor, start: int) -> dict[str, np.ndarray]:
        draws = [number_generator(seed, "probes", start + row) for row in range(len(points))]
        probes = torch.stack([torch.randn(num_probes, *x.shape[1:], generator=draw) for draw in draws], 1)
        traces = geometry.trace_samples(f, points, probes=probes.to(points))
        return {"values": _finite(torch.stack(traces, 1), "traces").double().cpu().numpy()}  # (points, 2, probes)

    key = {"version": 1, "seed": seed, "numbered": True, **protocol}
    with torch.no_grad():
        first, second = over_points(compute, x, size=4, what="traces of pairs", **key)["values"].mean(2).T
    values, details = np.log(rank * second / first**2), {"mean_trace": float(first.mean())}
    details["standard_error"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return Measurement.from_units(
        "log_anisotropy", values, unit="points", seed=seed, protocol=protocol, details=details
    )


@torch.no_grad()
def encoder_anisotropy(
    unet: UNet2DModel, scheduler: SchedulerMixin, x_0: Tensor, t: int, *, num_batches: int = 8, seed: int = 0
) -> np.ndarray:
    """Estimate L_iso · rank (Eq. 6, Hahm et al. 2024) of X_t → H at one step by one probe, once for each batch."""
    schedule = NoiseSchedule.of(scheduler)
    schedule.check_steps(t)
    if not 1 <= num_batches <= len(x_0):
        raise ValueError(f"num_batches must be 1 to the number of images, {len(x_0)}; got {num_batches}")
    encoder, values = partial(encode, unet, t=t), []
    for index, batch in enumerate(x_0.tensor_split(num_batches)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        x_t = schedule.add_noise(batch, torch.randn(batch.shape, generator=generator).to(batch), t)
        loss = geometry.isometry_loss(encoder, x_t, generator=generator)
        values.append(anisotropy(loss.item(), x_t[0].numel(), encoder(x_t[:1]).numel()))
    return np.array(values)


def _described(f: Map, x: Tensor, minimum: int) -> tuple[int, int, dict[str, Any]]:
    """Return the dimensions of a map and what decides it, which must be known where results are kept."""
    if len(x) < minimum:
        raise ValueError(f"x must hold at least {minimum} points, got {len(x)}")
    facts = dict(f.protocol) if isinstance(f, DescribedMap) else {}
    if is_cached() and not facts:
        raise ValueError("results are kept and nothing says what f is; make it a DescribedMap")
    with torch.no_grad():
        return x[0].numel(), f(x[:1])[0].numel(), facts


def _facts(f: Map, x: Tensor, k: int, *, method: Method = "auto", minimum: int = 1) -> dict[str, Any]:
    """Return what decides a spectrum, with the method that ``"auto"`` stands for."""
    n, m, facts = _described(f, x, minimum)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    if not 1 <= k <= min(n - 1, m):
        raise ValueError(f"k must be between 1 and {min(n - 1, m)}, got {k}")
    if method == "auto":
        method = "dense" if min(n, m) <= 8 * k else "iterative"
    facts |= {"k": k, "method": method, "tangent": True}
    return facts | ({"tolerance": _TOLERANCE} if method == "iterative" else {})


def _finite(values: Tensor, what: str) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(f"the {what} of the map must be finite; got {int((~values.isfinite()).sum())} that are not")
    return values


def _check_sigma(sigma: ArrayLike | Tensor, *, minimum: int) -> NDArray[np.floating]:
    values = finite(sigma, "sigma", minimum, 1)
    if values.min() < 0 or (np.diff(values, axis=1) > 0).any():
        raise ValueError("sigma must not be negative and must descend along each row; got a row that does not")
    return values
