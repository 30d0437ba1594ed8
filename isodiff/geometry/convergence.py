"""When a discrete path may be called a geodesic, and what to say when it may not."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from isodiff.geometry.path_energy import NoiseMetric


class Diagnostics(NamedTuple):
    """What decides whether paths have converged, (B,) each."""

    gradient: Tensor
    """‖∇E‖ · ‖path‖ / 2E in dual norms, without unit; see `solve_geodesic`."""
    decrease: Tensor
    """Change of the energy over the last 20 iterations, relative to what is left."""
    refinement: Tensor
    """Length with every segment cut finely, over the length that sees the nodes alone."""
    gap: Tensor
    """Largest Euclidean distance between neighbouring nodes over the mean one."""
    speed: Tensor
    """Standard deviation of the segments' lengths in the metric over their mean."""


@dataclass(frozen=True)
class Criteria:
    """What a converged path satisfies, all of it: bounds on `Diagnostics`.

    Args:
        gradient: Most that the gradient may be.
        decrease: Most by which the energy may still have fallen over 20 iterations.
        refinement: Most by which the fine length may differ from that over nodes, as a share: 5 %. A path that jumps
            over what lies between its nodes is found out here.
        gap: Bound on the ratio of largest to mean gap.
        speed: Bound on the variation of speed.

    Raises:
        ValueError: If a bound is not positive.
    """

    gradient: float = 1e-5
    decrease: float = 1e-6
    refinement: float = 0.05
    gap: float = 3.0
    speed: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")

    def violations(self, found: Diagnostics) -> str:
        """Name every criterion that one path's diagnostics violate, with the values; empty if none."""
        found = Diagnostics(*map(float, found))
        rules = (
            ("gradient norm", found.gradient, found.gradient <= self.gradient, f"at most {self.gradient:g}"),
            ("relative decrease over 20 iterations", found.decrease, found.decrease <= self.decrease,
             f"at most {self.decrease:g}"),
            ("fine/node length", found.refinement, abs(found.refinement - 1) < self.refinement,
             f"{1 - self.refinement:g} to {1 + self.refinement:g}"),
            ("max/mean gap", found.gap, found.gap < self.gap, f"below {self.gap:g}"),
            ("speed variation", found.speed, found.speed < self.speed, f"below {self.speed:g}"),
        )  # fmt: skip
        return "; ".join(f"{name} {value:.3g}, accepted {limit}" for name, value, holds, limit in rules if not holds)


def default_criteria(dtype: torch.dtype) -> Criteria:
    """Return the criteria that a precision can meet: in float32, rounding leaves a gradient of some thousandths."""
    return Criteria() if dtype == torch.float64 else Criteria(gradient=1e-2, decrease=1e-3)


@torch.no_grad()
def shape_diagnostics(
    metric: NoiseMetric, path: Tensor, num_subsamples: int, batch_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `refinement`, `gap` and `speed` of paths (B, N+1, *S), (B,) each.

    Note:
        Costs max(2K, 4) + 1 + K evaluations of the metric's map a segment.
    """
    node, energy_sees, fine = (
        metric.segment_lengths(path, num_subsamples=pieces, batch_size=batch_size)
        for pieces in (1, num_subsamples, max(2 * num_subsamples, 4))
    )
    gaps = path.diff(dim=1).flatten(2).norm(dim=2)
    speed = energy_sees.std(1, correction=0) / energy_sees.mean(1)
    return fine.sum(1) / node.sum(1), gaps.amax(1) / gaps.mean(1), speed
