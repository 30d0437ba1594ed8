"""Angles between subspaces, to full precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def principal_angles(a: ArrayLike, b: ArrayLike) -> NDArray[np.floating]:
    """Return the principal angles between the spans of the columns of two matrices.

    With orthonormal bases Q_a and Q_b, ``cos θ`` are the singular values of Q_aᵀQ_b and, where these are close to one,
    ``sin θ`` are those of Q_b − Q_aQ_aᵀQ_b (Björck and Golub 1973), so that small angles keep their digits.

    Args:
        a: (…, n, p) with linearly independent columns, p ≤ n.
        b: (…, n, q), likewise, with the same leading dimensions.

    Returns:
        (…, min(p, q)) angles in radians, ascending, 0 to π/2; computed in float64.

    Raises:
        ValueError: If shapes do not fit, values are not finite, or columns are linearly dependent.
    """
    basis, other = orthonormal_basis(a), orthonormal_basis(b)
    if basis.shape[:-1] != other.shape[:-1]:
        raise ValueError(f"both spans must lie in one space; got shapes {basis.shape} and {other.shape}")
    if basis.shape[-1] < other.shape[-1]:
        basis, other = other, basis
    overlap = np.swapaxes(basis, -1, -2) @ other
    cosine = np.linalg.svd(overlap, compute_uv=False).clip(0, 1)
    sine = np.linalg.svd(other - basis @ overlap, compute_uv=False)[..., ::-1].clip(0, 1)
    return np.where(cosine**2 > 0.5, np.arcsin(sine), np.arccos(cosine))


def orthonormal_basis(columns: ArrayLike) -> NDArray[np.floating]:
    """Return an orthonormal basis (…, n, p), in float64, of the span of p independent columns of any lengths.

    Raises:
        ValueError: As `principal_angles`.
    """
    given = np.asarray(columns)
    matrix = given.astype(float)
    if matrix.ndim < 2 or not 1 <= matrix.shape[-1] <= matrix.shape[-2]:
        raise ValueError(f"expected (…, n, p) with 1 ≤ p ≤ n columns; got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("columns must be finite; got NaN or infinite values")
    length = np.linalg.norm(matrix, axis=-2, keepdims=True)
    basis, sigma, _ = np.linalg.svd(matrix / np.where(length > 0, length, 1), full_matrices=False)
    precision = np.finfo(given.dtype if given.dtype.kind == "f" else float).eps
    if (sigma[..., -1] <= precision * matrix.shape[-2] * sigma[..., 0]).any():
        raise ValueError(
            f"the {matrix.shape[-1]} columns must be linearly independent; their span has fewer dimensions"
        )
    return basis
