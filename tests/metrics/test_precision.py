"""Full float32, and back to what was set before."""

from __future__ import annotations

import pytest
import torch

from isodiff.metrics.precision import full_precision


def _settings() -> tuple:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture
def _fast_and_loose() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_fast_and_loose")
def test_a_block_runs_in_float32_whatever_is_set_around_it() -> None:
    before = _settings()
    a = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision():
            assert (a @ a).dtype == torch.float32
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            with full_precision():
                assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert (a @ a).dtype == torch.bfloat16
    assert _settings() == before


@pytest.mark.usefixtures("_fast_and_loose")
def test_an_error_leaves_nothing_behind() -> None:
    before = _settings()
    with pytest.raises(RuntimeError, match="inside"), full_precision():
        raise RuntimeError("inside")
    assert _settings() == before
