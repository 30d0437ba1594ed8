"""Paths decoded in order, directions against dense decompositions, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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


class _Linear(nn.Module):
    """An encoder with a prescribed Jacobian, in the layout of a U-Net: h = A x."""

    class _Identity(nn.Module):
        def forward(self, hidden: Tensor, *_: Tensor) -> Tensor:
            return hidden

    class config:
        in_channels, sample_size, center_input_sample = 1, 6, False

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.conv_in = nn.Sequential(nn.Flatten(), nn.Linear(*matrix.shape[::-1], bias=False, dtype=matrix.dtype))
        self.conv_in[1].weight = nn.Parameter(matrix)
        self.down_blocks, self.mid_block = nn.ModuleList(), self._Identity()
        self.time_proj = self.time_embedding = lambda t: t.to(matrix.dtype)
        self.dtype = matrix.dtype


def test_local_basis_recovers_prescribed_directions() -> None:
    """J = U S Vᵀ with V orthogonal to x has the singular values S on the tangent space."""
    x = noise(1, 1, 6, 6)
    frame = torch.linalg.qr(torch.cat([x.flatten(1).T, noise(36, 35, seed=1)], 1))[0]
    right, left = frame[:, 1:21], torch.linalg.qr(noise(48, 20, seed=2))[0]
    sigma = 2.0 ** -torch.arange(20, dtype=torch.float64)
    unet = _Linear(left * sigma @ right.T + 100 * left[:, :1] @ frame[:, :1].T)  # and a radial part to be ignored
    basis = local_basis(unet, x, 999, 3)
    assert principal_angles(basis.directions[0].flatten(1).T, right[:, :3]).max() < 1e-3
    torch.testing.assert_close(basis.sigma[0], sigma[:3], rtol=1e-6, atol=0)
    for i in range(3):
        assert principal_angles(basis.directions[0, i].flatten()[:, None], right[:, i : i + 1]).max() < 1e-3


@pytest.mark.parametrize(
    ("model", "shape", "separated"),
    [
        ("digits16/base", (2, 1, 16, 16), [True, False]),
        ("digits16/isometric", (2, 1, 16, 16), [False, False]),
        ("faces32/base", (1, 3, 32, 32), [True]),
    ],
)
def test_local_basis_is_that_of_the_dense_jacobian(model: str, shape: tuple[int, ...], separated: list[bool]) -> None:
    """Values everywhere; the subspace where σ_k/σ_{k+1} ≥ 1.05, as it is hardly determined otherwise."""
    unet, x, k = load_pipeline(model).unet, noise(*shape, dtype=torch.float32), 3
    basis = local_basis(unet, x, 600, k)
    jacobian = dense_jacobian(lambda z: encode(unet, z, 600), x, tangent=True).double()
    square, left = torch.linalg.eigh(jacobian @ jacobian.mT)
    sigma, right = square.flip(1)[:, : k + 1].sqrt(), left.flip(2)[:, :, :k].mT @ jacobian
    torch.testing.assert_close(basis.sigma.double(), sigma[:, :k], rtol=1e-3, atol=0)
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
    with torch.no_grad():
        torch.testing.assert_close(whole[:, 0], generate(a), atol=1e-4, rtol=0)
        torch.testing.assert_close(whole[:, 2], generate(b), atol=1e-4, rtol=0)


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
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"path": lambda a, b, tau: a[:1]}, r"a point of the path must have the shape of a.*got \(1, 1, 4, 4\)"),
        ({"generate": lambda x: 300 * x}, r"images in \[−1, 1\]"),
    ],
)
def test_bad_traverses_are_refused(options: dict, message: str) -> None:
    given = {"generate": squash, "a": noise(2, 1, 4, 4), "b": noise(2, 1, 4, 4, seed=1), "num_points": 3}
    with pytest.raises(ValueError, match=message):
        traverse(**given | options)


def test_latents_of_another_model_are_refused() -> None:
    pipeline, x = load_pipeline("digits16/base"), noise(1, 3, 32, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"latents must have the shape \(1, 16, 16\).*got \(3, 32, 32\)"):
        traverse(Generator(pipeline, 2), x, -x.flip(3), 2)
    with pytest.raises(ValueError, match=r"latents must have the shape \(1, 16, 16\).*got \(3, 32, 32\)"):
        gamma_traversal(Generator(pipeline, 2), x, x.flip(3), [1.0])
    with pytest.raises(ValueError, match=r"x_t must have the shape \(B, 1, 16, 16\).*got \(1, 3, 32, 32\)"):
        local_basis(pipeline.unet, x, 0, 1)
    with pytest.raises(ValueError, match="at least one arc length"):
        gamma_traversal(squash, x, x.flip(3), [])


@pytest.mark.parametrize(
    ("t", "k", "error", "message"),
    [
        (1000, 1, ValueError, "t must be a step 0 to 999; got 1000"),
        (-1, 1, ValueError, "t must be a step 0 to 999; got -1"),
        (0.5, 1, TypeError, "integer"),
        (0, 0, ValueError, "between 1 and 255, got 0"),
        (0, 256, ValueError, "between 1 and 255, got 256"),
    ],
)
def test_bases_out_of_range_are_refused(t: float, k: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        local_basis(load_pipeline("digits16/base").unet, noise(1, 1, 16, 16, dtype=torch.float32), t, k)
