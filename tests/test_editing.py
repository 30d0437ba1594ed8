"""Paths decoded in order, directions against dense decompositions, and what is refused."""

import math
from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.diffusion import encode, load_pipeline
from isodiff.editing import gamma_traversal, local_basis, traverse
from isodiff.geometry import dense_jacobian, lerp, move, slerp
from isodiff.metrics import principal_angles

from .geometry.tensors import noise, refusals

A, B = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
DIGITS = noise(1, 1, 16, 16)


def squash(x: Tensor) -> Tensor:
    return torch.tanh(x.flip(3))


def inner(a: Tensor, b: Tensor) -> Tensor:
    return a.flatten(2) @ b.flatten(2).mT


@pytest.mark.parametrize(
    ("model", "shape", "separated"),
    [("digits16/base", (2, 1, 16, 16), [True, False]), ("faces32/base", (1, 3, 32, 32), [True])],
)
def test_local_basis_is_that_of_the_dense_jacobian(model: str, shape: tuple[int, ...], separated: list[bool]) -> None:
    """Values, and what J does to each direction, everywhere; the subspace where σ_k/σ_{k+1} ≥ 1.05 determines it."""
    unet, x, k = load_pipeline(model).unet, noise(*shape).float(), 3
    basis = local_basis(unet, x, 600, k)
    jacobian = dense_jacobian(lambda z: encode(unet, z, 600), x, tangent=True).double()
    square, left = torch.linalg.eigh(jacobian @ jacobian.mT)
    sigma, right = square.flip(1)[:, : k + 1].sqrt(), left.flip(2)[:, :, :k].mT @ jacobian
    torch.testing.assert_close(basis.sigma.double(), sigma[:, :k], rtol=1e-3, atol=0)
    moved = basis.directions.flatten(2).double() @ jacobian.mT
    stretched = torch.diag_embed(sigma[:, :k].square())
    torch.testing.assert_close(moved @ moved.mT, stretched, atol=2e-3 * stretched.max().item(), rtol=0)
    gram = inner(basis.directions, basis.directions)
    torch.testing.assert_close(gram, torch.eye(k).expand(len(x), k, k), atol=1e-5, rtol=0)
    assert inner(basis.directions, x[:, None]).abs().max() < 1e-4
    assert (sigma[:, k - 1] / sigma[:, k] >= 1.05).tolist() == separated
    angles = np.degrees(principal_angles(basis.directions.flatten(2).mT, right.mT))
    assert angles[separated].max(initial=0) < 1


def detour(a: Tensor, b: Tensor, tau: float) -> Tensor:
    return lerp(a, b, tau) + 2 * tau * (1 - tau)


@pytest.mark.parametrize("path", [slerp, detour])
def test_a_traverse_decodes_the_path_in_order(path: Callable) -> None:
    expected = torch.stack([squash(path(A, B, tau)) for tau in (0, 0.25, 0.5, 0.75, 1)], 1)
    torch.testing.assert_close(traverse(squash, A, B, 5, path=path), expected.float())


def test_a_gamma_traversal_decodes_the_moves() -> None:
    expected = torch.stack([squash(move(A, B, gamma)) for gamma in (-1.0, 0.0, 2.5)], 1)
    torch.testing.assert_close(gamma_traversal(squash, A, B, [-1.0, 0.0, 2.5], batch_size=2), expected.float())


def basis(x: Tensor, t: float, k: int) -> None:
    local_basis(load_pipeline("digits16/base").unet, x.float(), t, k)


test_what_cannot_be_decoded_or_decomposed_is_refused = refusals(
    (lambda: traverse(squash, A, B[..., 1:], 3), r"b must have the shape of a, \(2, 1, 4, 4\); got"),
    (lambda: traverse(squash, A, math.nan * B, 3), "b must be finite"),
    (lambda: traverse(squash, A, B, 1), "at least 2.*got 1"),
    (lambda: traverse(squash, A, B, 3, batch_size=0), "batch_size must be at least 1; got 0"),
    (lambda: traverse(squash, A, B, 3, path=lambda a, *_: a[:1]), r"of the path must.*\(1, 1, 4, 4\)"),
    (lambda: traverse(lambda x: 300 * x, A, B, 3), r"images in \[−1, 1\]"),
    (lambda: gamma_traversal(Mock(shape=(1, 16, 16)), A, B, [1.0]), r"\(1, 16, 16\) of this model"),
    (lambda: gamma_traversal(squash, A, B, []), "at least one arc length"),
    (lambda: basis(DIGITS, 1000, 1), "t must be a step 0 to 999; got 1000"),
    (lambda: basis(DIGITS, 0.5, 1), "integer"),
    (lambda: basis(DIGITS, 0, 256), "between 1 and 255, got 256"),
    (lambda: basis(DIGITS[..., 1:], 0, 1), r"shape \(B, 1, 16, 16\).*got \(1, 1, 16, 15\)"),
    errors=(ValueError, TypeError),
)
