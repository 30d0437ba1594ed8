r"""Geodesics in noise space: the discrete paths of least energy between pairs of points, and whether to trust them.

The Hessian of the energy is, up to the metric, the path's Laplacian ``L = N · tridiag(−1, 2, −1)``, whose condition
number grows as N². Coordinates z with

    x = lerp(a, b) + L^{−1/2} z,        ‖z‖² = ‖x − lerp‖²_L = N Σᵢ‖Δxᵢ‖² − ‖b − a‖²,

take it out; L-BFGS with a strong Wolfe line search descends in them (Liu and Nocedal 1989). The gradient counts in

    ‖∇_z E‖ ‖x‖_L / 2E,        ‖∇_z E‖² = ∇Eᵀ L⁻¹ ∇E,        ‖x‖²_L = N Σ‖Δxᵢ‖²,

half the largest relative change of E, to first order, per relative change of the path: without unit.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from isodiff.geometry.initial_paths import InitialName, initial_path
from isodiff.geometry.riemann import NoiseMetric, Score, TangentialMetric
from isodiff.geometry.sphere import require_at_least

_WINDOW = 20  # iterations over which the energy must have stopped falling
_TOO_LONG = 1e6  # times the initial energy: what a line search is told where the energy is not finite


class Diagnostics(NamedTuple):
    """What decides whether paths have converged, (B,) each."""

    gradient: Tensor  # ‖∇E‖ · ‖path‖ / 2E in dual norms, without unit
    decrease: Tensor  # of the energy over the last 20 iterations, relative to what is left
    refinement: Tensor  # length with segments cut finely over that of the nodes alone: a path that jumps is found out
    gap: Tensor  # largest Euclidean distance between neighbouring nodes over the mean one
    speed: Tensor  # standard deviation of the segments' lengths in the metric over their mean


@dataclass(frozen=True)
class GeodesicResult:
    """Paths, one per pair of ends, (B,), and whether to trust them."""

    path: Tensor  # nodes, (B, N+1, *S); the ends are those given
    energy: Tensor  # E; of the tangential metric, in units of ŝ = σ²s (divide by σ⁴ for those of s)
    length: Tensor  # L, as the energy sees it; E ≥ ½ L²
    lower_bound: Tensor  # no path between the ends has less energy; zero where no bound is known
    converged: Tensor  # whether all criteria hold
    reason: list[str]  # per pair, the criteria that do not hold, with their values; empty if converged
    iterations: Tensor
    diagnostics: Diagnostics


def solve_geodesic(
    score: Score,
    a: Tensor,
    b: Tensor,
    *,
    sigma: float,
    num_segments: int,
    metric: Literal["tangential"] | NoiseMetric = "tangential",
    rho: float = 1e-3,
    num_subsamples: int = 4,
    initial: InitialName | Tensor = "slerp",
    max_iterations: int = 1000,
    batch_size: int | None = None,
) -> GeodesicResult:
    r"""Minimise the energy of paths between pairs of points a and b, (B, *S), one by one; the minimum is a local one.

    Tangential metric (arXiv 2510.05509): E = ½NK Σ‖ŝ_{j+1} − ŝ_j‖² + ½Nρ Σ‖x_{i+1} − x_i‖² with ŝ = σ²s. A path that
    has not converged is a result too, with the reason; where that is the fine/node length or the speed alone, more
    segments are needed.

    ``score`` is s = ∇ log p_σ, row by row, (M, *S) → (M, *S) for any M; for a model of the noise, −ε_θ/σ. Another
    ``metric`` has its own score, σ and ρ. With K = ``num_subsamples`` = 1 a path jumps over ridges between its nodes.
    ``batch_size`` bounds the points at which the score is evaluated at once. The precision is a's, float32 or better.
    """
    tangential = TangentialMetric(score, sigma, rho)
    metric = tangential if isinstance(metric, str) and metric == "tangential" else metric
    if not isinstance(metric, NoiseMetric):
        raise ValueError(f'metric must be "tangential" or a NoiseMetric, got {metric!r}')
    require_at_least(1, max_iterations=max_iterations)
    start = initial_path(initial, a, b, num_segments).detach()
    start = start.to(torch.promote_types(start.dtype, torch.float32))
    descents = [_Descent(metric, path[None], num_subsamples, batch_size) for path in start]
    for descent in descents:
        descent.run(max_iterations)
    found = Diagnostics(*torch.tensor([descent.diagnostics() for descent in descents], dtype=torch.float64).T)
    reason = [violations(Diagnostics(*row), start.dtype) for row in zip(*found, strict=True)]
    path = torch.cat([descent.path(descent.z) for descent in descents])
    return GeodesicResult(
        path=path,
        energy=path.new_tensor([descent.energies[-1] for descent in descents]),
        length=torch.cat([metric.length(row[None], **descents[0].sampling) for row in path]),
        lower_bound=torch.cat([metric.bound(row[:1], row[-1:]) for row in path]),
        converged=torch.tensor([not text for text in reason]),
        reason=reason,
        iterations=torch.tensor([len(descent.energies) - 1 for descent in descents]),
        diagnostics=found,
    )


def continue_geodesic(
    levels: Sequence[tuple[Score, float]], a: Tensor, b: Tensor, *, num_segments: int, **options: object
) -> list[GeodesicResult]:
    """Solve at one noise level (score, σ) after another, σ falling, each solution the start of the next.

    At high noise gaps are filled and the geodesic is nearly straight; lowering σ deforms it, where one from scratch
    would stay in the wrong homotopy class. ``options`` are those of `solve_geodesic`; a result per level.
    """
    sigmas = [sigma for _, sigma in levels]
    if not sigmas or any(not low < high for high, low in itertools.pairwise(sigmas)):
        raise ValueError(f"levels must hold at least one (score, sigma), sigma falling; got sigma = {sigmas}")
    results: list[GeodesicResult] = []
    for score, sigma in levels:
        results.append(solve_geodesic(score, a, b, sigma=sigma, num_segments=num_segments, **options))
        options["initial"] = results[-1].path
    return results


def violations(found: Diagnostics, dtype: torch.dtype) -> str:
    """Name every criterion that one path's diagnostics violate, with the values; empty if it has converged."""
    slope, fall = _limits(dtype)
    gradient, decrease, refinement, gap, speed = map(float, found)
    rules = (
        ("gradient norm", gradient, gradient <= slope, f"at most {slope:g}"),
        ("relative decrease over 20 iterations", decrease, decrease <= fall, f"at most {fall:g}"),
        ("fine/node length", refinement, abs(refinement - 1) < 0.05, "0.95 to 1.05"),
        ("max/mean gap", gap, gap < 3, "below 3"),
        ("speed variation", speed, speed < 0.1, "below 0.1"),
    )
    return "; ".join(f"{name} {value:.3g}, accepted {limit}" for name, value, holds, limit in rules if not holds)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    # in float32, rounding leaves a gradient of some thousandths
    return (1e-5, 1e-6) if dtype == torch.float64 else (1e-2, 1e-3)


class _Descent:
    """One pair's energy in the coordinates z, and what its descent has seen."""

    def __init__(self, metric: NoiseMetric, path: Tensor, num_subsamples: int, batch_size: int | None) -> None:
        self.metric, self.start = metric, path
        self.sampling = {"num_subsamples": num_subsamples, "batch_size": batch_size}
        count = path.shape[1] - 1
        laplacian = count * (2 * np.eye(count - 1) - np.eye(count - 1, k=1) - np.eye(count - 1, k=-1))
        eigenvalues, modes = np.linalg.eigh(laplacian)
        self.root = torch.tensor((modes * eigenvalues**-0.5) @ modes.T, device=path.device)  # L^{−1/2}
        u = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=path.device)[:, None]
        ends = path[0, [0, -1]].flatten(1).double()
        self.line = (1 - u) * ends[0] + u * ends[1]
        self.z = torch.linalg.solve(self.root, path[0, 1:-1].flatten(1).double() - self.line[1:-1])
        energy, self.gradient = self.evaluate(self.z)
        if not np.isfinite(energy):
            why = "the score, or the map that makes the metric, is not finite on it or overflows"
            raise ValueError(f"the energy of the initial path must be finite, got {energy}: {why}")
        self.energies, self.stuck = [energy], False

    def path(self, z: Tensor) -> Tensor:
        inner = (self.line[1:-1] + self.root @ z).to(self.start.dtype).reshape(self.start[:, 1:-1].shape)
        return torch.cat([self.start[:, :1], inner, self.start[:, -1:]], 1)

    def evaluate(self, z: Tensor) -> tuple[float, Tensor]:
        energy, gradient = self.metric.energy_and_gradient(self.path(z), **self.sampling)
        return energy.item(), self.root @ gradient[0, 1:-1].flatten(1).double()

    def run(self, max_iterations: int) -> None:
        """Descend by L-BFGS until the criteria hold, no step lowers the energy, or the iterations are used up."""
        seen, settled = {}, False
        tensor = lambda x: torch.tensor(x, device=self.z.device).reshape(self.z.shape)  # noqa: E731

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            energy, gradient = self.evaluate(tensor(x))
            if not (np.isfinite(energy) and torch.isfinite(gradient).all()):
                return _TOO_LONG * (self.energies[0] + 1), np.zeros_like(x)
            seen.update(energy=energy, gradient=gradient)
            return energy, gradient.cpu().numpy().ravel()

        def step(intermediate_result: OptimizeResult) -> None:
            nonlocal settled
            if settled := self.settled(tensor(intermediate_result.x), **seen):
                raise StopIteration

        options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxcor": 20, "ftol": 0, "gtol": 0}
        start = self.z.cpu().numpy().ravel()
        found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=step, options=options)
        self.stuck |= not settled and found.status != 1  # it stopped by itself: no step it knows lowers the energy

    def settled(self, z: Tensor, energy: float, gradient: Tensor) -> bool:
        """Record an iterate; tell whether descent has nothing more to gain."""
        self.z, self.gradient = z, gradient
        self.energies.append(energy)
        # after a step within the energy's rounding, line searches would only chase noise
        self.stuck = abs(self.energies[-2] - energy) <= 8 * torch.finfo(self.start.dtype).eps * energy
        slope, fall = _limits(self.start.dtype)
        return self.slope() <= slope and (self.stuck or self.decrease() <= fall)

    def slope(self) -> float:
        """Return the dimensionless norm of the gradient."""
        size = ((self.line[-1] - self.line[0]).square().sum() + self.z.square().sum()).sqrt()
        return (self.gradient.norm() * size).item() / max(2 * self.energies[-1], np.finfo(float).tiny)

    def decrease(self) -> float:
        before, now = self.energies[-1 - min(_WINDOW, len(self.energies) - 1)], self.energies[-1]
        return abs(before - now) / max(now, np.finfo(float).tiny)

    def diagnostics(self) -> tuple[float, ...]:
        shape = shape_diagnostics(self.metric, self.path(self.z), **self.sampling)
        return self.slope(), 0.0 if self.stuck else self.decrease(), *map(float, shape)


def shape_diagnostics(
    metric: NoiseMetric, path: Tensor, num_subsamples: int, batch_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `refinement`, `gap` and `speed` of paths, (B,) each, by max(2K, 4) + 1 + K evaluations a segment."""
    node, seen, fine = (
        metric.segment_lengths(path, num_subsamples=pieces, batch_size=batch_size)
        for pieces in (1, num_subsamples, max(2 * num_subsamples, 4))
    )
    gaps = path.diff(dim=1).flatten(2).norm(dim=2)
    return fine.sum(1) / node.sum(1), gaps.amax(1) / gaps.mean(1), seen.std(1, correction=0) / seen.mean(1)
