"""Full float32: what a difference between two almost equal images needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Run a block in float32 or better: no autocast, no TF32, and convolutions that always take the same route.

    Note:
        TF32, the default of cuDNN's convolutions, keeps 11 bits of each factor. What the block calls can still choose
        half precision for itself.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(before)
