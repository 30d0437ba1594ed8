"""The toy: its domain, its maps in closed form, and its training."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from isodiff import toy
from isodiff.geometry import anisotropy, exact_isometry_loss

from .geometry.tensors import refusals

METRICS = ("stereographic", "chart_identity", "euclidean")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, opening: float) -> Tensor:
    x = toy.sample_sphere((count,), opening, generator()).double()
    return x / x.norm(dim=1, keepdim=True)


def test_points_are_uniform_on_the_sphere_without_its_cap() -> None:
    x, rim = toy.sample_sphere((20_000,), 120.0, generator()), math.cos(math.radians(120.0))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20_000))
    assert kstest(x[:, 2].numpy(), "uniform", args=(-1, 1 + rim)).pvalue > 0.01  # by height, after Archimedes
    assert kstest(torch.atan2(x[:, 1], x[:, 0]).numpy(), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_losses_are_those_of_the_networks_one_by_one_each_of_its_own_seed(metric: str) -> None:
    networks, x = toy.Autoencoders([1, 2, 3], 8).double(), torch.stack([points(7, 60), -points(7, 130), points(7, 90)])
    ours = toy.isometry_losses(networks, x, metric)
    for seed in (1, 2, 3):
        one = toy.Autoencoders([seed], 8).double()
        alone = exact_isometry_loss(lambda rows, one=one: one.encode(rows[None])[0], x[seed - 1], metric=metric)
        torch.testing.assert_close(ours[seed - 1], alone)
    many = toy.isometry_losses(networks, x.repeat(1, 600, 1), metric, traces="estimated", generator=generator(1))
    torch.testing.assert_close(many, ours, rtol=0.1, atol=0)


def test_classical_projections_have_their_anisotropy() -> None:
    x, h = points(20_000, 60.0), math.cos(math.radians(60.0))

    def measured(metric: str, f: Callable[[Tensor], Tensor]) -> float:
        return anisotropy(exact_isometry_loss(f, x, metric=metric), 3, 2, metric=metric).item()

    def stereographic(p: Tensor) -> Tensor:
        return p[:, :2] / (1 - p[:, 2:])

    conformal = ((1 + h) / 3 * ((1 - h) ** -3 - 1 / 8)) / ((1 - h) ** -1 - 1 / 2) ** 2
    assert measured("stereographic", stereographic) == pytest.approx(conformal, rel=0.03)
    assert measured("chart_identity", stereographic) == pytest.approx(1, abs=1e-10)
    assert measured("euclidean", lambda p: p[:, :2]) == pytest.approx(1, abs=1e-10)  # the orthographic projection


def test_great_circle_distance_is_exact_near_far_and_across() -> None:
    a = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for angle in (0.0, 1e-9, 1.0, math.pi - 1e-9, math.pi):
        b = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
        assert toy.great_circle_distance(a, b).item() == pytest.approx(angle, abs=1e-12)


def test_stress_ignores_scale_and_sees_the_rest() -> None:
    geodesic, other = torch.rand(2, 3, 50, generator=generator(), dtype=torch.float64)
    assert toy.distance_stress(7 * geodesic, geodesic).abs().max() < 1e-12
    cosine = torch.nn.functional.cosine_similarity(other, geodesic)
    torch.testing.assert_close(toy.distance_stress(other, geodesic), (1 - cosine**2).sqrt())


def train(networks: toy.Autoencoders, num_steps: int = 3, **options: object) -> toy.History:
    fixed = {"opening": 60.0, "batch_size": 64, "record_every": 75, "data_seed": 0, "probe_seed": 1}
    return toy.train(networks, num_steps=num_steps, **fixed | options)


def test_training_reconstructs_and_the_weight_makes_it_more_isometric() -> None:
    networks, weights = toy.Autoencoders([0, 0], 32), torch.tensor([0.0, 1.0])
    history = train(networks, 150, metric="stereographic", lambda_iso=weights, shared_data=True)
    assert history.steps.tolist() == [0, 75, 150]
    assert history.reconstruction[-1, 0] < 0.25 * history.reconstruction[0, 0]
    assert history.isometry[-1, 1] < history.isometry[-1, 0] - 0.05


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("traces", ["estimated", "exact"])
def test_every_metric_changes_the_weights_and_training_repeats_with_its_seeds(metric: str, traces: str) -> None:
    plain, once, again = (toy.Autoencoders([0], 8) for _ in range(3))
    train(plain, metric=None, lambda_iso=0.0)
    for networks in (once, again):
        train(networks, metric=metric, lambda_iso=1.0, traces=traces)
    assert (plain.weights[0] - once.weights[0]).abs().max() > 1e-6
    torch.testing.assert_close(once.weights[0], again.weights[0], rtol=0, atol=0)


test_bad_input_is_refused = refusals(
    (lambda: points(2, 180.0), "between 0 and 180 degrees, got 180"),
    (lambda: train(toy.Autoencoders([0], 8), metric=None, lambda_iso=0.0, data_seed=1), "from data_seed, got 1"),
)
