"""The toy: its domain, its maps in closed form, and its training."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from isodiff import toy
from isodiff.geometry import anisotropy, exact_isometry_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, opening: float) -> Tensor:
    x = toy.sample_sphere((count,), opening, generator()).double()
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("opening", [20.0, 120.0])
def test_points_are_uniform_on_the_sphere_without_its_cap(opening: float) -> None:
    x, rim = toy.sample_sphere((20_000,), opening, generator()), math.cos(math.radians(opening))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20_000))
    assert kstest(x[:, 2].numpy(), "uniform", args=(-1, 1 + rim)).pvalue > 0.01  # by height, after Archimedes
    assert kstest(torch.atan2(x[:, 1], x[:, 0]).numpy(), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 0.01


def test_each_network_depends_on_its_seed_alone() -> None:
    both, alone, x = toy.Autoencoders([1, 2], 8), toy.Autoencoders([2], 8), points(5, 60).float()
    torch.testing.assert_close(both.encode(x.expand(2, -1, -1))[1], alone.encode(x[None])[0])


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity", "euclidean"])
def test_losses_are_those_of_the_networks_one_by_one(metric: str) -> None:
    networks = toy.Autoencoders([1, 2, 3], 8).double()
    x = torch.stack([points(7, 60), -points(7, 130), points(7, 90)])
    ours = toy.isometry_losses(networks, x, metric)
    for i in range(3):
        alone = exact_isometry_loss(lambda rows, i=i: networks.encode(rows.expand(3, -1, -1))[i], x[i], metric=metric)
        torch.testing.assert_close(ours[i], alone)
    many = toy.isometry_losses(networks, x.repeat(1, 600, 1), metric, traces="estimated", generator=generator(1))
    torch.testing.assert_close(many, ours, rtol=0.1, atol=0)


def stereographic(x: Tensor) -> Tensor:
    return x[..., :2] / (1 - x[..., 2:])


def test_classical_projections_have_their_anisotropy() -> None:
    x, h = points(20_000, 60.0), math.cos(math.radians(60.0))
    conformal = ((1 + h) / 3 * ((1 - h) ** -3 - 1 / 8)) / ((1 - h) ** -1 - 1 / 2) ** 2
    found = anisotropy(exact_isometry_loss(stereographic, x), 3, 2).item()
    assert found == pytest.approx(conformal, rel=0.03)
    chart = anisotropy(exact_isometry_loss(stereographic, x, metric="chart_identity"), 3, 2).item()
    assert chart == pytest.approx(1, abs=1e-10)
    orthographic = exact_isometry_loss(lambda p: p[:, :2], x, metric="euclidean")
    assert anisotropy(orthographic, 3, 2, metric="euclidean").item() == pytest.approx(1, abs=1e-10)


def test_great_circle_distance_is_exact_near_far_and_across() -> None:
    a = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for angle in (0.0, 1e-9, 1.0, math.pi - 1e-9, math.pi):
        b = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
        assert toy.great_circle_distance(a, b).item() == pytest.approx(angle, abs=1e-12)


def test_stress_ignores_scale_and_sees_the_rest() -> None:
    geodesic = torch.rand(3, 50, generator=generator(), dtype=torch.float64)
    assert toy.distance_stress(7 * geodesic, geodesic).abs().max() < 1e-12
    other = torch.rand(3, 50, generator=generator(1), dtype=torch.float64)
    stress = toy.distance_stress(other, geodesic)
    cosine = torch.nn.functional.cosine_similarity(other, geodesic)
    torch.testing.assert_close(stress, (1 - cosine**2).sqrt())


def train(seeds: list[int], width: int = 8, num_steps: int = 3, **options: object) -> tuple[Tensor, toy.History]:
    """Return the first layer's weights after the training, and its history."""
    networks, fixed = toy.Autoencoders(seeds, width), {"opening": 60.0, "batch_size": 64, "record_every": 75}
    seeds = {"data_seed": 0, "probe_seed": 1}
    history = toy.train(networks, num_steps=num_steps, **fixed | seeds | options)
    return networks.weights[0].detach(), history


def test_training_reconstructs_and_the_weight_makes_it_more_isometric() -> None:
    options = {"metric": "stereographic", "lambda_iso": torch.tensor([0.0, 1.0]), "shared_data": True}
    _, history = train([0, 0], 32, 150, **options)
    assert history.steps.tolist() == [0, 75, 150]
    assert history.reconstruction[-1, 0] < 0.25 * history.reconstruction[0, 0]
    assert history.isometry[-1, 1] < history.isometry[-1, 0] - 0.05


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity", "euclidean"])
@pytest.mark.parametrize("traces", ["estimated", "exact"])
def test_every_metric_changes_the_weights_and_training_repeats_with_its_seeds(metric: str, traces: str) -> None:
    plain, _ = train([0], metric=None, lambda_iso=0.0)
    once, again = (train([0], metric=metric, lambda_iso=1.0, traces=traces)[0] for _ in range(2))
    assert (plain - once).abs().max() > 1e-6
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_bad_input_is_refused() -> None:
    for opening in (0.0, 180.0):
        with pytest.raises(ValueError, match=f"between 0 and 180 degrees, got {opening}"):
            toy.sample_sphere((2,), opening, generator())
    with pytest.raises(ValueError, match="probe_seed must differ from data_seed, got 4"):
        train([0], metric=None, lambda_iso=0.0, data_seed=4, probe_seed=4)
