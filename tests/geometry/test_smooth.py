"""Smooth Diffusion's penalty: lengths of a known Jacobian, its floor, and shares whose gradients add up to its own."""

import pytest
import torch

from isodiff.geometry import pulled_lengths, smooth_loss_share, updated_average

from .tensors import noise


def test_lengths_are_those_of_a_known_jacobian_and_the_penalty_its_variance() -> None:
    matrix, x, delta = noise(3, 5), noise(4, 5, seed=1), noise(4, 3, seed=2)
    lengths = pulled_lengths(lambda z: z @ matrix.mT, x, delta)
    torch.testing.assert_close(lengths, (delta @ matrix).norm(dim=1))
    average, means = 0.0, []
    for _ in range(2000):
        mean = lengths.detach().mean()
        penalty, average = smooth_loss_share(lengths, mean, average), updated_average(mean.item(), average)
        means.append(penalty.item())
    assert average == pytest.approx(lengths.mean().item(), rel=1e-8)
    assert means[-1] == pytest.approx(lengths.var(correction=0).item(), rel=1e-6)
    first = (lengths - 0.01 * lengths.mean()).square().mean()  # the running mean starts at 0 and is updated first
    assert means[0] == pytest.approx(first.item(), rel=1e-12)


def test_shares_have_the_gradient_of_the_whole_running_mean_included() -> None:
    lengths = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64, requires_grad=True)
    whole = (lengths - (0.99 * 3.0 + 0.01 * lengths.mean())).square().mean()
    expected, mean = torch.autograd.grad(whole, lengths)[0], lengths.detach().mean()
    shares = torch.stack([smooth_loss_share(part, mean, 3.0) for part in lengths.chunk(2)]).mean()
    assert shares.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(shares, lengths)[0], expected)
    alone = smooth_loss_share(lengths, lengths.mean(), 3.0)
    torch.testing.assert_close(torch.autograd.grad(alone, lengths)[0], expected)
