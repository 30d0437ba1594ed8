r"""How far a map is from a scaled isometry of the noise sphere (Sec. 3.2 and Eq. 6 of Hahm et al. 2024).

Let ``J`` be the Jacobian of ``f``, (B, *S) → (B, *M) row by row, at ``x``, and ``Q`` an orthonormal frame of the
tangent space at ``x ≠ 0`` of the sphere through it. With ``R = Qᵀ JᵀJ Q`` and one ``c`` for every ``x``

    L_iso(f) = E_x[Tr R²] / (E_x[Tr R])²  ≥  1 / rank R,        with equality exactly when R = c² I.

Traces come from probes ``v`` (Hutchinson): ``Tr R = E‖J v‖²``, ``Tr R² = E‖P JᵀJ v‖²``, ``v`` Gaussian in the tangent
space and ``P = Q Qᵀ``. This ``R`` is the metric ``"stereographic"``: the paper's ``R = G⁻¹ (dΠ⁻¹)ᵀ JᵀJ dΠ⁻¹``, as its
chart is conformal, ``dΠ⁻¹ = √G Q``, and ``G`` cancels. ``"chart_identity"``, ``R = G Qᵀ JᵀJ Q``, takes the chart as
flat (the paper's ``G = I``), ``"as_printed"`` takes the metric of Eq. 3 in the chart of Eq. 2, to which it does not
belong: nearly a constant, so nearly ``G = I``. ``"euclidean"`` is ``R = JᵀJ`` in all of ℝⁿ.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from isodiff.geometry.jacobian import Linearisation, Map, require_rows
from isodiff.geometry.layers import RowByRow
from isodiff.geometry.sphere import conformal_factor, require_batch, require_option, stereographic, tangent_projection
from isodiff.geometry.trace import sample_probes

Metric = Literal["stereographic", "chart_identity", "as_printed", "euclidean"]
Estimator = Literal["ratio", "unbiased", "jackknife", "per_row"]
Route = Literal["double_backward", "differences"]

Projection = Callable[[Tensor], Tensor]
Squares = Callable[[Tensor], tuple[Tensor, Tensor]]  # v ↦ (‖J v‖², ‖P JᵀJ v‖²) at every row, differentiable

# Chance makes no angle between a probe and x as small as this; a shared seed, which draws both alike, does.
_PARALLEL = 1e-6
# Step h over ‖x‖, in units of ε^(1/3), where rounding (ε/h) and curvature (h²) are of one size; a probe is spread over
# all directions, JᵀJ v lies along the few that f stretches and bends most.
_PROBE_STEP, _METRIC_STEP = 2.0, 0.2


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
    """Estimate Eq. 6 on a batch x (B, *S), with f the encoder at one diffusion step: a scalar, differentiable.

    Ambient autocast is switched off and half-precision ``x`` cast up, as squares of squares overflow. The probes'
    generator may not be in the state that drew ``x``.

    With ``q₁ = ‖Jv‖²`` and ``q₂ = ‖P JᵀJ v‖²`` the estimator ``"ratio"`` is ``mean q₂ / (mean q₁)²`` over rows and K
    probes a row, consistent with a bias of O(1/(B·K)); ``"unbiased"`` divides by an unbiased estimate of the squared
    mean trace and ``"jackknife"`` leaves out each probe in turn, both for K ≥ 2; ``"per_row"`` is the mean of the rows'
    own ratios, which asks for conformality, not for one ``c``. The route ``"double_backward"`` is exact;
    ``"differences"``, right to about 10⁻³ in float32 on the course's U-Nets, takes first-order passes alone, as fused
    attention, recomputed activations and compilers need.
    """
    require_option(estimator, Estimator, "estimator")
    minimum = 2 if estimator in ("unbiased", "jackknife") else 1
    if num_probes < minimum:
        raise ValueError(f"num_probes must be at least {minimum} for the {estimator} estimator, got {num_probes}")
    options = {"metric": metric, "num_probes": num_probes, "generator": generator, "route": route}
    return estimate_loss(*trace_samples(f, x, **options), estimator=estimator)


def estimate_loss(first: Tensor, second: Tensor, *, estimator: Estimator = "ratio") -> Tensor:
    """Return Eq. 6 from samples of ``Tr R`` and ``Tr R²``, (B, K) each: the results of `trace_samples`."""
    require_option(estimator, Estimator, "estimator")
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
    """Draw Hutchinson samples of ``Tr R`` and ``Tr R²`` at every row, (B, K) each: what `isometry_loss` averages.

    ``probes``, standard normal in ℝⁿ, (K, B, *S), take the place of K = ``num_probes`` drawn from ``generator``.
    """
    require_option(route, Route, "route")
    if num_probes < 1:
        raise ValueError(f"num_probes must be at least 1, got {num_probes}")
    if probes is not None and (probes.shape[1:] != x.shape or len(probes) < 1):
        raise ValueError(f"probes must have shape (K, {', '.join(map(str, x.shape))}), got {tuple(probes.shape)}")
    points, project, factor = _prepare(x, metric)
    with torch.autocast(x.device.type, enabled=False):
        squares = _ROUTES[route](f, points, project)
        if probes is None:
            options = {"generator": generator, "dtype": points.dtype, "device": x.device}
            probes = torch.stack([sample_probes(x.shape, **options) for _ in range(num_probes)])
        probes = probes.to(points)
        tangents = [project(probe) for probe in probes]
        if (_row_squares(torch.stack(tangents), 2) <= _PARALLEL**2 * _row_squares(probes, 2)).any():
            raise ValueError("a probe is parallel to x; draw x and the probes from generators with another seed each")
        first, second = (torch.stack(samples, 1) for samples in zip(*map(squares, tangents), strict=True))
        return factor[:, None] * first, factor[:, None] ** 2 * second


def isometry_loss_share(first: Tensor, second: Tensor, mean_first: Tensor, mean_second: Tensor) -> Tensor:
    """Return one part's share of `isometry_loss`, for a batch cut into equal parts over processes or passes.

    The loss of the whole batch is ``N / D²``, with ``D`` and ``N`` (``mean_first``, ``mean_second``) the means of all
    samples; the parts' own ratios do not average to it. With ``D`` and ``N`` held constant,

        shareᵢ = (Nᵢ + 2 N (1 − Dᵢ / D)) / D²

    does: the shares' mean is the loss, and that of their gradients is its gradient.
    """
    d, n = mean_first.detach(), mean_second.detach()
    return (second.mean() + 2 * n * (1 - first.mean() / d)) / d.square()


def exact_isometry_loss(f: Map, x: Tensor, *, metric: Metric = "stereographic") -> Tensor:
    """Return ``mean(Tr R²) / mean(Tr R)²`` over the rows from dense Jacobians: a differentiable oracle."""
    return _ratio(*exact_traces(f, x, metric=metric))


def exact_traces(f: Map, x: Tensor, *, metric: Metric = "stereographic") -> tuple[Tensor, Tensor]:
    """Return ``Tr R`` and ``Tr R²`` at every row, (B,) each: what `exact_isometry_loss` averages."""
    points, project, factor = _prepare(x, metric)
    with torch.autocast(x.device.type, enabled=False):
        at_x = Linearisation(f, points, checked=True, dtype=points.dtype)
        units = torch.eye(at_x.y[0].numel(), dtype=at_x.y.dtype, device=x.device)
        covectors = (u.expand(len(x), -1).reshape(at_x.y.shape) for u in units)
        rows = torch.stack([project(at_x.vjp(u)).flatten(1) for u in covectors], 1)  # J P, (B, m, n)
        gram = rows @ rows.mT  # J P Jᵀ shares its non-zero eigenvalues, hence its traces, with P JᵀJ P
        return factor * _row_squares(rows), factor**2 * _row_squares(gram)


def anisotropy(loss: Tensor | float, n: int, m: int, *, metric: Metric = "stereographic") -> Tensor | float:
    """Rescale the loss of a map ℝⁿ → ℝᵐ by the largest rank of R: a scaled isometry scores 1, all others more."""
    require_option(metric, Metric, "metric")
    if n < 2 or m < 1:
        raise ValueError(f"n must be at least 2 and m at least 1, got n = {n} and m = {m}")
    return loss * min(n if metric == "euclidean" else n - 1, m)


def _prepare(x: Tensor, metric: Metric) -> tuple[Tensor, Projection, Tensor]:
    """Check x; return it in full precision, the projection ``P`` of the metric and the factor of its ``R``, (B,)."""
    require_option(metric, Metric, "metric")
    require_batch(x, "x")
    points = x.to(torch.promote_types(x.dtype, torch.float32))
    flat = points.detach().flatten(1)
    factor = torch.ones(len(x), dtype=points.dtype, device=x.device)
    if metric in ("chart_identity", "as_printed"):
        radius = flat.norm(dim=1)
        z = stereographic(flat, radius)
        factor = conformal_factor(z, radius)
        if metric == "as_printed":  # z/r of Eq. 2, so r² times G, over Eq. 3 there
            factor = radius.square() * factor / conformal_factor(z / radius[:, None], radius)
    return points, (lambda v: v) if metric == "euclidean" else tangent_projection(points), factor


def _double_backward(f: Map, x: Tensor, project: Projection) -> Squares:
    at_x = Linearisation(f, x, checked=True, dtype=x.dtype)

    def squares(v: Tensor) -> tuple[Tensor, Tensor]:
        pushed = at_x.jvp(v)
        return _row_squares(pushed), _row_squares(project(at_x.vjp(pushed)))

    return squares


def _differences(f: Map, x: Tensor, project: Projection) -> Squares:
    """Evaluate both squares by central differences, ``D_h(v) = ‖v‖ (f(x + h v̂) − f(x − h v̂)) / 2h = J v + O(h²)``:

        u = D_h(v),    w = P Jᵀ u,    z = D_h(w),    d‖u‖² = 2 ⟨u, dJ v⟩,    d‖w‖² = 2 ⟨z, dJ v⟩ + 2 ⟨u, dJ w⟩.

    Whatever layers draw at random is drawn alike at every evaluation.
    """  # noqa: D415
    x = x.detach()
    devices = [x.device] if x.device.type == "cuda" else []
    scale = _row_norms(x) * torch.finfo(x.dtype).eps ** (1 / 3)
    if not scale.all():
        got = f"got zero in row {int((scale == 0).flatten().nonzero()[0])}"
        raise ValueError(f"x must have no zero row with the differences route, {got}")

    def evaluate(z: Tensor) -> Tensor:
        with torch.random.fork_rng(devices), RowByRow():
            y = f(z)
        require_rows(y, len(x), differentiable=z.requires_grad)
        return y.to(x.dtype)

    def push(v: Tensor, step: float) -> Tensor:
        norm = _row_norms(v)
        move = step * scale * v / norm.clamp_min(torch.finfo(v.dtype).tiny)
        change = evaluate(x + move) - evaluate(x - move)
        return (norm / (2 * step * scale)).view(-1, *[1] * (change.ndim - 1)) * change

    def pull(u: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x.clone().requires_grad_()
            return torch.autograd.grad(evaluate(z), z, u, materialize_grads=True)[0]

    def squares(v: Tensor) -> tuple[Tensor, Tensor]:
        pushed = push(v, _PROBE_STEP)
        u = pushed.detach()
        w = project(pull(u))
        first, second = _row_dots(pushed, pushed), _row_dots(w, w)
        if torch.is_grad_enabled():
            pushed_again = push(w, _METRIC_STEP)
            z = pushed_again.detach()
            # zero in value; its gradient is that of ‖P JᵀJ v‖²
            second = second + 2 * _row_dots(z, pushed - u) + 2 * _row_dots(u, pushed_again - z)
        return first, second

    return squares


def _row_squares(rows: Tensor, start: int = 1) -> Tensor:
    return rows.flatten(start).square().sum(dim=-1)


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def _row_norms(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).view(-1, *[1] * (rows.ndim - 1))


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


_ROUTES = {"double_backward": _double_backward, "differences": _differences}
_ESTIMATORS = {"ratio": _ratio, "per_row": _per_row, "unbiased": _unbiased, "jackknife": _jackknife}
