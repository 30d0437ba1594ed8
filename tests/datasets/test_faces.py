"""The renderer is smooth, resolution-consistent and invertible; its dataset is deterministic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodiff.datasets import FACTORS, FacesDataset, estimate_factors, open_dataset, render, sample_factors

from ..geometry.tensors import refusals


def _factors(num: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return sample_factors(num, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_derivative_agrees_with_finite_differences() -> None:
    z, direction = 0.9 * _factors(4), _factors(4, seed=1)
    _, analytic = torch.func.jvp(lambda f: render(f, 16), (z,), (direction,))
    step = 1e-6
    numeric = (render(z + step * direction, 16) - render(z - step * direction, 16)) / (2 * step)
    torch.testing.assert_close(analytic, numeric, atol=1e-6, rtol=1e-5)


def test_tangent_space_has_full_rank() -> None:
    """Ten factors, ten dimensions: no factor can be traded for others to first order."""
    z = 0.9 * _factors(8)
    jacobians = [torch.func.jacfwd(lambda f: render(f[None], 32).flatten())(row) for row in z]
    singular = torch.linalg.svdvals(torch.stack(jacobians))
    assert singular.shape == (8, len(FACTORS))
    assert (singular[:, -1] / singular[:, 0]).min() > 1e-2


def test_mirroring_turns_the_head() -> None:
    z = _factors(8)
    turned = torch.tensor([-1.0 if name == "pose" else 1.0 for name in FACTORS], dtype=z.dtype)
    difference = (render(z, 64).flip(3) - render(turned * z, 64)).square().mean()
    unrelated = (render(z, 64) - render(_factors(8, seed=9), 64)).square().mean()
    assert difference < 0.01 * unrelated  # only the highlights in the eyes stay on one side


def test_resolutions_show_the_same_face() -> None:
    z = _factors(8)
    large = render(z, 128)
    small = torch.nn.functional.interpolate(large, 32, mode="area")
    assert large.abs().max() <= 1
    assert (small - render(z, 32)).square().mean() < 0.01


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), split=st.integers(1, 5))
def test_rows_are_independent(seed: int, split: int) -> None:
    z = _factors(6, seed)
    torch.testing.assert_close(render(z, 16)[split:], render(z[split:], 16), atol=1e-12, rtol=0)


def test_factors_are_recovered() -> None:
    z = _factors(8, dtype=torch.float32)
    estimate = estimate_factors(render(z, 16))
    assert (estimate.factors - z).abs().max() < 1e-3
    assert estimate.error.max() < 1e-8


def test_recovery_survives_pixel_noise() -> None:
    z = _factors(8, dtype=torch.float32)
    noise = 0.05 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    estimate = estimate_factors(render(z, 32) + noise)
    assert (estimate.factors - z).abs().median() < 0.01
    # 3,072 noisy values less the ten degrees of freedom that the fit absorbs
    assert estimate.error.mean() == pytest.approx(0.05**2 * (1 - 10 / 3072), rel=0.04)


def test_dataset_is_deterministic_and_batched() -> None:
    dataset, again = FacesDataset(16, num_images=100, seed=3), open_dataset("faces", 16, seed=3)
    batch = dataset.__getitems__([5, 0, 99])
    assert len(dataset) == 100
    torch.testing.assert_close(batch[0], dataset[5])
    torch.testing.assert_close(dataset[-1], dataset[99])
    torch.testing.assert_close(again[0], render(again.factors[:1], 16)[0])
    assert not torch.equal(FacesDataset(16, num_images=10, seed=4)[0], dataset[0])
    assert (dataset.channels, dataset.resolution, dataset.horizontal_flip) == (3, 16, False)


test_bad_input_is_refused = refusals(
    (lambda: render(torch.zeros(2, 9), 32), r"\(B, 10\).*got .*\(2, 9\)"),
    (lambda: render(torch.zeros(2, 10, dtype=torch.int64), 32), "int64"),
    (lambda: render(torch.full((1, 10), 1.5), 32), r"\[-1, 1\].*1\.5"),
    (lambda: render(torch.full((1, 10), torch.nan), 32), r"\[-1, 1\].*nan"),
    (lambda: FacesDataset(4), "8 to 1024 pixels; got 4"),
    (lambda: estimate_factors(torch.zeros(2, 1, 32, 32)), r"\(B, 3, R, R\).*\(2, 1, 32, 32\)"),
    (lambda: estimate_factors(torch.full((1, 3, 16, 16), torch.inf)), "finite"),
)
