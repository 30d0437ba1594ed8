"""The toy: its domain, its maps in closed form, and its training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isodiff import toy
from isodiff.geometry import exact_isometry_loss, isotropy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, opening: float) -> Tensor:
    x = toy.sample_sphere((count,), opening, generator()).double()
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("opening", [20.0, 60.0, 120.0])
def test_points_are_uniform_on_the_sphere_without_its_cap(opening: float) -> None:
    x = toy.sample_sphere((20_000,), opening, generator())
    torch.testing.assert_close(x.norm(dim=1), torch.ones(20_000))
    rim = math.cos(math.radians(opening))
    assert x[:, 2].max() <= rim + 1e-6
    heights = (x[:, 2].double() + 1) / (1 + rim)  # uniform on [0, 1]
    ordered = heights.sort().values
    gap = (ordered - torch.linspace(0, 1, 20_000, dtype=torch.float64)).abs().max().item()
    assert gap < 1.63 / math.sqrt(20_000)  # Kolmogorov and Smirnov, 1 %
    assert x[:, :2].mean(0).abs().max() < 4 / math.sqrt(20_000)


def test_angles_start_at_the_south_pole() -> None:
    x = toy.from_angles(torch.tensor([0.0, math.pi / 2]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]), atol=1e-7, rtol=0)


def test_each_network_depends_on_its_seed_alone() -> None:
    both, alone = toy.Autoencoders([1, 2], 8), toy.Autoencoders([2], 8)
    x = points(5, 60).float()
    torch.testing.assert_close(both.encode(x.expand(2, -1, -1))[1], alone.encode(x[None])[0])
    assert len(both) == 2


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


def test_classical_projections_have_their_isotropy() -> None:
    opening = 60.0
    x = points(20_000, opening)
    h = math.cos(math.radians(opening))
    conformal = ((1 + h) / 3 * ((1 - h) ** -3 - 1 / 8)) / ((1 - h) ** -1 - 1 / 2) ** 2

    def stereographic(p: Tensor) -> Tensor:
        return toy.project(p, toy.PROJECTIONS["stereographic"])

    found = isotropy(exact_isometry_loss(stereographic, x), 3, 2).item()
    assert found == pytest.approx(conformal, rel=0.03)
    chart = isotropy(exact_isometry_loss(stereographic, x, metric="chart_identity"), 3, 2).item()
    assert chart == pytest.approx(1, abs=1e-10)
    orthographic = exact_isometry_loss(lambda p: p[:, :2], x, metric="euclidean")
    assert isotropy(orthographic, 3, 2, metric="euclidean").item() == pytest.approx(1, abs=1e-10)


def test_equal_area_map_keeps_areas_and_equidistant_map_keeps_meridians() -> None:
    x = points(50, 60.0)
    for name, invariant in (
        ("equal-area", torch.linalg.det),
        ("equidistant", lambda gram: torch.linalg.eigvalsh(gram)[:, 0]),
    ):
        rows = torch.stack(
            [torch.autograd.functional.jacobian(lambda p, n=name: toy.project(p, toy.PROJECTIONS[n]), row) for row in x]
        )
        torch.testing.assert_close(invariant(rows @ rows.mT), torch.ones(50, dtype=torch.float64))


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


def test_alignment_undoes_a_similarity() -> None:
    reference = torch.randn(40, 2, generator=generator(), dtype=torch.float64)
    mirrored = 3 * reference @ torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.float64) + 5
    torch.testing.assert_close(toy.align(mirrored, reference)(mirrored), reference)


def test_graticule_lies_in_the_domain_with_the_rim_last() -> None:
    grid = toy.graticule(60.0, num_parallels=4, num_meridians=6, num_points=21)
    assert grid.parallels.shape == (4, 21, 3)
    assert grid.meridians.shape == (6, 21, 3)
    assert grid.latitudes[-1].item() == pytest.approx(30, abs=1e-4)
    torch.testing.assert_close(grid.parallels[:, :, 2], grid.latitudes.deg2rad().sin()[:, None].expand(-1, 21))


def settings(**changes: object) -> dict:
    return {"opening": 60.0, "num_steps": 150, "batch_size": 64, "record_every": 75} | changes


def test_training_reconstructs_and_the_weight_makes_it_more_isometric() -> None:
    networks = toy.Autoencoders([0, 0], 32)
    history = toy.train(
        networks, metric="stereographic", lambda_iso=torch.tensor([0.0, 1.0]), shared_data=True, **settings()
    )
    assert history.steps.tolist() == [0, 75, 150]
    assert history.reconstruction[-1, 0] < 0.25 * history.reconstruction[0, 0]
    assert history.isometry[-1, 1] < history.isometry[-1, 0] - 0.05


@pytest.mark.parametrize("metric", ["stereographic", "chart_identity", "euclidean"])
@pytest.mark.parametrize("traces", ["estimated", "exact"])
def test_every_metric_changes_the_weights(metric: str, traces: str) -> None:
    plain, regularised = toy.Autoencoders([0], 8), toy.Autoencoders([0], 8)
    few = settings(num_steps=2)
    toy.train(plain, metric=None, lambda_iso=0.0, **few)
    toy.train(regularised, metric=metric, lambda_iso=1.0, traces=traces, **few)
    assert (plain.weights[0] - regularised.weights[0]).abs().max() > 1e-6


def test_training_repeats_with_its_seeds() -> None:
    ends = []
    for _ in range(2):
        networks = toy.Autoencoders([0], 8)
        toy.train(networks, metric="stereographic", lambda_iso=0.1, **settings(num_steps=5))
        ends.append(networks.weights[0].detach().clone())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("opening", [0.0, 180.0, -5.0])
def test_an_opening_out_of_range_is_refused(opening: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 180 degrees, got {opening}"):
        toy.sample_sphere((2,), opening, generator())


def test_one_seed_for_data_and_probes_is_refused() -> None:
    with pytest.raises(ValueError, match="probe_seed must differ from data_seed, got 4"):
        toy.train(toy.Autoencoders([0], 8), metric=None, lambda_iso=0.0, data_seed=4, probe_seed=4, **settings())
