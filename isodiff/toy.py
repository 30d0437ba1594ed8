"""Autoencoders ``S² → ℝ² → ℝ³`` of the sphere, many at once (Sec. 3.2, Fig. 2, II, III and IV of Hahm et al. 2024).

The cap within `opening` degrees of the pole (0, 0, 1) is left out: no continuous map of the whole sphere to the plane
is injective (Borsuk and Ulam).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from isodiff.geometry import Metric, exact_traces, trace_samples

Traces = Literal["estimated", "exact"]


class Autoencoders(nn.Module):
    """``N`` perceptrons 3 → width → width → 2 and back, tanh between layers; Glorot-normal, each from its own seed."""

    def __init__(self, seeds: Sequence[int], width: int = 64) -> None:
        super().__init__()
        sizes = ((3, width), (width, width), (width, 2), (2, width), (width, width), (width, 3))
        generators = [Generator().manual_seed(seed) for seed in seeds]
        self.weights = nn.ParameterList(
            torch.stack([torch.randn(a, b, generator=g) * math.sqrt(2 / (a + b)) for g in generators]) for a, b in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(len(generators), 1, b) for _, b in sizes)

    def __len__(self) -> int:
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
    """Values on 512 held-out points at the steps recorded, the first and last among them."""

    steps: Tensor  # (T,)
    reconstruction: Tensor  # (T, N): the mean squared distance of points from theirs
    isometry: Tensor  # (T, N): the exact loss of Eq. 6


def sample_sphere(shape: Sequence[int], opening: float, generator: Generator) -> Tensor:
    """Draw points uniformly from the unit sphere without the cap around the pole, (*shape, 3)."""
    if not 0 < opening < 180:
        raise ValueError(f"opening must be between 0 and 180 degrees, got {opening}")
    rise, turn = torch.rand(*shape, 2, generator=generator).unbind(-1)
    height = -1 + rise * (1 + math.cos(math.radians(opening)))  # Archimedes: heights are uniform
    return from_angles(torch.acos(-height), 2 * math.pi * turn)


def from_angles(psi: Tensor, longitude: Tensor) -> Tensor:
    """Return the unit vector at angle ``psi`` from the south pole and a longitude, both in radians."""
    return torch.stack([longitude.cos() * psi.sin(), longitude.sin() * psi.sin(), -psi.cos()], -1)


def isometry_losses(
    networks: Autoencoders, x: Tensor, metric: Metric, *, traces: Traces = "exact", generator: Generator | None = None
) -> Tensor:
    """Return Eq. 6 for every encoder on its own points, (N, B, 3) → (N,): exact, or from one probe a point."""
    take = exact_traces if traces == "exact" else partial(trace_samples, generator=generator)
    pair = take(lambda rows: networks.encode(rows.reshape(x.shape)).reshape(-1, 2), x.reshape(-1, 3), metric=metric)
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
    traces: Traces = "estimated",
    record_every: int,
    data_seed: int,
    probe_seed: int,
    shared_data: bool = False,
) -> History:
    """Minimise reconstruction error plus ``λ_iso``, a number or (N,), times Eq. 6; without a metric only record it."""
    if probe_seed == data_seed:
        raise ValueError(f"probe_seed must differ from data_seed, got {probe_seed} for both")
    device = networks.biases[0].device
    data, probes = (Generator().manual_seed(s) for s in (data_seed, probe_seed))

    def draw(count: int) -> Tensor:
        points = sample_sphere((1 if shared_data else len(networks), count), opening, data)
        return points.expand(len(networks), -1, -1).to(device)

    held_out = draw(512)
    optimizer = torch.optim.Adam(networks.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    weight, records = torch.as_tensor(lambda_iso, device=device), []
    for step in range(num_steps + 1):
        if step % record_every == 0 or step == num_steps:
            with torch.no_grad():
                error = reconstruction_errors(networks, held_out)
                iso = isometry_losses(networks, held_out, metric or "stereographic")
            records.append((torch.tensor(step), error.cpu(), iso.cpu()))
        if step == num_steps:
            break
        loss = reconstruction_errors(networks, x := draw(batch_size))
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
    """Return Kruskal's stress ``min_c ‖c d − g‖ / ‖g‖``, (..., P) → (...): 0 for a scaled isometry, at most 1."""
    scale = (latent * geodesic).sum(-1, keepdim=True) / latent.square().sum(-1, keepdim=True)
    return (scale * latent - geodesic).norm(dim=-1) / geodesic.norm(dim=-1)
