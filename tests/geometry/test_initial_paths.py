"""Initial paths: the named curves, equal spacing, and walks over samples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import lerp, slerp
from isodiff.geometry.initial_paths import graph_path, initial_path, resample
from isodiff.geometry.manifold_scores import c_arc


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(*degrees: float) -> Tensor:
    turn = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([turn.cos(), turn.sin()], -1)


def gaps(path: Tensor) -> Tensor:
    return path.diff(dim=1).flatten(2).norm(dim=2)


@pytest.mark.parametrize(("name", "curve"), [("lerp", lerp), ("slerp", slerp)])
def test_named_paths_are_the_curves_of_the_sphere_module(name: str, curve: object) -> None:
    a, b = noise(2, 3, 2, 2)
    path = initial_path(name, a, b, 5)
    assert path.shape == (3, 6, 2, 2)
    for i in range(6):
        torch.testing.assert_close(path[:, i], curve(a, b, i / 5), rtol=0, atol=1e-15)
    assert torch.equal(path[:, 0], a)
    assert torch.equal(path[:, -1], b)


def test_a_given_path_is_taken_as_it_is_but_for_the_rounding_of_its_ends() -> None:
    a, b = noise(2, 3, 2)
    given = initial_path("lerp", a, b, 4) + torch.tensor([0, 1, 1, 1, 0], dtype=torch.float64)[:, None]
    path = initial_path(given.float(), a, b, 4)
    assert path.dtype == torch.float64
    assert torch.equal(path[:, 1:-1], given[:, 1:-1].float().double())
    with pytest.raises(ValueError, match=r"initial must begin at a and end at b, got ends up to 1 away"):
        initial_path(given + torch.tensor([1.0, 0.0]), a, b, 4)


@given(st.integers(1, 30), st.integers(0, 2**31))
def test_resampling_a_straight_line_spaces_it_equally_wherever_its_nodes_were(num_segments: int, seed: int) -> None:
    a, b = noise(2, 3, 4, seed=seed)
    shares = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(dim=1)[0]
    shares[:, 0], shares[:, -1] = 0, 1
    path = resample(a[:, None] + shares[..., None] * (b - a)[:, None], num_segments)
    expected = torch.stack([lerp(a, b, i / num_segments) for i in range(num_segments + 1)], 1)
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-12)


def test_resampling_keeps_the_ends_and_loses_length_only_at_corners() -> None:
    path = noise(2, 8, 3, 2).cumsum(1)
    length = gaps(path).sum(1)
    fine = resample(path, 4000)
    assert torch.equal(fine[:, 0], path[:, 0])
    assert torch.equal(fine[:, -1], path[:, -1])
    assert (gaps(fine).sum(1) <= length).all()
    torch.testing.assert_close(gaps(fine).sum(1), length, rtol=2e-3, atol=0)
    assert gaps(fine).amax() < 1.0001 * (length / 4000).max()
    arc = circle(*torch.linspace(0, 270, 1000).tolist())[None]
    coarse = resample(arc, 9)
    torch.testing.assert_close(coarse[0], circle(*range(0, 271, 30)), rtol=0, atol=1e-4)


def test_resampling_steps_over_repeated_nodes() -> None:
    path = torch.tensor([[[0.0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [3, 0], [3, 0]]])
    torch.testing.assert_close(resample(path, 3), torch.tensor([[[0.0, 0], [1, 0], [2, 0], [3, 0]]]))


def test_the_graph_path_follows_the_arc_where_the_line_crosses_the_gap() -> None:
    score = c_arc(0.1)
    samples = score.sample(600, torch.Generator().manual_seed(0), clean=True)
    a, b = circle(60, 70), circle(300, 200)
    path = graph_path(a, b, samples, 40)
    assert path.shape == (2, 41, 2)
    assert torch.equal(path[:, 0], a)
    assert torch.equal(path[:, -1], b)
    assert score.distance(path.flatten(0, 1)).max() < 0.02
    assert gaps(path).sum(1).tolist() == pytest.approx([math.radians(240), math.radians(130)], rel=0.01)
    assert (gaps(path).std(1) < 0.01 * gaps(path).mean(1)).all()
    straight = initial_path("lerp", a, b, 40)
    assert score.distance(straight.flatten(0, 1)).max() > 0.4


def test_the_graph_path_survives_copies_of_samples_and_of_the_ends() -> None:
    samples = circle(*range(60, 301, 5))
    once = graph_path(circle(60), circle(300), samples, 10, num_neighbours=3)
    again = graph_path(circle(60), circle(300), samples.repeat(20, 1), 10, num_neighbours=3)
    assert torch.equal(again, once)
    assert once.norm(dim=2).min() > 0.95


def test_the_graph_path_is_the_shortest_one_of_all() -> None:
    """On three samples, by hand: 0 → (1, 0) → 2 is 2 long, 0 → (1, 1) → 2 is 2√2 long, and 0 → 2 is no edge."""
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    samples = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 5.0]])  # one of them twice
    path = graph_path(a, b, samples, 2, num_neighbours=2)
    torch.testing.assert_close(path, torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]))


def test_bad_paths_are_refused() -> None:
    a, b = noise(2, 3, 2)
    with pytest.raises(ValueError, match=r"initial must be one of \('slerp', 'lerp'\) or a path, got 'geodesic'"):
        initial_path("geodesic", a, b, 4)
    with pytest.raises(ValueError, match=r"initial must have shape \(3, 5, 2\), got \(3, 4, 2\)"):
        initial_path(noise(3, 4, 2), a, b, 4)
    with pytest.raises(ValueError, match="num_segments must be at least 2, got 1"):
        initial_path("lerp", a, b, 1)
    with pytest.raises(ValueError, match="they are equal in row 1"):
        initial_path("lerp", a, torch.stack([b[0], a[1], b[2]]), 4)
    with pytest.raises(ValueError, match="b must have the shape of a"):
        initial_path("lerp", a, b[:2], 4)
    with pytest.raises(ValueError, match="b must be finite"):
        initial_path("lerp", a, b * math.inf, 4)
    with pytest.raises(ValueError, match="path must have a positive length"):
        resample(torch.ones(1, 4, 2), 3)
    with pytest.raises(ValueError, match="num_segments must be at least 1, got 0"):
        resample(noise(1, 4, 2), 0)
    with pytest.raises(ValueError, match=r"rows of shape \(2,\), got \(3,\)"):
        graph_path(a, b, noise(5, 3), 4)
    with pytest.raises(
        ValueError, match="num_neighbours must be between 1 and 5, the number of distinct samples; got 6"
    ):
        graph_path(a, b, noise(5, 2), 4, num_neighbours=6)
    islands = torch.cat([noise(20, 2) / 100, noise(20, 2) / 100 + 9])
    with pytest.raises(ValueError, match="num_neighbours = 3 leaves a and b unconnected"):
        graph_path(noise(1, 2) / 100, noise(1, 2) / 100 + 9, islands, 4, num_neighbours=3)
