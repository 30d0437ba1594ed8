"""Geodesics in noise space: the discrete paths of least energy between pairs of points.

Metrics are in `noise_metrics`, initial paths in `initial_paths`, the descent in `path_descent` and what decides whether
it has arrived in `convergence`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from isodiff.geometry.convergence import Criteria, Diagnostics, default_criteria
from isodiff.geometry.initial_paths import InitialName, initial_path
from isodiff.geometry.noise_metrics import MetricName, named_metric
from isodiff.geometry.path_descent import PathProblem, Solution, adam, lbfgs
from isodiff.geometry.path_energy import NoiseMetric
from isodiff.geometry.pullback_metrics import Score, require_sigma

Optimizer = Literal["auto", "lbfgs", "adam"]
Callback = Callable[[int, int, float], None]
"""Called after every iteration with the number of the pair, that of the iteration, and the energy."""


@dataclass(frozen=True)
class GeodesicResult:
    """Paths, one per pair of ends, and whether to trust them."""

    path: Tensor
    """Nodes, (B, N+1, *S); the ends are those given."""
    energy: Tensor
    """E, (B,); of the tangential metric, in units of ŝ = σ²s (divide by σ⁴ for those of s)."""
    length: Tensor
    """L, (B,), as the energy sees it; E ≥ ½ L²."""
    lower_bound: Tensor
    """No path between the ends has less energy, (B,); zero where no bound is known."""
    converged: Tensor
    """Whether all criteria hold, (B,), booleans."""
    reason: list[str]
    """Per pair, the criteria that do not hold, with their values; empty if converged."""
    iterations: Tensor
    """Of the optimiser, (B,)."""
    diagnostics: Diagnostics
    """The values that decide on convergence."""


def solve_geodesic(
    score: Score,
    a: Tensor,
    b: Tensor,
    *,
    sigma: float,
    num_segments: int,
    metric: MetricName | NoiseMetric = "tangential",
    rho: float = 1e-3,
    num_subsamples: int = 4,
    initial: InitialName | Tensor = "slerp",
    optimizer: Optimizer = "auto",
    max_iterations: int = 1000,
    learning_rate: float = 0.1,
    batch_size: int | None = None,
    criteria: Criteria | None = None,
    callback: Callback | None = None,
) -> GeodesicResult:
    r"""Minimise the energy of paths between pairs of points.

    Tangential metric (arXiv 2510.05509): E = ½NK Σ‖ŝ_{j+1} − ŝ_j‖² + ½Nρ Σ‖x_{i+1} − x_i‖² with ŝ = σ²s.

    Args:
        score: s = ∇ log p_σ, row by row, (M, *S) → (M, *S) for any M; for a model of the noise, −ε_θ/σ.
        a: Starts, (B, *S). Their precision is the one computed in, float32 or better.
        b: Ends, (B, *S); no row equal to that of a.
        sigma: σ, positive.
        num_segments: N, at least 2.
        metric: ``"tangential"``, ``"euclidean"``, ``"sphere"``, ``"density"``, ``"score"``, or any `NoiseMetric`, which
            has its own score, σ and ρ.
        rho: ρ of the tangential metric, at least 0.
        num_subsamples: K, pieces a segment. With K = 1 a path jumps over ridges between its nodes at no cost.
        initial: ``"slerp"``, ``"lerp"``, or a path (B, N+1, *S). It decides which local minimum is found.
        optimizer: ``"lbfgs"`` (which ``"auto"`` means) or ``"adam"`` with a cosine schedule.
        max_iterations: Per pair.
        learning_rate: Of Adam, at the start, in units of the root mean square of b − a.
        batch_size: Most points at which the score is evaluated at once; bounds the memory. All of a path if not given.
        criteria: Of convergence; `default_criteria` of the precision if not given.
        callback: Called after every iteration with pair, iteration and energy.

    Returns:
        A `GeodesicResult`, without graph. A path that has not converged is a result too, with ``converged`` false and
        the reason; where that is the fine/node length or the speed alone, more segments are needed.

    Raises:
        ValueError: If an option is unknown or out of range, a and b do not fit, are not finite or coincide, the score
            changes the shape of its argument, or the energy of an initial path is not finite.

    Note:
        Pairs are solved one by one and do not depend on each other, so the cost is linear in B: NK + 1 evaluations of
        the score, forward and backward, an iteration. The gradient's norm is made dimensionless as

            ‖∇_z E‖ ‖x‖_L / 2E,        ‖∇_z E‖² = ∇Eᵀ L⁻¹ ∇E,        ‖x‖²_L = N Σ‖Δxᵢ‖²,

        half the largest relative change of E, to first order, per relative change of the path; no unit of x or of the
        metric enters. The minimum found is a local one; `lower_bound` is global.
    """
    require_sigma(sigma)
    if optimizer not in get_args(Optimizer):
        raise ValueError(f"optimizer must be one of {get_args(Optimizer)}, got {optimizer!r}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    start = initial_path(initial, a, b, num_segments).detach()
    start = start.to(torch.promote_types(start.dtype, torch.float32))
    criteria = criteria or default_criteria(start.dtype)

    solved = []
    for pair, path in enumerate(start):
        here = metric
        if not isinstance(metric, NoiseMetric):
            radius = path[[0, -1]].flatten(1).norm(dim=1).mean().item()
            here = named_metric(metric, score, sigma=sigma, rho=rho, radius=radius)
        problem = PathProblem(here, path[None], num_subsamples, batch_size, criteria)
        report = None if callback is None else functools.partial(callback, pair)
        if optimizer == "adam":
            adam(problem, max_iterations, learning_rate, report)
        else:
            lbfgs(problem, max_iterations, report)
        solved.append(problem.solution())
    return _collect(solved, criteria)


def continue_geodesic(
    levels: Sequence[tuple[Score, float]], a: Tensor, b: Tensor, *, num_segments: int, **options: object
) -> list[GeodesicResult]:
    """Solve at one noise level after another, each solution the start of the next.

    At high noise the data's gaps are filled and the geodesic is nearly straight; lowering σ then deforms it, where one
    from scratch would stay in the wrong homotopy class.

    Args:
        levels: Pairs (score, σ), from high to low σ.
        a: Starts, (B, *S), the same at every level.
        b: Ends, (B, *S).
        num_segments: N, at least 2.
        **options: Of `solve_geodesic`; ``initial`` is that of the first level.

    Returns:
        A result per level, in their order.

    Raises:
        ValueError: If there is no level, σ does not fall, or as `solve_geodesic`.
    """
    sigmas = [sigma for _, sigma in levels]
    if not sigmas or any(not low < high for high, low in itertools.pairwise(sigmas)):
        raise ValueError(f"levels must hold at least one (score, sigma), sigma falling; got sigma = {sigmas}")
    results: list[GeodesicResult] = []
    for score, sigma in levels:
        results.append(solve_geodesic(score, a, b, sigma=sigma, num_segments=num_segments, **options))
        options["initial"] = results[-1].path
    return results


def _collect(solved: Sequence[Solution], criteria: Criteria) -> GeodesicResult:
    columns = zip(*(solution.diagnostics for solution in solved), strict=True)
    found = Diagnostics(*(torch.tensor(column, dtype=torch.float64) for column in columns))
    reason = [criteria.violations(Diagnostics(*row)) for row in zip(*found, strict=True)]
    return GeodesicResult(
        path=torch.cat([solution.path for solution in solved]),
        energy=torch.cat([solution.energy for solution in solved]),
        length=torch.cat([solution.length for solution in solved]),
        lower_bound=torch.cat([solution.lower_bound for solution in solved]),
        converged=torch.tensor([not text for text in reason]),
        reason=reason,
        iterations=torch.tensor([solution.iterations for solution in solved]),
        diagnostics=found,
    )
