"""Central differences give the traces and their gradients that double backward gives, from first-order passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isodiff.diffusion.hspace import encode
from isodiff.diffusion.pretrained import build_unet
from isodiff.geometry import exact_isometry_loss, isometry_loss, trace_samples
from isodiff.geometry.differences import DifferenceSquares

METRICS = ("stereographic", "chart_identity", "euclidean")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("estimator", "num_probes"), [("ratio", 1), ("ratio", 3), ("unbiased", 2), ("jackknife", 2)])
def test_both_routes_agree(network: nn.Module, metric: str, estimator: str, num_probes: int) -> None:
    x, options = noise(5, 6), {"metric": metric, "estimator": estimator, "num_probes": num_probes}
    exact, ours = (
        isometry_loss(network, x, **options, generator=torch.Generator().manual_seed(9), route=route)
        for route in ("double_backward", "differences")
    )
    torch.testing.assert_close(ours, exact, rtol=1e-8, atol=0)
    expected, found = gradient(exact, network), gradient(ours, network)
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-7 * expected.norm()


def test_the_gradient_is_that_of_the_dense_oracle(network: nn.Module) -> None:
    """All unit vectors of ℝⁿ, times √n, are probes whose mean is the trace itself."""
    x, n = noise(3, 6), 6
    probes = n**0.5 * torch.eye(n, dtype=torch.float64)[:, None].expand(n, 3, n)
    first, second = trace_samples(network, x, metric="euclidean", probes=probes, route="differences")
    loss, exact = second.mean() / first.mean().square(), exact_isometry_loss(network, x, metric="euclidean")
    torch.testing.assert_close(loss, exact, rtol=1e-8, atol=0)
    expected = gradient(exact, network)
    assert (gradient(loss, network) - expected).norm() < 1e-7 * expected.norm()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.floats(1e-3, 1e3), st.integers(0, 2**20))
def test_a_linear_map_is_exact_to_rounding(n: int, m: int, scale: float, seed: int) -> None:
    jacobian, x, v = scale * noise(m, n, seed=seed), noise(3, n, seed=seed + 1), noise(3, n, seed=seed + 2)
    first, second = DifferenceSquares(lambda z: z @ jacobian.mT, x, lambda w: w)(v)
    pushed = v @ jacobian.mT
    torch.testing.assert_close(first, pushed.square().sum(1), rtol=1e-7, atol=1e-9 * scale**2)
    torch.testing.assert_close(second, (pushed @ jacobian).square().sum(1), rtol=1e-7, atol=1e-9 * scale**4)


def test_the_course_s_encoder_in_float32() -> None:
    """About 10⁻³, as the documentation states, with room."""
    unet = build_unet("digits16", resolution=8, channels=3)
    x = noise(4, 3, 8, 8).float()
    losses = [
        isometry_loss(lambda z: encode(unet, z, 600), x, generator=torch.Generator().manual_seed(9), route=route)
        for route in ("double_backward", "differences")
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-3)
    expected, found = (gradient(loss, unet) for loss in losses)
    assert 0 < (found - expected).norm() < 5e-3 * expected.norm()


def test_fused_attention_is_used_and_agrees() -> None:
    """The fused kernel has no second derivative; the plain one, which double backward needs, has."""
    torch.manual_seed(0)
    mix = nn.Linear(8, 24).double()

    def attend(z: Tensor) -> Tensor:
        q, k, v = mix(z).view(len(z), 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)

    x = noise(3, 4, 8)
    losses = [
        isometry_loss(attend, x, generator=torch.Generator().manual_seed(9), route=route)
        for route in ("double_backward", "differences")
    ]
    expected, found = (gradient(loss, mix) for loss in losses)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_layers_draw_alike_at_every_evaluation() -> None:
    """Were dropout drawn anew, a difference would divide a change of order one by the step."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 4)).double().train()
    x, probes = noise(5, 6), noise(1, 5, 6, seed=1)
    found = []
    for route in ("double_backward", "differences"):
        torch.manual_seed(3)
        first, second = trace_samples(network, x, probes=probes, route=route)
        found.append(gradient(second.mean() / first.mean().square(), network))
    assert (found[1] - found[0]).norm() < 1e-6 * found[0].norm()


def test_without_gradients_the_values_are_the_same(network: nn.Module) -> None:
    x, probes = noise(5, 6), noise(2, 5, 6, seed=1)
    attached = trace_samples(network, x, probes=probes, route="differences")
    with torch.no_grad():
        detached = trace_samples(network, x, probes=probes, route="differences")
    assert all(
        torch.equal(a, b) and a.requires_grad and not b.requires_grad for a, b in zip(attached, detached, strict=True)
    )


def test_a_map_that_is_flat_somewhere_gives_no_nan(network: nn.Module) -> None:
    x = noise(2, 6)
    mask = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    loss = isometry_loss(
        lambda z: mask * network(z), x, generator=torch.Generator().manual_seed(9), route="differences"
    )
    assert gradient(loss, network).isfinite().all()


def test_bad_input_is_refused(network: nn.Module) -> None:
    x = noise(2, 6)
    with pytest.raises(ValueError, match=r"route must be one of .*'differences'.*got 'forward'"):
        isometry_loss(network, x, route="forward")
    with pytest.raises(ValueError, match="zero row with the differences route, got zero in row 1"):
        isometry_loss(network, x * torch.tensor([[1.0], [0.0]]).double(), metric="euclidean", route="differences")
    with pytest.raises(ValueError, match="detached"):
        isometry_loss(lambda z: network(z.detach()).detach(), x, route="differences")
    with pytest.raises(ValueError, match="2 rows to 2 rows"):
        isometry_loss(lambda z: network(z)[:1], x, route="differences")
