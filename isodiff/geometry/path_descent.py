r"""Descent on the energy of a discrete path with fixed ends, in coordinates that undo its stiffness.

Moving a node strains the two segments that meet there, so that the Hessian of the energy is, up to the metric, the
path's Laplacian ``L = N · tridiag(−1, 2, −1)``, whose condition number grows as N². Coordinates z with

    x = lerp(a, b) + L^{−1/2} z,        ‖z‖² = ‖x − lerp‖²_L = N Σᵢ‖Δxᵢ‖² − ‖b − a‖²,

take it out: what is left to the optimiser is the condition of the metric itself. Where that is constant, a step of
steepest descent in z is one that solves the tridiagonal system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from isodiff.geometry.convergence import Criteria, shape_diagnostics
from isodiff.geometry.path_energy import NoiseMetric

Report = Callable[[int, float], None]

_WINDOW = 20  # iterations over which the energy must have stopped falling
_HISTORY = 20  # steps that L-BFGS remembers
_ROUNDING = 8  # units in the last place by which energies of one path may differ
_TOO_LONG = 1e6  # times the initial energy: what a line search is told where the energy is not finite


class Solution(NamedTuple):
    """One pair's path, (1, N+1, *S), its energy, length and lower bound, (1,), and values of `Diagnostics`."""

    path: Tensor
    energy: Tensor
    length: Tensor
    lower_bound: Tensor
    iterations: int
    diagnostics: tuple[float, ...]


class PathProblem:
    """One pair's energy in the coordinates z, and what its descent has seen."""

    def __init__(
        self, metric: NoiseMetric, path: Tensor, num_subsamples: int, batch_size: int | None, criteria: Criteria
    ) -> None:
        self.metric, self.start, self.criteria = metric, path, criteria
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
            raise ValueError(
                f"the energy of the initial path must be finite, got {energy}: "
                "the score, or the map that makes the metric, is not finite on it or overflows"
            )
        self.energies, self.stuck = [energy], False

    def path(self, z: Tensor) -> Tensor:
        """Return the path (1, N+1, *S) of coordinates (N−1, n)."""
        inner = (self.line[1:-1] + self.root @ z).to(self.start.dtype).reshape(self.start[:, 1:-1].shape)
        return torch.cat([self.start[:, :1], inner, self.start[:, -1:]], 1)

    def evaluate(self, z: Tensor) -> tuple[float, Tensor]:
        """Return E and ∇_z E, (N−1, n) in float64."""
        energy, gradient = self.metric.energy_and_gradient(self.path(z), **self.sampling)
        return energy.item(), self.root @ gradient[0, 1:-1].flatten(1).double()

    def settled(self, z: Tensor, energy: float, gradient: Tensor) -> bool:
        """Record an iterate; tell whether descent has nothing more to gain."""
        self.z, self.gradient = z, gradient
        self.energies.append(energy)
        # after a step within the energy's rounding, line searches would only chase noise
        self.stuck = abs(self.energies[-2] - energy) <= _ROUNDING * torch.finfo(self.start.dtype).eps * energy
        return self.slope() <= self.criteria.gradient and (self.stuck or self.decrease() <= self.criteria.decrease)

    def slope(self) -> float:
        """Return the dimensionless norm of the gradient."""
        chord = (self.line[-1] - self.line[0]).square().sum()
        size = (chord + self.z.square().sum()).sqrt()
        return (self.gradient.norm() * size).item() / max(2 * self.energies[-1], np.finfo(float).tiny)

    def decrease(self) -> float:
        """Return the relative change of the energy over the last iterations."""
        before, now = self.energies[-1 - min(_WINDOW, len(self.energies) - 1)], self.energies[-1]
        return abs(before - now) / max(now, np.finfo(float).tiny)

    def solution(self) -> Solution:
        """Return the last iterate."""
        path = self.path(self.z)
        shape = shape_diagnostics(self.metric, path, **self.sampling)
        return Solution(
            path=path,
            energy=path.new_tensor([self.energies[-1]]),
            length=self.metric.length(path, **self.sampling),
            lower_bound=self.metric.bound(path[:, 0], path[:, -1]),
            iterations=len(self.energies) - 1,
            diagnostics=(self.slope(), 0.0 if self.stuck else self.decrease(), *map(float, shape)),
        )


def lbfgs(problem: PathProblem, max_iterations: int, report: Report | None) -> None:
    """Descend by L-BFGS with a strong Wolfe line search (Liu and Nocedal 1989)."""
    seen, settled = {}, False

    def tensor(x: np.ndarray) -> Tensor:
        return torch.tensor(x, device=problem.z.device).reshape(problem.z.shape)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, gradient = problem.evaluate(tensor(x))
        if not (np.isfinite(energy) and torch.isfinite(gradient).all()):
            return _TOO_LONG * (problem.energies[0] + 1), np.zeros_like(x)
        seen.update(energy=energy, gradient=gradient)
        return energy, gradient.cpu().numpy().ravel()

    def step(intermediate_result: OptimizeResult) -> None:
        nonlocal settled
        settled = problem.settled(tensor(intermediate_result.x), **seen)
        if report is not None:
            report(len(problem.energies) - 1, problem.energies[-1])
        if settled:
            raise StopIteration

    start = problem.z.cpu().numpy().ravel()
    options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations, "maxcor": _HISTORY, "ftol": 0.0, "gtol": 0.0}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=step, options=options)
    problem.stuck |= not settled and found.status != 1  # it stopped by itself: no step it knows lowers the energy


def adam(problem: PathProblem, max_iterations: int, learning_rate: float, report: Report | None) -> None:
    """Descend by Adam with a cosine schedule (Kingma and Ba 2015), in steps relative to the ends' distance."""
    z = problem.z.clone()
    scale = (problem.line[-1] - problem.line[0]).square().mean().sqrt().item()
    optimizer = torch.optim.Adam([z], lr=learning_rate * scale)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iterations)
    z.grad = problem.gradient
    for iteration in range(1, max_iterations + 1):
        optimizer.step()
        schedule.step()
        energy, z.grad = problem.evaluate(z)
        settled = problem.settled(z.clone(), energy, z.grad)
        if report is not None:
            report(iteration, energy)
        if settled or not np.isfinite(energy):
            break
