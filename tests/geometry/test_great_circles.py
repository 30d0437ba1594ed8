"""Great circles: closed forms, the differential equation, invariances, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import project_to_tangent, slerp
from isodiff.geometry.great_circles import combine, move, transport


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tangents(x: Tensor, k: int, seed: int = 1) -> Tensor:
    """Return k random tangent vectors at each row of x."""
    drawn = noise(len(x), k, *x.shape[1:], seed=seed, dtype=x.dtype)
    return torch.stack([project_to_tangent(v, x) for v in drawn.unbind(1)], 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return a.flatten(2) @ b.flatten(2).mT


@given(gamma=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_move_keeps_the_radius_and_covers_the_arc(gamma: float, seed: int) -> None:
    x = noise(2, 3, 16, 16, seed=seed, dtype=torch.float32)
    direction = noise(2, 3, 16, 16, seed=seed + 100, dtype=torch.float32)
    moved = move(x, direction, gamma)
    assert (moved.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1) - 1).abs().max() < 1e-5
    exact = move(x.double(), direction.double(), gamma).flatten(1)
    radius, start = x.double().flatten(1).norm(dim=1), x.double().flatten(1)
    chord = (exact - start).norm(dim=1)
    torch.testing.assert_close(2 * radius * torch.asin(chord / (2 * radius)), radius.new_full((2,), abs(gamma)))


def test_moves_in_the_plane_are_rotations() -> None:
    x, direction = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.1], [1.0, 1.0]])
    quarter = move(x, direction, torch.tensor([math.pi, 1.5 * math.pi]))
    torch.testing.assert_close(quarter, torch.tensor([[0.0, 2.0], [3.0, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(move(x, direction, 0.0), x, atol=0, rtol=0)


def test_moves_back_and_on_add_up() -> None:
    x = noise(3, 1, 4, 4)
    direction = tangents(x, 1)[:, 0]
    once = move(x, direction, 1.3)
    carried = transport(direction, x, once)
    torch.testing.assert_close(move(once, carried, 0.9), move(x, direction, 2.2))
    torch.testing.assert_close(move(once, carried, -1.3), x)


def test_a_combination_is_the_exponential_map_of_the_sum() -> None:
    x = noise(3, 1, 4, 4)
    directions = tangents(x, 2)
    units = directions / directions.flatten(2).norm(dim=2).view(3, 2, 1, 1, 1)
    total = 0.7 * units[:, 0] - 1.1 * units[:, 1]
    combined = combine(x, directions, [0.7, -1.1])
    for row in range(3):
        length = total[row].norm().item()
        torch.testing.assert_close(combined[row : row + 1], move(x[row : row + 1], total[row : row + 1], length))
    torch.testing.assert_close(combine(x, directions, torch.tensor([[0.7, 0.0]] * 3)), move(x, directions[:, 0], 0.7))
    torch.testing.assert_close(combine(x, directions.flip(1), [-1.1, 0.7]), combined)


def test_transport_is_an_isometry_of_tangent_spaces_and_undone_by_transport_back() -> None:
    x, y = noise(4, 3, 4, 4), 1.7 * noise(4, 3, 4, 4, seed=5)
    vectors = tangents(x, 3)
    carried = transport(vectors, x, y)
    close = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(inner(carried, carried), inner(vectors, vectors), **close)
    torch.testing.assert_close(inner(carried, y[:, None]), torch.zeros(4, 3, 1, dtype=x.dtype), **close)
    torch.testing.assert_close(transport(carried, y, x), vectors, **close)
    torch.testing.assert_close(transport(vectors, x, 3 * x), vectors, **close)
    torch.testing.assert_close(transport(vectors[:, 0], x, y), carried[:, 0], **close)


def test_transport_solves_the_equation_of_parallel_transport() -> None:
    """Carried along many short arcs by projection, which is parallel to first order, a vector ends where ours does."""
    x, y = noise(1, 6), noise(1, 6, seed=3)
    y = y * x.norm() / y.norm()
    vector = project_to_tangent(y, x) + tangents(x, 1)[:, 0]
    stepwise = vector
    for i in range(1, 501):
        stepwise = project_to_tangent(stepwise, slerp(x, y, i / 500))
    carried = transport(vector, x, y)
    assert (carried - stepwise).norm() < 5e-3 * vector.norm()
    assert (carried - project_to_tangent(vector, y)).norm() > 0.05 * vector.norm()  # one long step is another thing


def test_transport_carries_the_velocity_of_the_great_circle_to_itself() -> None:
    x, y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    frame = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(transport(frame, x, y), torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))


def test_bad_moves_are_refused() -> None:
    x, direction = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
    half = math.pi * x.flatten(1).norm(dim=1).min().item()
    move(x, direction, 0.99 * half)
    for gamma in (1.01 * half, -1.01 * half, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"at most half a great circle, π‖x‖ = {half:.4g}"):
            move(x, direction, gamma)
    with pytest.raises(ValueError, match=r"gamma must be a number or of shape \(2,\); got shape \(3,\)"):
        move(x, direction, torch.ones(3))
    with pytest.raises(ValueError, match=r"direction must have the shape of x"):
        move(x, direction[:, :, :3], 1.0)
    for radial in (x, torch.zeros_like(x), x * math.nan):
        with pytest.raises(ValueError, match="a part tangent at x"):
            move(x, radial, 1.0)
    with pytest.raises(ValueError, match="must not be zero"):
        move(torch.zeros_like(x), direction, 1.0)
    with pytest.raises(ValueError, match=r"gammas must have shape \(3,\) or \(2, 3\); got \(2,\)"):
        combine(x, tangents(x, 3), [1.0, 2.0])


def test_bad_transports_are_refused() -> None:
    x, y = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
    vectors = tangents(x, 2)
    with pytest.raises(ValueError, match="opposite to x"):
        transport(vectors, x, -2 * x)
    with pytest.raises(ValueError, match="is radial: apply project_to_tangent first"):
        transport(vectors + 0.1 * x[:, None], x, y)
    with pytest.raises(ValueError, match="y must have the shape of x"):
        transport(vectors, x, y[:1])
    with pytest.raises(ValueError, match=r"direction must have the shape \(2, 1, 4, 4\) of x.*got \(2, 2, 1, 4, 3\)"):
        transport(vectors[..., :3], x, y)
