r"""How far a map is from a scaled isometry of the noise sphere (Sec. 3.2 and Eq. 6 of Hahm et al. 2024).

Let ``J`` be the Jacobian of ``f`` at ``x`` and ``Q`` an orthonormal frame of the tangent space at ``x`` of the sphere
of radius ``‖x‖``. ``f`` is a scaled isometry when ``R = Qᵀ JᵀJ Q = c² I`` with one ``c`` for every ``x``, and

    L_iso(f) = E_x[Tr R²] / (E_x[Tr R])²  ≥  1 / rank R,

with equality exactly then. Multiplying ``f`` by a number leaves it unchanged. Traces come from random probes ``v``
(Hutchinson): ``Tr R = E‖J v‖²`` and ``Tr R² = E‖P JᵀJ v‖²``, with ``v`` Gaussian in the tangent space and ``P = Q Qᵀ``.

The paper writes ``R`` in the stereographic chart, ``R = G⁻¹ (dΠ⁻¹)ᵀ JᵀJ dΠ⁻¹``. The chart is conformal,
``dΠ⁻¹ = √G Q``, so ``G`` cancels and no chart is needed. The three metrics:

| metric | ``R`` | |
|---|---|---|
| ``"stereographic"`` | ``Qᵀ JᵀJ Q`` | the sphere's own geometry, the paper's ``G = G_stereographic`` |
| ``"chart_identity"`` | ``G Qᵀ JᵀJ Q`` | the chart's coordinates taken as flat, the paper's ``G = I`` |
| ``"euclidean"`` | ``JᵀJ`` | the ambient space ℝⁿ, radial direction included |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.differences import DifferenceSquares
from isodiff.geometry.jacobian import Linearisation, Map
from isodiff.geometry.sphere import conformal_factor, project_to_tangent, require_batch, stereographic
from isodiff.geometry.trace import sample_probes

Metric = Literal["stereographic", "chart_identity", "euclidean"]
Estimator = Literal["ratio", "unbiased", "jackknife", "per_row"]
Route = Literal["double_backward", "differences"]

Squares = Callable[[Tensor], tuple[Tensor, Tensor]]

# Chance makes no angle between a probe and x as small as this; a shared seed, which draws both alike, does.
_PARALLEL = 1e-6


def isometry_loss(
    f: Map,
    x: Tensor,
    *,
    metric: Metric = "stereographic",
    estimator: Estimator = "ratio",
    num_probes: int = 1,
    generator: torch.Generator | None = None,
    route: Route = "double_backward",
) -> Tensor:
    """Estimate the scaled-isometry loss of ``f`` on a batch (Eq. 6), differentiable in the parameters of ``f``.

    Args:
        f: Map from (B, *S) to (B, *M), row by row; for Eq. 6 the encoder at one diffusion step.
        x: Points, (B, *S); no row zero unless the metric is Euclidean.
        metric: ``"stereographic"``, ``"chart_identity"`` or ``"euclidean"``; see the module.
        estimator: With ``q₁ = ‖Jv‖²`` and ``q₂ = ‖P JᵀJ v‖²``, ``"ratio"`` is ``mean q₂ / (mean q₁)²`` over rows and
            probes; ``"unbiased"`` divides by an unbiased estimate of the squared mean trace instead; ``"jackknife"``
            corrects the ratio by leaving out each probe in turn. These two need ``num_probes ≥ 2``. ``"per_row"`` is
            the mean of the rows' own ratios, what one sample a device gives: each row then has a scale of its own, so
            that only conformality is asked for, not one ``c`` for every ``x``.
        num_probes: Probes a row, K.
        generator: Source of the probes; torch's global one if not given. Not one in the state that drew ``x``.
        route: How the products are had: ``"double_backward"``, exact, on one graph of ``f``; or ``"differences"``, from
            first-order passes with a relative error of about 10⁻³ in the gradient, see `differences`.

    Returns:
        The loss, a scalar in float32, or float64 if ``x`` is.

    Raises:
        ValueError: If an option is unknown or out of range, ``x`` does not fit, or a probe is parallel to it.

    Note:
        Costs one evaluation of ``f``, and one Jacobian-vector and one vector-Jacobian product a probe; by differences
        about the same time in less memory, as no graph is of second order. The ratio is
        consistent, with a bias of O(1/(B·K)). Ambient autocast is switched off and half-precision ``x`` is cast up, as
        squares of squares overflow; a half-precision network must therefore accept float32 or do its own casting.
    """
    require_estimator(estimator, num_probes)
    options = {"metric": metric, "num_probes": num_probes, "generator": generator, "route": route}
    return estimate_loss(*trace_samples(f, x, **options), estimator=estimator)


def require_estimator(estimator: str, num_probes: int) -> None:
    """Refuse an unknown estimator, or one that needs more probes a row.

    Raises:
        ValueError: Naming what was given and what would be accepted.
    """
    _require_option(estimator, Estimator, "estimator")
    minimum = 2 if estimator in ("unbiased", "jackknife") else 1
    if num_probes < minimum:
        raise ValueError(f"num_probes must be at least {minimum} for the {estimator} estimator, got {num_probes}")


def estimate_loss(first: Tensor, second: Tensor, *, estimator: Estimator = "ratio") -> Tensor:
    """Return Eq. 6 from Hutchinson samples of its traces.

    Args:
        first: Samples of ``Tr R``, (B, K): the first result of `trace_samples`.
        second: Samples of ``Tr R²``, (B, K): the second.
        estimator: As in `isometry_loss`.

    Returns:
        The loss, a scalar, differentiable through both.
    """
    _require_option(estimator, Estimator, "estimator")
    return _ESTIMATORS[estimator](first, second)


def trace_samples(
    f: Map,
    x: Tensor,
    *,
    metric: Metric = "stereographic",
    num_probes: int = 1,
    generator: torch.Generator | None = None,
    probes: Tensor | None = None,
    route: Route = "double_backward",
) -> tuple[Tensor, Tensor]:
    """Draw Hutchinson samples of ``Tr R`` and ``Tr R²`` at every row: what `isometry_loss` averages.

    Args:
        f: As in `isometry_loss`.
        x: As in `isometry_loss`.
        metric: As in `isometry_loss`.
        num_probes: As in `isometry_loss`.
        generator: As in `isometry_loss`.
        probes: Standard normal directions in ℝⁿ, (K, B, *S), in place of K = ``num_probes`` drawn from ``generator``:
            the rows' own where ``x`` is part of a batch whose probes are drawn together.
        route: As in `isometry_loss`.

    Returns:
        Samples of the two traces, (B, K) each, differentiable in the parameters of ``f``.

    Raises:
        ValueError: If the metric or route is unknown, ``num_probes < 1``, ``x`` or ``probes`` do not fit, or a probe is
            parallel to ``x``.
    """
    _require_option(route, Route, "route")
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, got {num_probes}")
    if probes is not None and (probes.shape[1:] != x.shape or len(probes) < 1):
        raise ValueError(f"probes must have shape (K, {', '.join(map(str, x.shape))}), got {tuple(probes.shape)}")
    points, project, factor = _prepare(x, metric)
    dtype, device = points.dtype, x.device
    with torch.autocast(device.type, enabled=False):
        squares = _ROUTES[route](lambda z: f(z).to(dtype), points, project)
    if probes is None:
        draws = (sample_probes(x.shape, generator=generator, dtype=dtype, device=device) for _ in range(num_probes))
    else:
        draws = (probe.to(device, dtype) for probe in probes)
    first, second = [], []
    with torch.autocast(x.device.type, enabled=False):
        for probe in draws:
            tangent = project(probe)
            if (_row_square(tangent) <= _PARALLEL**2 * _row_square(probe)).any():
                raise ValueError(
                    "a probe is parallel to x; draw x and the probes from generators with another seed each"
                )
            one, two = squares(tangent)
            first.append(factor * one)
            second.append(factor**2 * two)
        return torch.stack(first, 1), torch.stack(second, 1)


def isometry_loss_share(first: Tensor, second: Tensor, mean_first: Tensor, mean_second: Tensor) -> Tensor:
    """Return one part's share of `isometry_loss`, for a batch cut into equal parts over processes or passes.

    The loss of the whole batch is ``N / D²``, with ``D`` and ``N`` the means of all samples; the parts' own ratios do
    not average to it. Its expansion to first order in the part's means ``Dᵢ``, ``Nᵢ`` about ``D`` and ``N`` does:

        shareᵢ = (Nᵢ + 2 N (1 − Dᵢ / D)) / D².

    With ``D`` and ``N`` held constant, the mean over the parts of the shares is the loss, and that of their gradients,
    ``dN / D² − 2 N dD / D³``, is its gradient; nothing is lost to the expansion.

    Args:
        first: Samples of ``Tr R`` in this part, of any shape: the first result of `trace_samples`.
        second: Samples of ``Tr R²`` in this part: the second result.
        mean_first: ``D``, the mean over all parts, a scalar; taken as a constant.
        mean_second: ``N``, the mean over all parts, a scalar; taken as a constant.

    Returns:
        The share, a scalar, differentiable in the parameters through ``first`` and ``second``.

    Note:
        Unlike a ratio of this part alone, it keeps one scale ``c`` for every part (Eq. 6). For the loss of one part
        that is the whole, value and gradient are those of the ``"ratio"`` estimator.
    """
    d, n = mean_first.detach(), mean_second.detach()
    return (second.mean() + 2 * n * (1 - first.mean() / d)) / d.square()


def exact_isometry_loss(f: Map, x: Tensor, *, metric: Metric = "stereographic") -> Tensor:
    """Return the scaled-isometry loss of ``f`` on a batch from dense Jacobians: the oracle for `isometry_loss`.

    Args:
        f: Map from (B, *S) to (B, *M), row by row.
        x: Points, (B, *S); no row zero unless the metric is Euclidean.
        metric: As in `isometry_loss`.

    Returns:
        ``mean(Tr R²) / mean(Tr R)²`` over the rows, a scalar, differentiable in the parameters of ``f``.

    Raises:
        ValueError: If the metric is unknown or ``x`` does not fit.

    Note:
        Costs ``m`` vector-Jacobian products and ``B·m·n`` numbers; for small maps only.
    """
    first, second = exact_traces(f, x, metric=metric)
    return _ratio(first, second)


def exact_traces(f: Map, x: Tensor, *, metric: Metric = "stereographic") -> tuple[Tensor, Tensor]:
    """Return ``Tr R`` and ``Tr R²`` at every row from dense Jacobians: what `exact_isometry_loss` averages.

    Args:
        f: As in `exact_isometry_loss`.
        x: As in `exact_isometry_loss`.
        metric: As in `exact_isometry_loss`.

    Returns:
        The two traces, (B,) each, differentiable in the parameters of ``f``.

    Raises:
        ValueError: If the metric is unknown or ``x`` does not fit.
    """
    points, project, factor = _prepare(x, metric)
    with torch.autocast(x.device.type, enabled=False):
        at_x = Linearisation(lambda z: f(z).to(points.dtype), points)
        units = torch.eye(at_x.y[0].numel(), dtype=at_x.y.dtype, device=x.device)
        covectors = (u.expand(len(x), -1).reshape(at_x.y.shape) for u in units)
        rows = torch.stack([project(at_x.vjp(u)).flatten(1) for u in covectors], 1)  # J P, (B, m, n)
        gram = rows @ rows.mT  # J P Jᵀ shares its non-zero eigenvalues, hence its traces, with P JᵀJ P
        return factor * _row_square(rows), factor**2 * _row_square(gram)


def isotropy(loss: Tensor | float, n: int, m: int, *, metric: Metric = "stereographic") -> Tensor | float:
    """Rescale the loss so that a scaled isometry scores 1 whatever the dimensions: loss times the largest rank of R.

    Args:
        loss: The scaled-isometry loss.
        n: Number of inputs, at least 2.
        m: Number of outputs, at least 1.
        metric: The metric of the loss: the rank is ``min(n, m)`` for the Euclidean one, ``min(n − 1, m)`` otherwise.

    Returns:
        ``loss · rank``, at least 1 for the exact loss; 1 is perfect.

    Raises:
        ValueError: If the metric is unknown, ``n < 2`` or ``m < 1``.
    """
    _require_option(metric, Metric, "metric")
    if n < 2 or m < 1:
        raise ValueError(f"n must be at least 2 and m at least 1, got n = {n} and m = {m}")
    return loss * min(n if metric == "euclidean" else n - 1, m)


def _prepare(x: Tensor, metric: Metric) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """Return the points in full precision, the projection ``P`` of the metric and the factor of its ``R``, (B,)."""
    _require_option(metric, Metric, "metric")
    require_batch(x, "x")
    dtype = torch.promote_types(x.dtype, torch.float32)
    points = x.to(dtype)
    flat = points.detach().flatten(1)
    factor = torch.ones(len(x), dtype=dtype, device=x.device)
    if metric == "chart_identity":
        radius = flat.norm(dim=1)
        factor = conformal_factor(stereographic(flat, radius), radius)
    if metric == "euclidean":
        return points, lambda v: v, factor
    return points, lambda v: project_to_tangent(v, points), factor


def _double_backward(f: Map, x: Tensor, project: Callable[[Tensor], Tensor]) -> Squares:
    """Return ``v ↦ (‖J v‖², ‖P JᵀJ v‖²)`` on one graph of ``f``."""
    at_x = Linearisation(f, x)

    def squares(v: Tensor) -> tuple[Tensor, Tensor]:
        pushed = at_x.jvp(v)
        pulled = project(at_x.vjp(pushed))
        return _row_square(pushed), _row_square(pulled)

    return squares


def _row_square(rows: Tensor) -> Tensor:
    return rows.flatten(1).square().sum(dim=1)


def _ratio(first: Tensor, second: Tensor) -> Tensor:
    return second.mean() / first.mean().square()


def _unbiased(first: Tensor, second: Tensor) -> Tensor:
    """Divide by the mean over pairs of rows, a row's square being estimated from pairs of distinct probes."""
    rows, probes = first.shape
    means = first.mean(dim=1)
    squares = (probes * means.square() - first.square().mean(dim=1)) / (probes - 1)
    return second.mean() * rows**2 / (means.sum().square() + (squares - means.square()).sum())


def _jackknife(first: Tensor, second: Tensor) -> Tensor:
    """Remove the bias that falls as one over the number of probes (Quenouille 1956)."""
    probes = first.shape[1]
    others = ~torch.eye(probes, dtype=torch.bool, device=first.device)
    left_out = torch.stack([_ratio(first[:, keep], second[:, keep]) for keep in others])
    return probes * _ratio(first, second) - (probes - 1) * left_out.mean()


def _per_row(first: Tensor, second: Tensor) -> Tensor:
    return (second.mean(dim=1) / first.mean(dim=1).square()).mean()


_ROUTES: dict[str, Callable[[Map, Tensor, Callable[[Tensor], Tensor]], Squares]] = {
    "double_backward": _double_backward,
    "differences": DifferenceSquares,
}
_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ratio": _ratio,
    "per_row": _per_row,
    "unbiased": _unbiased,
    "jackknife": _jackknife,
}


def _require_option(value: str, options: object, name: str) -> None:
    if value not in get_args(options):
        raise ValueError(f"{name} must be one of {get_args(options)}, got {value!r}")
