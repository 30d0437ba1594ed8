"""Seeded tensors, slopes and tests of refusals that these tests and their neighbours share."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def times(a: Tensor, v: Tensor) -> Tensor:
    """Return matrices (B, m, n) times rows (B, *S), (B, m)."""
    return (a @ v.flatten(1)[..., None])[..., 0]


def slopes(value: Callable[[], float], parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[float]:
    """Return the slope of a value along a random direction, as its gradients say and by differences of 4th order."""
    directions = [torch.randn_like(p) * p.std(correction=0).clamp_min(0.1) for p in parameters]

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        return value()

    h = 1e-4
    right, left, far_left, far_right = (moved(step * h) for step in (1, -2, -1, 4))
    said = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    return [said, (8 * (right - left) - (far_right - far_left)) / (12 * h)]


def refusals(*rows: tuple[Callable[[], object], str], errors: type | tuple[type, ...] = ValueError) -> Callable:
    """Return a test that each call is refused with its message."""

    @pytest.mark.parametrize(("call", "message"), rows)
    def test(call: Callable[[], object], message: str) -> None:
        with pytest.raises(errors, match=message):
            call()

    return test
