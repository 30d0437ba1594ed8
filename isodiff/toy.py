r"""Autoencoders of the two-sphere, many at once (Sec. 3.2, Fig. 2, II, III and IV of Hahm et al. 2024).

An encoder ``f: S² → ℝ²`` and a decoder ``ℝ² → ℝ³`` learn to reproduce points of the sphere, and the isometry loss of
Eq. 6 may ask the encoder to keep lengths as well. The pole ``(0, 0, 1)`` and the cap around it are left out: no map
from the whole sphere to the plane is injective (Borsuk and Ulam), so an encoder of all of it would have to tear
somewhere, and Π, the stereographic chart, is not defined at the pole.

Points are written by their angle ``ψ`` from the south pole, the middle of the domain, ``0 ≤ ψ ≤ ψ_max``, and their
longitude. ``N`` networks train side by side, each with its own weights, data and weight of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from isodiff.geometry import exact_traces, trace_samples
from isodiff.geometry.isometry import Metric


class Autoencoders(nn.Module):
    """``N`` perceptrons 3 → width → width → 2 and back, with tanh between the layers.

    Args:
        seeds: One a network, of its initial weights.
        width: Hidden units of each layer.
    """

    def __init__(self, seeds: Sequence[int], width: int = 64) -> None:
        """Draw Glorot-normal weights, network by network, so that each depends on its own seed alone."""
        super().__init__()
        sizes = ((3, width), (width, width), (width, 2), (2, width), (width, width), (width, 3))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights = nn.ParameterList(
            torch.stack([torch.randn(a, b, generator=g) * math.sqrt(2 / (a + b)) for g in generators]) for a, b in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(len(generators), 1, b) for _, b in sizes)

    def __len__(self) -> int:
        """Return the number of networks."""
        return len(self.biases[0])

    def encode(self, x: Tensor) -> Tensor:
        """Map points of the sphere to the plane, (N, B, 3) → (N, B, 2)."""
        return self._layers(x, 0)

    def decode(self, h: Tensor) -> Tensor:
        """Map the plane back to space, (N, B, 2) → (N, B, 3)."""
        return self._layers(h, 3)

    def _layers(self, x: Tensor, first: int) -> Tensor:
        for i in range(first, first + 3):
            x = torch.baddbmm(self.biases[i], x.tanh() if i > first else x, self.weights[i])
        return x


class History(NamedTuple):
    """What training left behind: values on held-out points, at the steps recorded."""

    steps: Tensor
    """Steps taken, (T,)."""
    reconstruction: Tensor
    """Mean squared distance between points and their reconstruction, (T, N)."""
    isometry: Tensor
    """Exact loss of Eq. 6 in the metric trained with, (T, N)."""


def sample_sphere(shape: Sequence[int], opening: float, generator: torch.Generator) -> Tensor:
    """Draw points uniformly from the unit sphere without the cap around the pole.

    Args:
        shape: Leading shape of the result.
        opening: Angle from the pole (0, 0, 1) to the rim of the cap, in degrees, between 0 and 180.
        generator: Source of randomness.

    Returns:
        Unit vectors, (*shape, 3).

    Raises:
        ValueError: If the opening is out of range.
    """
    if not 0 < opening < 180:
        raise ValueError(f"opening must be between 0 and 180 degrees, got {opening}")
    uniform = torch.rand(*shape, 2, generator=generator)
    height = -1 + uniform[..., 0] * (1 + math.cos(math.radians(opening)))  # Archimedes: heights are uniform
    return from_angles(torch.acos(-height), 2 * math.pi * uniform[..., 1])


def from_angles(psi: Tensor, longitude: Tensor) -> Tensor:
    """Return the unit vector at angle ``psi`` from the south pole and a longitude, both in radians."""
    around = torch.stack([longitude.cos(), longitude.sin()], -1) * psi.sin()[..., None]
    return torch.cat([around, -psi.cos()[..., None]], -1)


def isometry_losses(
    networks: Autoencoders,
    x: Tensor,
    metric: Metric,
    *,
    traces: Literal["estimated", "exact"] = "exact",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return Eq. 6 for every network on its own points.

    Args:
        networks: Autoencoders, of which the encoders count.
        x: Points, (N, B, 3).
        metric: As in `isometry_loss`.
        traces: ``"estimated"`` with one probe a point, or ``"exact"``.
        generator: Source of the probes.

    Returns:
        One loss a network, (N,), differentiable in its weights.
    """

    def encode_rows(rows: Tensor) -> Tensor:
        return networks.encode(rows.reshape(x.shape)).reshape(-1, 2)

    rows = x.reshape(-1, 3)
    if traces == "exact":
        pair = exact_traces(encode_rows, rows, metric=metric)
    else:
        pair = trace_samples(encode_rows, rows, metric=metric, generator=generator)
    first, second = (t.reshape(len(networks), -1).mean(dim=1) for t in pair)
    return second / first.square()


def train(
    networks: Autoencoders,
    *,
    metric: Metric | None,
    lambda_iso: float | Tensor,
    opening: float,
    num_steps: int,
    batch_size: int,
    traces: Literal["estimated", "exact"] = "estimated",
    learning_rate: float = 3e-3,
    record_every: int = 100,
    data_seed: int = 0,
    probe_seed: int = 1,
    shared_data: bool = False,
) -> History:
    """Minimise reconstruction error plus ``λ_iso`` times Eq. 6, with Adam and a cosine schedule, in place.

    Args:
        networks: What to train.
        metric: Metric of Eq. 6; None trains on reconstruction only and records the stereographic loss.
        lambda_iso: Weight of Eq. 6; a number or one a network, (N,).
        opening: As in `sample_sphere`, degrees.
        num_steps: Steps.
        batch_size: Fresh points a step and network.
        traces: As in `isometry_losses`.
        learning_rate: Of Adam, at the start.
        record_every: Steps between two records.
        data_seed: Seed of the points; the same seed gives every method the same points.
        probe_seed: Seed of the probes, different from ``data_seed``.
        shared_data: Give every network the same points.

    Returns:
        Losses on 512 held-out points, from step 0 to the last.

    Raises:
        ValueError: If ``probe_seed`` equals ``data_seed``.
    """
    if probe_seed == data_seed:
        raise ValueError(f"probe_seed must differ from data_seed, got {probe_seed} for both")
    device = networks.biases[0].device
    data, probes = (torch.Generator().manual_seed(s) for s in (data_seed, probe_seed))

    def draw(count: int) -> Tensor:
        points = sample_sphere((1 if shared_data else len(networks), count), opening, data)
        return points.expand(len(networks), -1, -1).to(device)

    held_out = draw(512)
    optimizer = torch.optim.Adam(networks.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    weight = torch.as_tensor(lambda_iso, device=device)
    records = []
    for step in range(num_steps + 1):
        if step % record_every == 0 or step == num_steps:
            with torch.no_grad():
                error = reconstruction_errors(networks, held_out)
                iso = isometry_losses(networks, held_out, metric or "stereographic")
            records.append((torch.tensor(step), error.cpu(), iso.cpu()))
        if step == num_steps:
            break
        x = draw(batch_size)
        loss = reconstruction_errors(networks, x)
        if metric is not None:
            loss = loss + weight * isometry_losses(networks, x, metric, traces=traces, generator=probes)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
    return History(*(torch.stack(column) for column in zip(*records, strict=True)))


def reconstruction_errors(networks: Autoencoders, x: Tensor) -> Tensor:
    """Return the mean squared distance between points and their reconstructions, (N, B, 3) → (N,)."""
    return (networks.decode(networks.encode(x)) - x).square().sum(-1).mean(-1)


def great_circle_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between unit vectors in radians, stable for near and for opposite points, (..., 3) → (...)."""
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def distance_stress(latent: Tensor, geodesic: Tensor) -> Tensor:
    """Measure how far latent distances are from proportional to geodesic ones, ``min_c ‖c d − g‖ / ‖g‖``.

    Kruskal's stress with the best common scale ``c = ⟨d, g⟩ / ⟨d, d⟩``, as a scaled isometry may choose its scale.

    Args:
        latent: Distances ``d`` in the plane, (..., P).
        geodesic: Distances ``g`` on the sphere, (..., P).

    Returns:
        Stress, (...): 0 is perfect, 1 means that nothing is learnt.
    """
    scale = (latent * geodesic).sum(-1, keepdim=True) / latent.square().sum(-1, keepdim=True)
    return (scale * latent - geodesic).norm(dim=-1) / geodesic.norm(dim=-1)


# Classical azimuthal maps, by the distance ρ(ψ) from the middle of the map.
PROJECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "orthographic": torch.sin,
    "stereographic": lambda psi: torch.tan(psi / 2),
    "equidistant": lambda psi: psi,
    "equal-area": lambda psi: 2 * torch.sin(psi / 2),
}


def project(x: Tensor, radius: Callable[[Tensor], Tensor]) -> Tensor:
    """Map unit vectors to the plane by an azimuthal projection: keep the longitude, put ``ψ`` at ``ρ(ψ)``."""
    psi = torch.atan2(x[..., :2].norm(dim=-1), -x[..., 2])
    return radius(psi)[..., None] * torch.nn.functional.normalize(x[..., :2], dim=-1)


class Graticule(NamedTuple):
    """Parallels and meridians of the domain."""

    latitudes: Tensor
    """Of the parallels, in degrees, (K,)."""
    parallels: Tensor
    """Points along them, (K, P, 3)."""
    meridians: Tensor
    """Points along the meridians, (M, P, 3)."""


def graticule(opening: float, *, num_parallels: int = 9, num_meridians: int = 12, num_points: int = 181) -> Graticule:
    """Return evenly spaced parallels, the rim of the cap the last of them, and meridians.

    Args:
        opening: As in `sample_sphere`, degrees.
        num_parallels: K.
        num_meridians: M.
        num_points: P.

    Returns:
        The lines of the map.
    """
    rim = math.pi - math.radians(opening)
    psi = torch.linspace(0, rim, num_parallels + 1)[1:]
    turn = torch.linspace(0, 2 * math.pi, num_points)
    parallels = from_angles(psi[:, None].expand(-1, num_points), turn.expand(num_parallels, -1))
    longitude = torch.linspace(0, 2 * math.pi, num_meridians + 1)[:-1, None].expand(-1, num_points)
    meridians = from_angles(torch.linspace(0, rim, num_points).expand(num_meridians, -1), longitude)
    return Graticule(torch.rad2deg(psi) - 90, parallels, meridians)


def align(latent: Tensor, reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the similarity (shift, turn or mirror, scale) that brings latent points closest to reference points.

    The loss of Eq. 6 and distances up to scale do not see a similarity, so maps are drawn after removing it
    (Procrustes analysis).

    Args:
        latent: Points, (P, 2).
        reference: Where they should be, (P, 2).

    Returns:
        The similarity, (..., 2) → (..., 2).
    """
    centre, target = latent.mean(0), reference.mean(0)
    u, sigma, vh = torch.linalg.svd((latent - centre).mT @ (reference - target))
    scale = sigma.sum() / (latent - centre).square().sum()
    return lambda h: scale * (h - centre) @ u @ vh + target
