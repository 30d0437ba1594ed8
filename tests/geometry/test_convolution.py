"""Trilinear convolutions against PyTorch's own, to the second derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from isodiff.geometry.layers import TwiceDifferentiable

from .tensors import noise


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2)},
        {"dilation": 2},
        {"groups": 2, "bias": False},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_value_and_derivatives_equal_those_of_torch(options: dict) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options).double()
    x = noise(2, 4, 7, 6, seed=1).requires_grad_()

    def derivatives() -> list[Tensor]:
        y = layer(x)
        first = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *layer.parameters()])
        return [y, *first, *second]

    expected = derivatives()
    with TwiceDifferentiable():
        found = derivatives()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
