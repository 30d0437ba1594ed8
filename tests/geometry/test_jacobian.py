"""Jacobian products, singular values and mean metrics against dense Jacobians."""

import pytest
import torch
from torch import Tensor, nn

from isodiff.geometry import dense_jacobian, jvp, pullback_vp, restrict_to_mean, singular_values, singular_vectors, vjp

from .tensors import noise, refusals, times


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


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6), nn.Unflatten(1, (2, 3)))


@pytest.fixture(params=[perceptron, Attention])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return request.param().double()


def dense(f: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobians row by row by plain reverse mode, (B, m, n)."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        rows = [torch.autograd.functional.jacobian(lambda z: f(z[None])[0].flatten(), r, create_graph=True) for r in x]
    return torch.stack(rows).flatten(2)


def test_products_and_their_gradients_agree_with_the_dense_jacobian(network: nn.Module) -> None:
    x, v = noise(3, 8).requires_grad_(), noise(3, 8, seed=1)
    jacobian = dense(network, x)
    y, pushed, pulled = pullback_vp(network, x, v)
    u = noise(*y.shape, seed=2)
    for ours, expected in (
        (y, network(x)),
        (pushed.flatten(1), times(jacobian, v)),
        (pulled, times(jacobian.mT @ jacobian, v)),
        (jvp(network, x, v)[1], pushed),
        (vjp(network, x, u)[1], times(jacobian.mT, u)),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    wanted = [x, *network.parameters()]
    oracle = times(jacobian.mT @ jacobian, v).square().sum() + times(jacobian, v).sin().sum()
    expected = torch.autograd.grad(oracle, wanted, allow_unused=True, materialize_grads=True)
    ours = torch.autograd.grad(pulled.square().sum() + pushed.sin().sum(), wanted, materialize_grads=True)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    assert sum(g.abs().sum() for g in expected) > 0


def test_a_kernel_made_from_the_input_keeps_its_gradient() -> None:
    def f(x: Tensor) -> Tensor:
        made = [nn.functional.conv2d(r.reshape(1, 1, 2, 4), r[:4].reshape(1, 1, 2, 2)) for r in x]
        return torch.cat(made).flatten(1)

    x, v = noise(2, 8), noise(2, 8, seed=1)
    torch.testing.assert_close(jvp(f, x, v)[1], times(dense(f, x), v))


def test_without_gradients_products_come_detached() -> None:
    with torch.no_grad():
        assert not any(z.requires_grad for z in pullback_vp(perceptron().double(), noise(2, 8), noise(2, 8, seed=1)))


@pytest.mark.parametrize("tangent", [False, True])
def test_singular_values_and_vectors_against_dense(network: nn.Module, tangent: bool) -> None:
    x, k = noise(3, 8), 6
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


@pytest.mark.parametrize("outputs", [5, 11])
def test_dense_jacobians_from_either_side(outputs: int) -> None:
    a, x = noise(outputs, 8), noise(3, 8, seed=1)
    torch.testing.assert_close(dense_jacobian(lambda z: (z @ a.T).sin(), x), (x @ a.T).cos()[:, :, None] * a)


@pytest.mark.parametrize("tangent", [False, True])
def test_metrics_restricted_to_the_leading_directions_of_their_mean(network: nn.Module, tangent: bool) -> None:
    x, k = noise(3, 8), 4
    jacobian = dense_jacobian(network, x, tangent=tangent).flatten(2) if tangent else dense(network, x).detach()
    metrics = jacobian.mT @ jacobian
    leading = torch.linalg.eigh(metrics.mean(0))[1].flip(1)[:, :k]
    expected = torch.linalg.eigvalsh(leading.mT @ metrics @ leading)  # whatever the signs of the directions
    exact = restrict_to_mean(network, x, k, tangent=tangent, dense=True)
    torch.testing.assert_close(torch.linalg.eigvalsh(exact), expected, rtol=1e-8, atol=1e-10)
    close = restrict_to_mean(network, x, k, tangent=tangent, tolerance=1e-9)
    torch.testing.assert_close(torch.linalg.eigvalsh(close), expected, rtol=1e-6, atol=1e-8)


F, X = perceptron().double(), noise(2, 8)
test_bad_input_is_refused = refusals(
    (lambda: jvp(F, X, X[:1]), r"v must have the shape of x, \(2, 8\); got \(1, 8\)"),
    (lambda: vjp(F, X, X[:, :6]), r"u must have the shape of f\(x\), \(2, 2, 3\); got \(2, 6\)"),
    (lambda: jvp(lambda z: z.reshape(1, 16), X, X), r"map 2 rows to 2 rows, got output of shape \(1, 16\)"),
    (lambda: jvp(lambda z: z.detach(), X, X), "detached from x"),
    (lambda: jvp(F, X * torch.nan, X), "x must be finite"),
    (lambda: singular_values(F, X, 8, tangent=True), "between 1 and 6, got 8"),
    (lambda: singular_values(F, X, 3, criterion="angle"), "criterion must be one of .* got 'angle'"),
    (lambda: singular_values(F, X, 3, block_size=4), "block_size must be between 1 and k = 3, got 4"),
    (lambda: restrict_to_mean(F, X, 9, dense=True), "k must be between 1 and 8, got 9"),
)
