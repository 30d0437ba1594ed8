r"""Condition number, variation and isotropy of a map's Jacobian, over points.

The map is any ``f`` from (B, *S) to (B, *M), row by row: the encoder X_t → H, about which the paper's figures are, or
the whole sampler x_T → x₀, about which its claim is. Jacobians are taken on the tangent space at ``x`` of the sphere
through ``x``, ``J P`` with ``P = I − x̂x̂ᵀ``, unless that is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from isodiff.geometry.isometry import Metric, isotropy, trace_samples
from isodiff.geometry.jacobian import Map, dense_jacobian, singular_values
from isodiff.geometry.mean_metric import restrict_to_mean
from isodiff.metrics.generator import number_generator
from isodiff.metrics.isotropy import affine_invariant_variance, condition_numbers
from isodiff.metrics.isotropy import metric_variance as variance_of_values
from isodiff.metrics.maps import DescribedMap, encoder_map, noisy_images, sampler_map
from isodiff.metrics.measurement import Measurement
from isodiff.metrics.points import by_batches, digest, identity, jackknife, require_points
from isodiff.metrics.store import Store

__all__ = [
    "DescribedMap",
    "encoder_map",
    "map_isotropy",
    "mean_condition_number",
    "metric_variance",
    "noisy_images",
    "sampler_map",
    "singular_spectrum",
]

Method = Literal["auto", "dense", "iterative"]
Form = Literal["sigma", "sigma_squared", "affine-invariant"]

_TOLERANCE = 5e-3  # of the iteration's values, which are then right to a per cent


def singular_spectrum(
    f: Map,
    x: Tensor,
    k: int,
    *,
    method: Method = "auto",
    tangent: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    key: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> np.ndarray:
    """Return the ``k`` leading singular values of the Jacobian at every point.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (n, *S).
        k: How many, 1 to the smaller dimension.
        method: ``"dense"``, exact from the whole Jacobian; ``"iterative"``, to a per cent (see `krylov`); ``"auto"``
            takes the one with fewer products, dense where the smaller dimension is at most 8 k.
        tangent: Whether to restrict the Jacobian to the tangent space of the sphere.
        seed: Of the iteration's random start.
        batch_size: Points at a time; values do not depend on it, but for rounding. The graph of a sampler of 20 steps
            takes about 0.26 GiB a point on faces32.
        key: What decides ``f``, plain JSON values; not needed for a `DescribedMap`. The model's weights belong into the
            scope of the store.
        store: Where finished batches are kept; nowhere if not given.

    Returns:
        (n, k), each row descending.

    Raises:
        ValueError: If an option is unknown or out of range, or the store is on disk and nothing describes ``f``.
    """
    facts = {**identity(f, key, store), **_resolve(f, x, k, method, tangent)}

    def compute(points: Tensor, start: int) -> np.ndarray:
        if facts["method"] == "dense":
            with torch.no_grad():
                J = dense_jacobian(f, points, tangent=tangent)
                if not J.isfinite().all():
                    raise ValueError("the Jacobian must be finite; the map overflows, or divides zero by zero")
                return torch.linalg.svdvals(J)[:, :k].cpu().numpy()
        options = {"criterion": "values", "tolerance": _TOLERANCE, "generator": number_generator(seed, "krylov", 0)}
        return singular_values(f, points, k, tangent=tangent, **options).cpu().numpy()

    return by_batches(compute, x, batch_size, store, what="singular values", seed=seed, **facts)


def mean_condition_number(
    f: Map,
    x: Tensor,
    *,
    k: int,
    squared: bool = False,
    method: Method = "auto",
    tangent: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    key: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure the mean condition number, ``MCN = Eₓ[σ₁ / σₖ]``; see `isotropy.condition_number`.

    Args:
        f: As in `singular_spectrum`.
        x: Points, (n, *S) with n ≥ 2.
        k: Where the spectrum is cut, which decides the number as much as the model does.
        squared: Whether to take the condition number of ``JᵀJ``, the square.
        method: As in `singular_spectrum`.
        tangent: As in `singular_spectrum`.
        seed: As in `singular_spectrum`.
        batch_size: As in `singular_spectrum`.
        key: As in `singular_spectrum`.
        store: As in `singular_spectrum`.

    Returns:
        The mean over points, with its bootstrap interval; ``details`` hold the mean spectrum.

    Raises:
        ValueError: As `singular_spectrum`, for fewer than two points, or where a ``σₖ`` is zero.
    """
    require_points(x, 2)
    shared = {"method": method, "tangent": tangent, "seed": seed, "batch_size": batch_size, "key": key, "store": store}
    sigma = singular_spectrum(f, x, k, **shared)
    convention = "sigma squared" if squared else "sigma"
    protocol = {**identity(f, key, None), **_resolve(f, x, k, method, tangent), "convention": convention}
    values, details = condition_numbers(sigma, squared=squared), {"mean_sigma": sigma.mean(0).tolist()}
    return Measurement.from_units("mcn", values, unit="points", seed=seed, protocol=protocol, details=details)


def metric_variance(
    f: Map,
    x: Tensor,
    *,
    k: int,
    form: Form = "sigma",
    method: Method = "auto",
    tangent: bool = True,
    seed: int = 0,
    batch_size: int = 16,
    key: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure the variation of the pulled-back metric over points.

    Args:
        f: As in `singular_spectrum`.
        x: Points, (n, *S) with n ≥ 3.
        k: Number of leading singular values, or of directions.
        form: ``"sigma"``, ``Σᵢ Var[σᵢ]`` (Eq. 11); ``"sigma_squared"``, the same of ``σᵢ²``, the eigenvalues of
            ``JᵀJ``; or ``"affine-invariant"``, ``E Σᵢ log² λᵢ(Ḡ⁻¹G)`` (Lee et al. 2022) with ``G`` restricted to the
            ``k`` leading directions of the mean metric ``Ḡ``, as the full one has no inverse.
        method: As in `singular_spectrum`.
        tangent: As in `singular_spectrum`.
        seed: As in `singular_spectrum`.
        batch_size: As in `singular_spectrum`; the affine-invariant form takes all points at once.
        key: As in `singular_spectrum`.
        store: As in `singular_spectrum`.

    Returns:
        The variation, with its jackknife interval.

    Raises:
        ValueError: As `singular_spectrum`, for fewer than three points, or an unknown form.
    """
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {get_args(Form)}, got {form!r}")
    require_points(x, 3)
    protocol = {**identity(f, key, store), **_resolve(f, x, k, method, tangent), "form": form}
    if form == "affine-invariant":

        def compute() -> dict[str, np.ndarray]:
            start, dense = number_generator(seed, "krylov", 0), protocol["method"] == "dense"
            metrics = restrict_to_mean(f, x, k, tangent=tangent, dense=dense, tolerance=_TOLERANCE, generator=start)
            return {"metrics": metrics.cpu().numpy()}

        facts = {**protocol, "seed": seed, "points": digest(x)}
        values = (store or Store()).get(compute, what="metrics", version=1, **facts)["metrics"]
        statistic = affine_invariant_variance
    else:
        shared = {"method": method, "tangent": tangent, "seed": seed, "batch_size": batch_size}
        values = singular_spectrum(f, x, k, key=key, store=store, **shared)
        values, statistic = values if form == "sigma" else values**2, variance_of_values
    value, replicates = jackknife(statistic, values)
    return Measurement.from_jackknife("vor", value, replicates, n=len(x), unit="points", seed=seed, protocol=protocol)


def map_isotropy(
    f: Map,
    x: Tensor,
    *,
    metric: Metric = "stereographic",
    num_probes: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    key: Mapping[str, Any] | None = None,
    store: Store | None = None,
) -> Measurement:
    """Measure isotropy, ``L_iso · rank`` with ``L_iso = E[Tr R²] / E[Tr R]²`` (Eq. 6); 1 is a scaled isometry.

    Args:
        f: As in `singular_spectrum`.
        x: Points, (n, *S) with n ≥ 3.
        metric: Of `isometry_loss`.
        num_probes: Random directions a point, each a function of seed and the point's number alone.
        seed: Of the probes.
        batch_size: Points kept together.
        key: As in `singular_spectrum`.
        store: As in `singular_spectrum`.

    Returns:
        The estimate over all points and probes, with its jackknife interval over points.

    Raises:
        ValueError: If an option is unknown or out of range, for fewer than three points, or as `singular_spectrum`.

    Note:
        A ratio of means has a bias of O(1/(points · probes)); the jackknife's estimate of it is in ``details`` and is
        not subtracted.
    """
    require_points(x, 3)
    protocol = {**identity(f, key, store), "metric": metric, "num_probes": num_probes}
    n, m = _dimensions(f, x)

    def compute(points: Tensor, start: int) -> np.ndarray:
        drawn = []
        for index, point in enumerate(points, start):
            probes = number_generator(seed, "probes", index)
            traces = trace_samples(f, point[None], metric=metric, num_probes=num_probes, generator=probes)
            drawn.append(torch.cat(traces).cpu().numpy())
        return np.stack(drawn)  # (points, 2, probes)

    with torch.no_grad():
        samples = by_batches(compute, x, batch_size, store, numbered=True, what="traces", seed=seed, **protocol)

    def statistic(traces: np.ndarray) -> float:
        first, second = traces.astype(np.float64).mean(axis=(0, 2))
        return isotropy(second / first**2, n, m, metric=metric)

    value, replicates = jackknife(statistic, samples)
    details = {
        "mean_trace": float(samples[:, 0].mean()),
        "rank": int(isotropy(1, n, m, metric=metric)),
        "jackknife_bias": float((len(replicates) - 1) * (replicates.mean() - value)),
    }
    fields = {"n": len(x), "unit": "points", "seed": seed, "protocol": protocol, "details": details}
    return Measurement.from_jackknife("isotropy", value, replicates, **fields)


def _resolve(f: Map, x: Tensor, k: int, method: Method, tangent: bool) -> dict[str, Any]:
    """Return what decides a spectrum, with the method that ``"auto"`` stands for."""
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    n, m = _dimensions(f, x)
    largest = min(n - tangent, m)
    if not 1 <= k <= largest:
        raise ValueError(f"k must be between 1 and {largest}, got {k}")
    if method == "auto":
        method = "dense" if min(n, m) <= 8 * k else "iterative"
    accuracy = {"tolerance": _TOLERANCE} if method == "iterative" else {}
    return {"k": k, "method": method, "tangent": tangent, **accuracy}


def _dimensions(f: Map, x: Tensor) -> tuple[int, int]:
    require_points(x, 1)
    with torch.no_grad():
        return x[0].numel(), f(x[:1])[0].numel()
