"""Singular values and vectors by iteration: prescribed spectra, criteria, precision, degeneracy, and failures."""

import pytest
import torch
from torch import Tensor

from isodiff.geometry import dense_jacobian, singular_values, singular_vectors

from .tensors import noise, times


def spectrum_map(spectrum: Tensor, n: int) -> Tensor:
    """Return a matrix (m, n) of prescribed singular values."""
    m = len(spectrum)
    return (torch.linalg.qr(noise(m, m))[0] * spectrum) @ torch.linalg.qr(noise(n, m, seed=2))[0].T


SPECTRA = {
    "exponential": torch.exp(-torch.arange(150, dtype=torch.float64) / 20),
    "power law": (1 + torch.arange(150, dtype=torch.float64)) ** -0.5,
    "flat": torch.linspace(1.2, 0.8, 150, dtype=torch.float64),
    "outliers": torch.cat([torch.tensor([50.0, 20.0, 9.0]), torch.linspace(1, 0.01, 147)]).double(),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectra_to_a_per_cent_or_to_many_digits_whatever_the_block(name: str) -> None:
    spectrum, x, k = SPECTRA[name], noise(2, 300, seed=1), 20
    a = spectrum_map(spectrum, 300)
    for seed in range(4):
        search = {"criterion": "values", "generator": torch.Generator().manual_seed(seed)}
        ours = singular_values(lambda z: z @ a.T, x, k, **search)
        torch.testing.assert_close(ours, spectrum[:k].expand(2, k), rtol=1e-2, atol=0)
        assert (ours <= spectrum[:k] * (1 + 1e-9)).all()  # they rise towards the truth
    for block_size in (1, None):
        ours = singular_values(lambda z: z @ a.T, x, 12, block_size=block_size)
        torch.testing.assert_close(ours, spectrum[:12].expand(2, 12), rtol=1e-6, atol=0)


@pytest.mark.parametrize("criterion", ["residual", "values"])
@pytest.mark.parametrize("leading", [[3.0] * 4 + [1.0] * 16, [3.0, 2.0, 1.0], []])
def test_equal_values_are_all_found_and_missing_ones_are_zero(leading: list[float], criterion: str) -> None:
    spectrum = torch.tensor(leading + [0.0] * (40 - len(leading)), dtype=torch.float64)
    a = spectrum_map(spectrum, 50)
    ours = singular_values(lambda z: z @ a.T, noise(2, 50, seed=1), 6, criterion=criterion)
    torch.testing.assert_close(ours, spectrum[:6].expand(2, 6), rtol=1e-8, atol=1e-7 * (len(leading) < 6))


def test_the_leading_subspace_is_found_to_the_angle_asked_for() -> None:
    spectrum = torch.cat([torch.linspace(3, 2, 6), torch.linspace(1.5, 0.1, 94)]).double()
    a = spectrum_map(spectrum, 120)
    exact = torch.linalg.svd(a)[2][:6]
    for tolerance in (1e-2, 1e-5):
        options = {"criterion": "subspace", "tolerance": tolerance}
        _, vectors = singular_vectors(lambda z: z @ a.T, noise(2, 120, seed=1), 6, **options)
        missed = vectors - vectors @ exact.T @ exact
        assert torch.linalg.matrix_norm(missed, 2).max() <= tolerance


def test_single_precision_loses_no_orthogonality() -> None:
    a = spectrum_map(SPECTRA["exponential"], 300).float()
    x = noise(2, 300, seed=1).float()
    sigma, vectors = singular_vectors(lambda z: z @ a.T, x, 40, criterion="values", tolerance=1e-3, tangent=True)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(40).expand(2, 40, 40), rtol=0, atol=1e-5)
    assert times(vectors, x / x.norm(dim=1, keepdim=True)).abs().max() < 1e-5
    tangent = dense_jacobian(lambda z: z @ a.T, x, tangent=True)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(tangent)[:, :40], rtol=1e-3, atol=1e-5)


def test_a_row_does_not_depend_on_the_others_whatever_their_scale() -> None:
    scale = torch.tensor([[1e-6], [1e6]], dtype=torch.float64)
    a = noise(20, 30)
    ours = singular_values(lambda x: scale * (x @ a.mT), noise(2, 30, seed=1), 4)
    torch.testing.assert_close(ours, scale * torch.linalg.svdvals(a)[:4], rtol=1e-8, atol=0)


def test_a_start_along_x_still_finds_the_tangent_space() -> None:
    a, x = noise(9, 9, seed=3), noise(2, 9, seed=5)
    ours = singular_values(lambda z: z @ a.T, x, 2, tangent=True, generator=torch.Generator().manual_seed(5))
    expected = torch.linalg.svdvals(dense_jacobian(lambda z: z @ a.T, x, tangent=True))[:, :2]
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=0)


def test_failures_are_errors() -> None:
    a, x = noise(100, 100), noise(1, 100, seed=1)
    with pytest.raises(RuntimeError, match=r"did not converge.*after 1 iterations"):
        singular_values(lambda z: z @ a, x, 3, max_iterations=1)
    flat = spectrum_map(torch.linspace(1.2, 0.8, 400, dtype=torch.float64), 500)  # values settle, directions do not
    search = {"k": 10, "max_iterations": 12}
    singular_values(lambda z: z @ flat.T, noise(1, 500, seed=1), criterion="values", **search)
    with pytest.raises(RuntimeError, match="sine of the largest principal angle"):
        singular_values(lambda z: z @ flat.T, noise(1, 500, seed=1), criterion="subspace", **search)
    with pytest.raises(RuntimeError, match="a product with the Jacobian is not finite"):
        singular_values(lambda z: z.abs().sqrt() - (z - z).abs().sqrt(), x, 3)
