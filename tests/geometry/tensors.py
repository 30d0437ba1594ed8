"""Seeded tensors, and tests of refusals, that the tests of the geometry share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def times(a: Tensor, v: Tensor) -> Tensor:
    """Return matrices (B, m, n) times rows (B, *S), (B, m)."""
    return (a @ v.flatten(1)[..., None])[..., 0]


def refusals(*rows: tuple[Callable[[], object], str], errors: type | tuple[type, ...] = ValueError) -> Callable:
    """Return a test that each call is refused with its message."""

    @pytest.mark.parametrize(("call", "message"), rows)
    def test(call: Callable[[], object], message: str) -> None:
        with pytest.raises(errors, match=message):
            call()

    return test
