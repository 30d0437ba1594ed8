"""The sphere: exact moments, the chart and its metric, tangents, and curves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isodiff.geometry import (
    conformal_factor,
    expected_radius,
    inverse_stereographic,
    lerp,
    project_to_tangent,
    slerp,
    stereographic,
)

# E‖x‖ to 16 digits, from log-gamma in 40-digit arithmetic.
EXACT_RADIUS = {
    2: 1.2533141373155003,
    3: 1.5957691216057308,
    300: 17.30608035806067,
    301: 17.334947821403635,
    3072: 55.42111547683541,
    196_608: 443.4044429193688,
    10_000_000: 3162.277581111439,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Draw float64 noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "exact"), EXACT_RADIUS.items())
def test_expected_radius_is_exact(n: int, exact: float) -> None:
    assert expected_radius(n) == pytest.approx(exact, rel=1e-14)


@given(st.integers(2, 10_000_000))
def test_expected_radius_obeys_its_recurrence(n: int) -> None:
    # Γ(x + 1) = x Γ(x) makes the product of neighbouring radii n, with no special function involved.
    assert expected_radius(n) * expected_radius(n + 1) == pytest.approx(n, rel=1e-13)


def test_expected_radius_is_the_mean_norm_of_noise() -> None:
    norms = noise(200_000, 5).norm(dim=1)
    assert abs(norms.mean() - expected_radius(5)) < 3 * norms.std() / math.sqrt(len(norms))


@pytest.mark.parametrize("n", [0, 1, -3])
def test_expected_radius_refuses_fewer_than_two_dimensions(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2.*{n}"):
        expected_radius(n)


@pytest.mark.parametrize("n", [2.0, True, "3"])
def test_expected_radius_refuses_what_is_no_integer(n: object) -> None:
    with pytest.raises(TypeError, match="integer"):
        expected_radius(n)


@given(st.integers(2, 40), st.floats(0.01, 1000.0), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_chart_round_trip(n: int, radius: float, seed: int) -> None:
    x = noise(8, n, seed=seed)
    x = radius * x / x.norm(dim=1, keepdim=True)
    back = inverse_stereographic(stereographic(x, radius), radius)
    assert (back - x).abs().max() < 1e-10 * radius


def test_inverse_chart_lands_on_the_sphere_and_returns() -> None:
    z = 3 * noise(10, 4)
    radius = torch.linspace(0.5, 4, 10, dtype=torch.float64)
    x = inverse_stereographic(z, radius)
    torch.testing.assert_close(x.norm(dim=1), radius, rtol=1e-12, atol=0)
    torch.testing.assert_close(stereographic(x, radius), z, rtol=1e-10, atol=1e-10)


def test_south_pole_is_the_origin_and_the_equator_keeps_its_place() -> None:
    x = torch.tensor([[0.0, 0.0, -2.0], [1.2, 1.6, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(stereographic(x, 2.0), torch.tensor([[0.0, 0.0], [1.2, 1.6]], dtype=torch.float64))


def test_conformal_factor_is_the_metric_of_the_chart() -> None:
    z, radius = noise(6, 3), 1.7
    for row, factor in zip(z, conformal_factor(z, radius), strict=True):
        d = torch.autograd.functional.jacobian(lambda p: inverse_stereographic(p[None], radius)[0], row)
        torch.testing.assert_close(d.mT @ d, factor * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_metric_of_eq_3_does_not_belong_to_the_chart_of_eq_2() -> None:
    z, radius = noise(1, 3), 1.7
    d = torch.autograd.functional.jacobian(lambda p: inverse_stereographic(radius * p, radius), z)
    gram = d.reshape(4, 3).mT @ d.reshape(4, 3)
    assert (gram / conformal_factor(z, radius)[0] - torch.eye(3)).abs().max() > 0.1
    flat = 4 * radius**2 / (1 + z.square().sum()) ** 2
    torch.testing.assert_close(gram, flat * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_conformal_factor_in_the_sphere_s_own_coordinates() -> None:
    x = noise(5, 4)
    radius = x.norm(dim=1)
    torch.testing.assert_close(conformal_factor(stereographic(x, radius), radius), (1 - x[:, -1] / radius) ** 2)


def test_chart_accepts_float32_points_of_unnormalised_noise_at_their_own_radius() -> None:
    x = noise(4, 3072).float()
    assert stereographic(x, x.norm(dim=1)).shape == (4, 3071)


def test_projection_is_orthogonal_idempotent_and_keeps_tangents() -> None:
    v, x = noise(5, 3, 4, 4, seed=1), noise(5, 3, 4, 4)
    tangent = project_to_tangent(v, x)
    assert (tangent * x).flatten(1).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(project_to_tangent(tangent, x), tangent)
    torch.testing.assert_close(project_to_tangent(tangent + 5 * x, x), tangent)


def test_slerp_runs_from_start_to_end_on_the_sphere() -> None:
    a, b = noise(6, 3, 4, 4), noise(6, 3, 4, 4, seed=1)
    torch.testing.assert_close(slerp(a, b, 0), a)
    torch.testing.assert_close(slerp(a, b, 1), b)
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    expected = (1 - t) * a.flatten(1).norm(dim=1) + t * b.flatten(1).norm(dim=1)
    torch.testing.assert_close(slerp(a, b, t).flatten(1).norm(dim=1), expected)


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_slerp_divides_the_angle_as_t_says(t: float, seed: int) -> None:
    a, b = noise(4, 5, seed=seed), noise(4, 5, seed=seed + 1)
    angle = torch.nn.functional.cosine_similarity(a, b).acos()
    part = torch.nn.functional.cosine_similarity(a, slerp(a, b, t)).clamp(-1, 1).acos()
    torch.testing.assert_close(part, t * angle, rtol=1e-6, atol=1e-6)


def test_slerp_reads_the_same_backwards_and_ignores_rotations() -> None:
    a, b = noise(4, 5), noise(4, 5, seed=1)
    rotation = torch.linalg.qr(noise(5, 5, seed=2))[0]
    torch.testing.assert_close(slerp(a, b, 0.3), slerp(b, a, 0.7))
    torch.testing.assert_close(slerp(a @ rotation, b @ rotation, 0.3), slerp(a, b, 0.3) @ rotation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_slerp_survives_collinear_and_antipodal_input(dtype: torch.dtype, offset: float, scale: float) -> None:
    a = noise(3, 6).to(dtype).requires_grad_()
    b = (scale * a.detach() + offset * noise(3, 6, seed=1).to(dtype)).requires_grad_()
    path = torch.stack([slerp(a, b, t) for t in (0.0, 0.25, 0.5, 1.0)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(path[0], a, rtol=0, atol=tolerance)
    torch.testing.assert_close(path[-1], b, rtol=0, atol=tolerance)
    torch.testing.assert_close(path[2].norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    for gradient in torch.autograd.grad(path.square().sum(), (a, b)):
        assert gradient.isfinite().all()


def test_slerp_between_antipodes_is_deterministic_and_a_half_circle() -> None:
    a = noise(2, 3)
    middle = slerp(a, -a, 0.5)
    assert (middle * a).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(middle, slerp(a, -a, 0.5), rtol=0, atol=0)


def test_slerp_gradient_is_that_of_finite_differences_also_when_collinear() -> None:
    a = noise(3, 4)
    b = torch.stack([noise(4, seed=1), 2 * a[1], a[2] * (1 + 1e-9)])
    assert torch.autograd.gradcheck(lambda p, q: slerp(p, q, 0.3), (a.requires_grad_(), b.requires_grad_()))


def test_slerp_keeps_half_precision_and_its_values() -> None:
    a, b = noise(2, 300).half(), noise(2, 300, seed=1).half()
    middle = slerp(a, b, 0.5)
    assert middle.dtype == torch.float16
    torch.testing.assert_close(middle.double(), slerp(a.double(), b.double(), 0.5), rtol=2e-3, atol=2e-3)


def test_lerp_is_the_chord() -> None:
    a, b = noise(3, 4), noise(3, 4, seed=1)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(lerp(a, b, t), torch.stack([a[0], (a[1] + b[1]) / 2, b[2]]))


def test_chart_refuses_the_pole() -> None:
    with pytest.raises(ValueError, match="pole"):
        stereographic(torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64), 2.0)


def test_chart_refuses_zero() -> None:
    with pytest.raises(ValueError, match="lie on the sphere"):
        stereographic(torch.zeros(1, 3), 1.0)


def test_chart_refuses_points_off_the_sphere() -> None:
    with pytest.raises(ValueError, match="lie on the sphere"):
        stereographic(torch.tensor([[0.0, 1.1, 0.0]]), 1.0)


def test_chart_refuses_one_dimension() -> None:
    with pytest.raises(ValueError, match="at least 2 columns"):
        stereographic(torch.ones(2, 1), 1.0)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_chart_refuses_other_ranks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rank 2"):
        stereographic(torch.ones(shape), 1.0)
    with pytest.raises(ValueError, match="rank 2"):
        inverse_stereographic(torch.ones(shape), 1.0)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_chart_refuses_a_radius_that_is_not_positive(radius: float) -> None:
    with pytest.raises(ValueError, match="radius must be positive"):
        inverse_stereographic(torch.ones(2, 2), radius)


def test_chart_refuses_radii_of_another_batch() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        conformal_factor(torch.ones(2, 2), torch.ones(3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_accepts_values_that_are_not_finite(value: float) -> None:
    bad, good = torch.tensor([[1.0, value]]), torch.ones(1, 2)
    for call in (
        lambda: stereographic(bad, 1.0),
        lambda: inverse_stereographic(bad, 1.0),
        lambda: conformal_factor(bad, 1.0),
        lambda: project_to_tangent(good, bad),
        lambda: lerp(good, bad, 0.5),
        lambda: slerp(bad, good, 0.5),
        lambda: slerp(good, good, value),
    ):
        with pytest.raises(ValueError, match="must be finite, got 1 NaN or infinite"):
            call()


@pytest.mark.parametrize("position", [0, 1])
def test_slerp_refuses_zero(position: int) -> None:
    ends = [torch.ones(2, 3), torch.ones(2, 3)]
    ends[position][1] = 0
    with pytest.raises(ValueError, match="row 1 is zero"):
        slerp(*ends, 0.5)


def test_projection_refuses_zero() -> None:
    with pytest.raises(ValueError, match="row 0 is zero"):
        project_to_tangent(torch.ones(1, 3), torch.zeros(1, 3))


def test_projection_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\); got \(1, 3\)"):
        project_to_tangent(torch.ones(1, 3), torch.ones(2, 3))


def test_interpolation_refuses_another_batch() -> None:
    with pytest.raises(ValueError, match="b must have the shape of a"):
        slerp(torch.ones(2, 3), torch.ones(3, 3), 0.5)


def test_interpolation_refuses_positions_of_another_batch() -> None:
    with pytest.raises(ValueError, match=r"t must be a number or of shape \(2,\)"):
        lerp(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))


def test_interpolation_refuses_a_vector_without_batch() -> None:
    with pytest.raises(ValueError, match="rank 2 or more"):
        slerp(torch.ones(3), torch.ones(3), 0.5)


def test_interpolation_refuses_integers() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        slerp(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long), 0.5)
