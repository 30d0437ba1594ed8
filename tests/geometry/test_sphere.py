"""The sphere: exact moments, the chart and its metric, tangents, curves, great circles and parallel transport."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import (
    combine,
    conformal_factor,
    expected_radius,
    inverse_stereographic,
    lerp,
    move,
    project_to_tangent,
    slerp,
    stereographic,
    transport,
)

from .tensors import noise, refusals

EXACT = [(2, math.sqrt(math.pi / 2)), (301, 17.334947821403635), (10**7, 3162.277581111439)]


@pytest.mark.parametrize(("n", "exact"), EXACT)
def test_expected_radius_is_exact(n: int, exact: float) -> None:
    """From log-gamma in 40-digit arithmetic."""
    assert expected_radius(n) == pytest.approx(exact, rel=1e-14)


@given(st.integers(2, 10_000_000))
def test_expected_radius_obeys_its_recurrence(n: int) -> None:
    # Γ(x + 1) = x Γ(x) makes the product of neighbouring radii n
    assert expected_radius(n) * expected_radius(n + 1) == pytest.approx(n, rel=1e-13)


@given(st.integers(2, 40), st.floats(0.01, 1000.0), st.integers(0, 1000))
def test_chart_round_trip(n: int, radius: float, seed: int) -> None:
    x = noise(8, n, seed=seed)
    x = radius * x / x.norm(dim=1, keepdim=True)
    back = inverse_stereographic(stereographic(x, radius), radius)
    assert (back - x).abs().max() < 1e-10 * radius


def test_south_pole_is_the_origin_and_the_equator_keeps_its_place() -> None:
    x = torch.tensor([[0.0, 0.0, -2.0], [1.2, 1.6, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(stereographic(x, 2.0), torch.tensor([[0.0, 0.0], [1.2, 1.6]], dtype=torch.float64))


def test_conformal_factor_is_the_metric_of_the_chart_and_eq_3_that_of_another() -> None:
    radius, eye = 1.7, torch.eye(3, dtype=torch.float64)
    for z in noise(6, 3):
        d = torch.autograd.functional.jacobian(lambda p: inverse_stereographic(p[None], radius)[0], z)
        torch.testing.assert_close(d.mT @ d, conformal_factor(z[None], radius) * eye, rtol=0, atol=1e-10)
        d = torch.autograd.functional.jacobian(lambda p: inverse_stereographic(radius * p[None], radius)[0], z)
        torch.testing.assert_close(d.mT @ d, 4 * radius**2 / (1 + z @ z) ** 2 * eye, rtol=0, atol=1e-10)


def test_chart_accepts_float32_points_of_unnormalised_noise_at_their_own_radius() -> None:
    x = noise(4, 3072).float()
    assert stereographic(x, x.norm(dim=1)).shape == (4, 3071)


def test_projection_is_orthogonal_idempotent_and_keeps_tangents() -> None:
    v, x = noise(5, 3, 4, 4, seed=1), noise(5, 3, 4, 4)
    tangent = project_to_tangent(v, x)
    assert (tangent * x).flatten(1).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(project_to_tangent(tangent, x), tangent)
    torch.testing.assert_close(project_to_tangent(tangent + 5 * x, x), tangent)


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_slerp_divides_the_angle_and_the_change_of_radius_as_t_says(t: float, seed: int) -> None:
    a, b = noise(4, 5, seed=seed), noise(4, 5, seed=seed + 1)
    angle = torch.nn.functional.cosine_similarity(a, b).acos()
    torch.testing.assert_close(slerp(a, b, t).norm(dim=1), (1 - t) * a.norm(dim=1) + t * b.norm(dim=1))
    part = torch.nn.functional.cosine_similarity(a, slerp(a, b, t)).clamp(-1, 1).acos()
    torch.testing.assert_close(part, t * angle, rtol=1e-6, atol=1e-6)


def test_slerp_reads_the_same_backwards_and_ignores_rotations() -> None:
    a, b = noise(4, 5), noise(4, 5, seed=1)
    rotation = torch.linalg.qr(noise(5, 5, seed=2))[0]
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7))
    torch.testing.assert_close(slerp(a @ rotation, b @ rotation, 0.3), slerp(a, b, 0.3) @ rotation)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("offset", [0.0, 1e-12, 1e-8, 1e-4])
@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_slerp_survives_collinear_and_antipodal_input(
    dtype: torch.dtype, tolerance: float, offset: float, scale: float
) -> None:
    a = noise(3, 6, dtype=dtype).requires_grad_()
    b = (scale * a.detach() + offset * noise(3, 6, seed=1, dtype=dtype)).requires_grad_()
    path = torch.stack([slerp(a, b, t) for t in (0.0, 0.25, 0.5, 1.0)])
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]), rtol=0, atol=tolerance)
    torch.testing.assert_close(path[2].norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(path.square().sum(), (a, b)))


def test_slerp_gradient_is_that_of_finite_differences_also_when_collinear() -> None:
    a = noise(3, 4)
    b = torch.stack([noise(4, seed=1), 2 * a[1], a[2] * (1 + 1e-9)])
    assert torch.autograd.gradcheck(lambda p, q: slerp(p, q, 0.3), (a.requires_grad_(), b.requires_grad_()))


def test_slerp_keeps_half_precision_and_its_values() -> None:
    a, b = noise(2, 2, 300, dtype=torch.float16)
    middle = slerp(a, b, 0.5)
    assert middle.dtype == torch.float16
    torch.testing.assert_close(middle.double(), slerp(a.double(), b.double(), 0.5), rtol=2e-3, atol=2e-3)


def test_lerp_is_the_chord() -> None:
    (a, b), t = noise(2, 3, 4), torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(lerp(a, b, t), torch.stack([a[0], (a[1] + b[1]) / 2, b[2]]))


def tangents(x: Tensor, k: int, seed: int = 1) -> Tensor:
    """Return k random tangent vectors at each row of x."""
    drawn = noise(len(x), k, *x.shape[1:], seed=seed, dtype=x.dtype)
    return torch.stack([project_to_tangent(v, x) for v in drawn.unbind(1)], 1)


@given(gamma=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_move_keeps_the_radius_and_covers_the_arc(gamma: float, seed: int) -> None:
    x, direction = noise(2, 2, 3, 16, 16, seed=seed)
    radius, moved = x.flatten(1).norm(dim=1), move(x, direction, gamma)
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), radius)
    chord = (moved - x).flatten(1).norm(dim=1)
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
    torch.testing.assert_close(combined, move(x, total, total.flatten(1).norm(dim=1)))
    torch.testing.assert_close(combine(x, directions, torch.tensor([[0.7, 0.0]] * 3)), move(x, directions[:, 0], 0.7))


def test_transport_is_an_isometry_of_tangent_spaces_and_undone_by_transport_back() -> None:
    x, y, close = noise(4, 12), 1.7 * noise(4, 12, seed=5), {"atol": 1e-12, "rtol": 0}
    vectors = tangents(x, 3)
    carried = transport(vectors, x, y)
    torch.testing.assert_close(carried @ carried.mT, vectors @ vectors.mT, **close)
    torch.testing.assert_close(carried @ y[..., None], torch.zeros(4, 3, 1, dtype=x.dtype), **close)
    torch.testing.assert_close(transport(carried, y, x), vectors, **close)
    torch.testing.assert_close(transport(vectors, x, 3 * x), vectors, **close)
    torch.testing.assert_close(transport(vectors[:, 0], x, y), carried[:, 0], **close)


def test_transport_solves_the_equation_of_parallel_transport() -> None:
    """Carried along many short arcs by projection, which is parallel to first order, a vector ends where ours does."""
    x, y = noise(1, 6), noise(1, 6, seed=3)
    vector = project_to_tangent(y, x) + tangents(x, 1)[:, 0]
    stepwise = vector
    for i in range(1, 501):
        stepwise = project_to_tangent(stepwise, slerp(x, y, i / 500))
    carried = transport(vector, x, y)
    assert (carried - stepwise).norm() < 5e-3 * vector.norm()
    assert (carried - project_to_tangent(vector, y)).norm() > 0.05 * vector.norm()  # one long step is another thing


ONES = torch.ones
X, Y = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
HALF = math.pi * X.flatten(1).norm(dim=1).min().item()
test_bad_input_is_refused = refusals(
    (lambda: expected_radius(0), "at least 2.*0"),
    (lambda: stereographic(torch.tensor([[0.0, 0.0, 2.0]]), 2.0), "pole"),
    (lambda: conformal_factor(ONES(2, 2) / 0, 1.0), "z must be finite, got 4 NaN or infinite"),
    (lambda: slerp(ONES(2, 2), ONES(2, 2), math.nan), "t must be finite"),
    (lambda: stereographic(torch.tensor([[0.0, 1.1, 0.0]]), 1.0), "lie on the sphere"),
    (lambda: inverse_stereographic(ONES(2, 2), 0.0), "radius must be positive"),
    (lambda: slerp(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), ONES(2, 2), 0.5), "row 1 is zero"),
    (lambda: slerp(ONES(3), ONES(3), 0.5), "rank 2 or more"),
    (lambda: slerp(ONES(2, 3).long(), ONES(2, 3).long(), 0.5), "floating-point"),
    (lambda: project_to_tangent(ONES(1, 3), ONES(2, 3)), r"\(2, 3\); got \(1, 3\)"),
    (lambda: move(X, Y, 1.01 * HALF), "at most half a great circle, π‖x‖"),
    (lambda: move(X, 0 * X, 1.0), "a part tangent at x"),
    (lambda: combine(X, tangents(X, 3), [1.0, 2.0]), r"gammas must have shape \(3,\) or \(2, 3\); got \(2,\)"),
    (lambda: transport(tangents(X, 2), X, -2 * X), "opposite to x"),
    (lambda: transport(tangents(X, 2) + 0.1 * X[:, None], X, Y), "is radial: apply project_to_tangent first"),
    (lambda: transport(tangents(X, 2)[..., :3], X, Y), r"shape \(2, 1, 4, 4\) of x.*got \(2, 2, 1, 4, 3\)"),
    errors=(ValueError, TypeError),
)
