"""Initial paths: the named curves, equal spacing, and walks over samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import c_arc, graph_path, initial_path, lerp, resample, slerp


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


def test_the_graph_path_is_the_shortest_one_of_all() -> None:
    """On three samples, by hand: 0 → (1, 0) → 2 is 2 long, 0 → (1, 1) → 2 is 2√2 long, and 0 → 2 is no edge."""
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    samples = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 5.0]])  # one of them twice
    path = graph_path(a, b, samples, 2, num_neighbours=2)
    torch.testing.assert_close(path, torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]))


A, B = noise(2, 3, 2)
ISLANDS = torch.cat([noise(20, 2) / 100, noise(20, 2) / 100 + 9])
REFUSED = [
    (lambda: initial_path("geodesic", A, B, 4), r"one of \('slerp', 'lerp'\) or a path, got 'geodesic'"),
    (lambda: initial_path(noise(3, 4, 2), A, B, 4), r"initial must have shape \(3, 5, 2\), got \(3, 4, 2\)"),
    (lambda: initial_path("lerp", A, B, 1), "num_segments must be at least 2, got 1"),
    (lambda: initial_path("lerp", A, torch.stack([B[0], A[1], B[2]]), 4), "they are equal in row 1"),
    (lambda: initial_path("lerp", A, B[:2], 4), "b must have the shape of a"),
    (lambda: initial_path("lerp", A, B * math.inf, 4), "b must be finite"),
    (lambda: resample(torch.ones(1, 4, 2), 3), "path must have a positive length"),
    (lambda: resample(noise(1, 4, 2), 0), "num_segments must be at least 1, got 0"),
    (lambda: graph_path(A, B, noise(5, 3), 4), r"rows of shape \(2,\), got \(3,\)"),
    (lambda: graph_path(A, B, noise(5, 2), 4, num_neighbours=6), "between 1 and 5, .* distinct samples; got 6"),
    (
        lambda: graph_path(noise(1, 2) / 100, noise(1, 2) / 100 + 9, ISLANDS, 4, num_neighbours=3),
        "num_neighbours = 3 leaves a and b unconnected",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_paths_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
