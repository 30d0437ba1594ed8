"""Paths decoded in order, directions against dense decompositions, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from isodiff.diffusion import encode, load_pipeline
from isodiff.editing import gamma_traversal, local_basis, traverse
from isodiff.geometry import dense_jacobian, lerp, move, slerp
from isodiff.metrics import Generator, principal_angles


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return a.flatten(2) @ b.flatten(2).mT


def squash(x: Tensor) -> Tensor:
    return torch.tanh(x.flip(3))


@pytest.mark.parametrize(
    ("model", "shape", "separated"),
    [
        ("digits16/base", (2, 1, 16, 16), [True, False]),
        ("digits16/isometric", (2, 1, 16, 16), [False, False]),
        ("faces32/base", (1, 3, 32, 32), [True]),
    ],
)
def test_local_basis_is_that_of_the_dense_jacobian(model: str, shape: tuple[int, ...], separated: list[bool]) -> None:
    """Values, and what J does to each direction, everywhere; the subspace where σ_k/σ_{k+1} ≥ 1.05 determines it."""
    unet, x, k = load_pipeline(model).unet, noise(*shape, dtype=torch.float32), 3
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


def test_a_traverse_decodes_the_path_in_order() -> None:
    a, b = noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    frames = traverse(squash, a, b, 5)
    assert frames.shape == (3, 5, 1, 4, 4)
    for i, tau in enumerate((0, 0.25, 0.5, 0.75, 1)):
        torch.testing.assert_close(frames[:, i], squash(slerp(a, b, tau)).float())

    def detour(a: Tensor, b: Tensor, tau: float) -> Tensor:
        return lerp(a, b, tau) + 2 * tau * (1 - tau)

    torch.testing.assert_close(traverse(squash, a, b, 3, path=detour)[:, 1], squash((a + b) / 2 + 0.5).float())


def test_batches_do_not_change_the_frames() -> None:
    generate = Generator(load_pipeline("digits16/base"), 2)
    a, b = noise(2, 1, 16, 16, dtype=torch.float32), noise(2, 1, 16, 16, seed=1, dtype=torch.float32)
    whole = traverse(generate, a, b, 3)
    torch.testing.assert_close(traverse(generate, a, b, 3, batch_size=4), whole, atol=1e-4, rtol=0)


def test_a_gamma_traversal_decodes_the_moves() -> None:
    x, direction = noise(2, 1, 4, 4), noise(2, 1, 4, 4, seed=1)
    frames = gamma_traversal(squash, x, direction, [-1.0, 0.0, 2.5], batch_size=2)
    assert frames.shape == (2, 3, 1, 4, 4)
    torch.testing.assert_close(frames[:, 1], squash(x).float())
    torch.testing.assert_close(frames[:, 2], squash(move(x, direction, 2.5)).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": torch.zeros(2, 1, 4, 5)}, r"b must have the shape of a, \(2, 1, 4, 4\); got \(2, 1, 4, 5\)"),
        ({"b": torch.full((2, 1, 4, 4), math.nan)}, "b must be finite"),
        ({"num_points": 1}, "at least 2.*got 1"),
        ({"path": lambda a, b, tau: a[:1]}, r"a point of the path must have the shape of a.*got \(1, 1, 4, 4\)"),
        ({"generate": lambda x: 300 * x}, r"images in \[−1, 1\]"),
    ],
)
def test_bad_traverses_are_refused(options: dict, message: str) -> None:
    given = {"generate": squash, "a": noise(2, 1, 4, 4), "b": noise(2, 1, 4, 4, seed=1), "num_points": 3}
    with pytest.raises(ValueError, match=message):
        traverse(**given | options)


def basis(x: Tensor, t: float, k: int) -> None:
    local_basis(load_pipeline("digits16/base").unet, x.float(), t, k)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda x, _: basis(x, 1000, 1), ValueError, "t must be a step 0 to 999; got 1000"),
        (lambda x, _: basis(x, 0.5, 1), TypeError, "integer"),
        (lambda x, _: basis(x, 0, 0), ValueError, "between 1 and 255, got 0"),
        (lambda x, _: basis(x, 0, 256), ValueError, "between 1 and 255, got 256"),
        (lambda x, _: basis(x[..., 1:], 0, 1), ValueError, r"shape \(B, 1, 16, 16\).*got \(1, 1, 16, 15\)"),
        (lambda x, f: traverse(f, x.mT[..., 1:], x[..., 1:], 2), ValueError, r"shape \(1, 16, 16\).*\(1, 16, 15\)"),
        (lambda x, f: gamma_traversal(f, x[..., 1:], x.flip(3)[..., 1:], [1.0]), ValueError, r"got \(1, 16, 15\)"),
    ],
)
def test_bases_and_latents_that_a_model_has_not_are_refused(attempt: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        attempt(noise(1, 1, 16, 16), Generator(load_pipeline("digits16/base"), 2))
