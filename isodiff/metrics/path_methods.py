r"""Ways to draw a path between two images at a noise level: in closed form, or searched for.

A *method* is called with a level, the ends and a number of segments, and draws paths of as many nodes and one more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isodiff.geometry.geodesics import solve_geodesic
from isodiff.geometry.interpolation import density_path, noise_diffusion
from isodiff.geometry.norm_aware import norm_aware_path
from isodiff.geometry.sphere import lerp, slerp

if TYPE_CHECKING:
    from isodiff.diffusion.noise_level import NoiseLevel


@dataclasses.dataclass(frozen=True)
class Paths:
    """What a method draws.

    Attributes:
        nodes: (B, N+1, *S).
        converged: (B,) booleans, all true for a method without a test of convergence, such as a closed form.
        reason: Per pair, why it is not; empty if it is.
        iterations: (B,), 0 for such a method.
    """

    nodes: Tensor
    converged: Tensor
    reason: list[str]
    iterations: Tensor

    @classmethod
    def closed(cls, nodes: Tensor) -> Paths:
        """Return the paths of a method that has no test of convergence."""
        rows = len(nodes)
        return cls(nodes, torch.ones(rows, dtype=torch.bool), [""] * rows, torch.zeros(rows, dtype=torch.long))


@dataclasses.dataclass(frozen=True)
class Ends:
    """Pairs of images and their points at the level, (B, C, H, W) each."""

    a: Tensor
    b: Tensor
    image_a: Tensor
    image_b: Tensor


Method = Callable[["NoiseLevel", Ends, int], Paths]
"""Draws paths of N segments between the ends at a level."""


def _closed(path: Callable[[Tensor, Tensor, float], Tensor]) -> Method:
    def draw(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
        positions = torch.linspace(0, 1, num_segments + 1, dtype=torch.float64).tolist()
        return Paths.closed(torch.stack([path(ends.a, ends.b, tau) for tau in positions], 1))

    return draw


def _norm_aware(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    """Draw norm-aware paths between the ends brought to the norm of noise; the norm taken off comes back linearly.

    Below T images are shorter than noise: the published cost, made for x_T, would send the path out to √(n−1) and back.
    """
    noise = (ends.a[0].numel() - 1) ** 0.5
    share_a, share_b = ((x.flatten(1).norm(dim=1) / noise).view(-1, *[1] * x.ndim) for x in (ends.a, ends.b))
    nodes = norm_aware_path(ends.a / share_a[:, 0], ends.b / share_b[:, 0], num_segments)
    tau = torch.linspace(0, 1, num_segments + 1).to(nodes).view(-1, *[1] * (ends.a.ndim - 1))
    return Paths.closed(nodes * ((1 - tau) * share_a + tau * share_b))


def _noise_diffusion(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    def point(a: Tensor, b: Tensor, tau: float) -> Tensor:
        return noise_diffusion(a, b, tau, image_a=ends.image_a, image_b=ends.image_b, alpha_bar=level.alpha**2)

    return _closed(point)(level, ends, num_segments)


def _density(level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
    doublings = num_segments.bit_length() - 1
    if 2**doublings != num_segments:
        raise ValueError(f"num_segments must be a power of 2 for the density path; got {num_segments}")
    nodes = density_path(lambda x: -level.eps(x), ends.a, ends.b, num_levels=doublings, iterations_per_level=100)
    return Paths.closed(nodes)


@dataclasses.dataclass(frozen=True)
class Tangential:
    """The tangential geodesic, a `Method`.

    Attributes:
        rho: ρ of the metric.
        num_subsamples: K, pieces a segment.
        max_iterations: Of L-BFGS, a pair.
        initial: Where it starts, ``"slerp"`` as published or ``"lerp"``.
    """

    rho: float = 1e-3
    num_subsamples: int = 2
    max_iterations: int = 100
    initial: str = "slerp"

    def __call__(self, level: NoiseLevel, ends: Ends, num_segments: int) -> Paths:
        """Solve for the paths."""
        found = solve_geodesic(
            level.score,
            ends.a,
            ends.b,
            sigma=level.sigma,
            num_segments=num_segments,
            rho=self.rho,
            num_subsamples=self.num_subsamples,
            max_iterations=self.max_iterations,
            initial=self.initial,
            batch_size=64,
        )
        return Paths(found.path, found.converged, found.reason, found.iterations)


CLOSED_FORM: dict[str, Method] = {
    "lerp": _closed(lerp),
    "slerp": _closed(slerp),
    "noise_diffusion": _noise_diffusion,
}
"""Methods that cost nothing beside the sampling."""

SOLVED: dict[str, Method] = {"norm_aware": _norm_aware, "density": _density, "tangential": Tangential()}
"""Methods that search for their path, the last two with the model's score."""
