"""Jacobian products and singular values against dense Jacobians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from isodiff.geometry import jvp, pullback_vp, singular_values, singular_vectors, vjp
from isodiff.geometry.jacobian import dense_jacobian


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6), nn.Unflatten(1, (2, 3))).double()


class Attention(nn.Module):
    """Normalisation, convolutions of several kinds, and fused attention: what a U-Net's encoder is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.shrink = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False)
        self.spread = nn.Conv2d(4, 4, (1, 2), padding="same", dilation=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm(self.expand(x.reshape(-1, 1, 2, 4))))
        h = self.spread(self.shrink(h))
        tokens = h.flatten(2).mT[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, 2 * tokens, tokens).flatten(1)


@pytest.fixture(params=["perceptron", "attention"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return perceptron() if request.param == "perceptron" else Attention().double()


def dense(f: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobians row by row by plain reverse mode, (B, m, n)."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        rows = [torch.autograd.functional.jacobian(lambda z: f(z[None])[0].flatten(), r, create_graph=True) for r in x]
    return torch.stack(rows).flatten(2)


def times(a: Tensor, v: Tensor) -> Tensor:
    return (a @ v.flatten(1)[..., None])[..., 0]


def test_products_agree_with_the_dense_jacobian(network: nn.Module) -> None:
    x, v = noise(3, 8), noise(3, 8, seed=1)
    jacobian = dense(network, x)
    y, pushed, pulled = pullback_vp(network, x, v)
    u = noise(*y.shape, seed=2)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(y, network(x), **close)
    torch.testing.assert_close(pushed.flatten(1), times(jacobian, v), **close)
    torch.testing.assert_close(pulled, times(jacobian.mT @ jacobian, v), **close)
    torch.testing.assert_close(jvp(network, x, v)[1], pushed, **close)
    torch.testing.assert_close(vjp(network, x, u)[1], times(jacobian.mT, u), **close)


def test_gradients_of_products_in_the_parameters_agree_with_the_dense_jacobian(network: nn.Module) -> None:
    x, v = noise(3, 8), noise(3, 8, seed=1)
    parameters = list(network.parameters())
    jacobian = dense(network, x)
    oracle = times(jacobian.mT @ jacobian, v).square().sum() + times(jacobian, v).sin().sum()
    _, pushed, pulled = pullback_vp(network, x, v)
    ours = pulled.square().sum() + pushed.sin().sum()
    expected = torch.autograd.grad(oracle, parameters, allow_unused=True, materialize_grads=True)
    for one, other in zip(torch.autograd.grad(ours, parameters, materialize_grads=True), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert sum(g.abs().sum() for g in expected) > 0


def test_gradient_in_the_input_flows_when_asked_for(network: nn.Module) -> None:
    x, v = noise(2, 8).requires_grad_(), noise(2, 8, seed=1)
    jacobian = torch.stack([dense(network, r[None])[0] for r in x])
    expected = torch.autograd.grad(times(jacobian, v).square().sum(), x)[0]
    ours = torch.autograd.grad(jvp(network, x, v)[1].square().sum(), x)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_a_kernel_made_from_the_input_keeps_its_gradient() -> None:
    class Hypernetwork(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(
                [nn.functional.conv2d(r.reshape(1, 1, 2, 4), r[:4].reshape(1, 1, 2, 2)) for r in x]
            ).flatten(1)

    f, x, v = Hypernetwork(), noise(2, 8), noise(2, 8, seed=1)
    torch.testing.assert_close(jvp(f, x, v)[1], times(dense(f, x), v))


def test_rows_see_only_themselves() -> None:
    f, x, v = perceptron(), noise(4, 8), noise(4, 8, seed=1)
    together = pullback_vp(f, x, v)[2]
    alone = torch.cat([pullback_vp(f, x[i : i + 1], v[i : i + 1])[2] for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_without_gradients_products_come_detached() -> None:
    with torch.no_grad():
        y, pushed, pulled = pullback_vp(perceptron(), noise(2, 8), noise(2, 8, seed=1))
    assert [z.requires_grad for z in (y, pushed, pulled)] == [False] * 3
    assert pushed.abs().sum() > 0


def test_parameters_collect_no_gradient_from_products() -> None:
    f = perceptron()
    pullback_vp(f, noise(2, 8), noise(2, 8, seed=1))
    assert all(p.grad is None for p in f.parameters())


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_singular_values_and_vectors_against_dense(network: nn.Module, tangent: bool, k: int) -> None:
    x = noise(3, 8)
    jacobian = dense(network, x).detach()
    if tangent:
        unit = x / x.norm(dim=1, keepdim=True)
        jacobian = jacobian @ (torch.eye(8) - unit[:, :, None] * unit[:, None])
    sigma, vectors = singular_vectors(network, x, k, tangent=tangent)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(jacobian)[:, :k], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(singular_values(network, x, k, tangent=tangent), sigma)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(k, dtype=torch.float64).expand(3, k, k))
    gram = vectors @ jacobian.mT @ jacobian
    torch.testing.assert_close(gram, sigma[..., None] ** 2 * vectors, rtol=1e-5, atol=1e-6)
    if tangent:
        assert times(vectors, x).abs().max() < 1e-10


def test_singular_values_of_a_large_matrix() -> None:
    a = noise(150, 400)
    ours = singular_values(lambda x: x @ a.mT, noise(2, 400, seed=1), 12)
    torch.testing.assert_close(ours, torch.linalg.svdvals(a)[:12].expand(2, 12), rtol=1e-8, atol=0)


def test_degenerate_singular_values_are_all_found() -> None:
    q = torch.linalg.qr(noise(60, 60))[0]
    spectrum = torch.tensor([3.0] * 4 + [1.0] * 20 + [0.0] * 36, dtype=torch.float64)
    a = q * spectrum
    ours = singular_values(lambda x: x @ a.mT, noise(2, 60, seed=1), 6)
    torch.testing.assert_close(ours, spectrum[:6].expand(2, 6), rtol=1e-8, atol=0)


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
def test_values_by_iteration_are_right_to_a_per_cent(name: str) -> None:
    spectrum, k = SPECTRA[name], 20
    a = spectrum_map(spectrum, 300)
    x, seeds = noise(2, 300, seed=1), range(4)
    for seed in seeds:
        start = torch.Generator().manual_seed(seed)
        ours = singular_values(lambda z: z @ a.T, x, k, criterion="values", generator=start)
        torch.testing.assert_close(ours, spectrum[:k].expand(2, k), rtol=1e-2, atol=0)
        assert (ours <= spectrum[:k] * (1 + 1e-9)).all()  # they rise towards the truth


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("block_size", [1, 5, None])
def test_prescribed_spectra_to_many_digits_whatever_the_block(name: str, block_size: int | None) -> None:
    spectrum = SPECTRA[name]
    a = spectrum_map(spectrum, 200)
    ours = singular_values(lambda z: z @ a.T, noise(2, 200, seed=1), 12, block_size=block_size)
    torch.testing.assert_close(ours, spectrum[:12].expand(2, 12), rtol=1e-6, atol=0)


def test_the_leading_subspace_is_found_to_the_angle_asked_for() -> None:
    spectrum = torch.cat([torch.linspace(3, 2, 6), torch.linspace(1.5, 0.1, 94)]).double()
    a = spectrum_map(spectrum, 120)
    exact = torch.linalg.svd(a)[2][:6]
    for tolerance in (1e-2, 1e-5):
        options = {"criterion": "subspace", "tolerance": tolerance}
        _, vectors = singular_vectors(lambda z: z @ a.T, noise(2, 120, seed=1), 6, **options)
        missed = vectors - vectors @ exact.T @ exact
        assert torch.linalg.matrix_norm(missed, 2).max() <= tolerance


def test_on_a_flat_spectrum_values_settle_long_before_the_subspace() -> None:
    a = spectrum_map(torch.linspace(1.2, 0.8, 400, dtype=torch.float64), 500)
    search = {"k": 10, "max_iterations": 12}
    x = noise(1, 500, seed=1)
    singular_values(lambda z: z @ a.T, x, criterion="values", **search)
    with pytest.raises(RuntimeError, match="sine of the largest principal angle"):
        singular_values(lambda z: z @ a.T, x, criterion="subspace", **search)


def test_single_precision_loses_no_orthogonality() -> None:
    a = spectrum_map(SPECTRA["exponential"], 300).float()
    x = noise(2, 300, seed=1).float()
    sigma, vectors = singular_vectors(lambda z: z @ a.T, x, 40, criterion="values", tolerance=1e-3, tangent=True)
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(40).expand(2, 40, 40), rtol=0, atol=1e-5)
    assert times(vectors, x / x.norm(dim=1, keepdim=True)).abs().max() < 1e-5
    tangent = dense_jacobian(lambda z: z @ a.T, x, tangent=True)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(tangent)[:, :40], rtol=1e-3, atol=1e-5)


def test_a_row_does_not_depend_on_the_others(network: nn.Module) -> None:
    x = noise(4, 8)
    together = singular_values(network, x, 3, criterion="values", block_size=1)
    alone = torch.cat([singular_values(network, r[None], 3, criterion="values", block_size=1) for r in x])
    torch.testing.assert_close(together, alone)


def test_a_start_along_x_still_finds_the_tangent_space() -> None:
    a = noise(9, 9, seed=3)
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours = singular_values(lambda z: z @ a.T, x, 2, tangent=True, generator=torch.Generator().manual_seed(5))
    expected = torch.linalg.svdvals(dense_jacobian(lambda z: z @ a.T, x, tangent=True))[:, :2]
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("outputs", [5, 11])
def test_dense_jacobians_from_either_side(outputs: int) -> None:
    a, x = noise(outputs, 8), noise(3, 8, seed=1)
    torch.testing.assert_close(dense_jacobian(lambda z: (z @ a.T).sin(), x), (x @ a.T).cos()[:, :, None] * a)


def test_a_map_of_lower_rank_than_k_has_zeros() -> None:
    spectrum = torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(37)]).double()
    a = spectrum_map(spectrum, 50)
    for criterion in ("residual", "values"):
        ours = singular_values(lambda z: z @ a.T, noise(1, 50, seed=1), 6, criterion=criterion)
        torch.testing.assert_close(ours[0], spectrum[:6], rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "angle"}, "criterion must be one of .* got 'angle'"),
        ({"block_size": 4}, "block_size must be between 1 and k = 3, got 4"),
        ({"block_size": 0}, "got 0"),
    ],
)
def test_unknown_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        singular_values(perceptron(), noise(2, 8), 3, **options)


def test_a_map_of_rank_zero_has_zero_singular_values() -> None:
    assert singular_values(lambda x: 0 * x, noise(2, 5), 3).abs().max() == 0


def test_rows_of_different_scale_converge_together() -> None:
    scale = torch.tensor([[1e-6], [1e6]], dtype=torch.float64)
    a = noise(20, 30)
    ours = singular_values(lambda x: scale * (x @ a.mT), noise(2, 30, seed=1), 4)
    torch.testing.assert_close(ours, scale * torch.linalg.svdvals(a)[:4], rtol=1e-8, atol=0)


def test_images_keep_their_shape() -> None:
    weights = noise(5, 3, 4, 4)
    vectors = singular_vectors(lambda x: torch.einsum("bchw,mchw->bm", x, weights), noise(2, 3, 4, 4), 2)[1]
    assert vectors.shape == (2, 2, 3, 4, 4)


def test_failure_to_converge_is_an_error() -> None:
    a = noise(100, 100)
    with pytest.raises(RuntimeError, match=r"did not converge.*after 1 iterations"):
        singular_values(lambda x: x @ a, noise(1, 100, seed=1), 3, max_iterations=1)


@pytest.mark.parametrize(("k", "tangent"), [(0, False), (7, False), (8, True)])
def test_k_out_of_range_is_refused(k: int, tangent: bool) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 6, got {k}"):
        singular_values(perceptron(), noise(2, 8), k, tangent=tangent)


def test_direction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v must have the shape of x, \(2, 8\); got \(1, 8\)"):
        jvp(perceptron(), noise(2, 8), noise(1, 8))


def test_covector_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"u must have the shape of f\(x\), \(2, 2, 3\); got \(2, 6\)"):
        vjp(perceptron(), noise(2, 8), noise(2, 6))


def test_a_map_that_mixes_up_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"map 4 rows to 4 rows, got output of shape \(2, 16\)"):
        jvp(lambda x: x.reshape(2, 16), noise(4, 8), noise(4, 8))


def test_a_map_cut_off_from_its_input_is_refused() -> None:
    with pytest.raises(ValueError, match="detached from x"):
        jvp(lambda x: x.detach(), noise(2, 8), noise(2, 8))


def test_a_point_without_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 or more"):
        jvp(lambda x: x, noise(8), noise(8))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="x must be finite"):
        jvp(lambda x: x, torch.full((2, 3), torch.nan), torch.ones(2, 3))
