"""Principal angles: closed forms, scipy's answer, digits near zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from isodiff.metrics.subspaces import orthonormal_basis, principal_angles


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_equals_scipy(seed: int, p: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((9, p)), rng.standard_normal((9, q))
    # scipy gives angles near zero to the square root of the precision only
    assert np.allclose(principal_angles(a, b), subspace_angles(a, b)[::-1], atol=1e-7)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.1, 1.0, np.pi / 2])
def test_two_lines_meet_at_their_angle(angle: float) -> None:
    a = np.array([[3.0], [0.0], [0.0]])
    b = -2 * np.array([[np.cos(angle)], [0.0], [np.sin(angle)]])
    assert principal_angles(a, b)[0] == pytest.approx(angle, rel=1e-9, abs=1e-15)


def test_small_and_large_angles_are_ascending_and_exact_together() -> None:
    prescribed = np.array([1e-9, 0.3, 1.2])
    a = np.eye(6)[:, :3]
    b = np.vstack([np.diag(np.cos(prescribed)), np.diag(np.sin(prescribed))])
    mixed = b @ np.random.default_rng(0).standard_normal((3, 3))
    assert np.allclose(principal_angles(a, mixed), prescribed, rtol=1e-6, atol=1e-14)


def test_rotations_scales_and_order_change_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 3)), rng.standard_normal((7, 2))
    rotation = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    expected = principal_angles(a, b)
    assert np.allclose(principal_angles(rotation @ a, rotation @ b), expected)
    assert np.allclose(principal_angles(a * [1e-6, 1, 1e6], b), expected)
    assert np.allclose(principal_angles(b, a), expected)


def test_batches_go_row_by_row() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 7, 3)), rng.standard_normal((4, 7, 2))
    expected = [principal_angles(one, other) for one, other in zip(a, b, strict=True)]
    assert np.allclose(principal_angles(a, b), expected)


def test_random_subspaces_share_their_part_of_the_space() -> None:
    """E Σ cos² θ = pq/n: the chance level of the alignment."""
    rng = np.random.default_rng(0)
    angles = principal_angles(rng.standard_normal((2000, 12, 3)), rng.standard_normal((2000, 12, 2)))
    assert np.square(np.cos(angles)).sum(axis=1).mean() == pytest.approx(3 * 2 / 12, rel=0.05)


def test_the_basis_is_orthonormal_and_spans_the_columns() -> None:
    columns = np.random.default_rng(0).standard_normal((8, 3)) * [1, 1e-5, 1e5]
    basis = orthonormal_basis(columns)
    assert np.allclose(basis.T @ basis, np.eye(3))
    assert np.allclose(basis @ (basis.T @ columns), columns)


def test_bad_input_is_refused() -> None:
    a = np.eye(5)[:, :2]
    with pytest.raises(ValueError, match="linearly independent"):
        principal_angles(a, np.ones((5, 2)))
    with pytest.raises(ValueError, match="linearly independent"):
        principal_angles(a, a * [1, 0])
    with pytest.raises(ValueError, match=r"one space; got shapes \(5, 2\) and \(4, 2\)"):
        principal_angles(a, np.eye(4)[:, :2])
    with pytest.raises(ValueError, match=r"got shape \(2, 5\)"):
        principal_angles(a.T, a)
    with pytest.raises(ValueError, match="finite"):
        principal_angles(a, np.full((5, 2), np.nan))
