"""The shell of noisy images against closed forms: noise alone, one image over and over, Gaussian images."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import hyp1f1
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.geometry import expected_radius
from isodiff.metrics.shell import ShellPoint, holds_from, measure_shell, shell_points

from ..geometry.tensors import refusals

SCHEDULER = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
ALPHA_BAR = SCHEDULER.alphas_cumprod.double()


class Images(Dataset[Tensor]):
    """Serve given images, or what looks like a stream of them."""

    def __init__(self, images: Tensor, *, sequential: bool = False) -> None:
        self.images, self.sequential, self.asked = images, sequential, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, positions: list[int]) -> list[Tensor]:
        self.asked += positions
        return [self.images[position] for position in positions]


def _inside(value: float, interval: tuple[float, float]) -> bool:
    """Whether a value lies in an interval of about four standard errors on each side."""
    return abs(value - sum(interval) / 2) <= interval[1] - interval[0]


def _measured(images: Tensor) -> Iterator[tuple[ShellPoint, float]]:
    """Yield what is found at three steps, and ᾱ there."""
    times = [0, 300, 999]
    shell = measure_shell(Images(images), SCHEDULER, num_images=400, times=times)
    return zip(shell.points, ALPHA_BAR[times].tolist(), strict=True)


@given(st.integers(2, 999))
def test_the_thickness_of_noise_is_that_of_the_chi_law(n: int) -> None:
    (point,) = shell_points(np.full((1, 2), math.sqrt(n)), [0], [1.0], n)
    law = stats.chi(n)
    assert point.noise_variation == pytest.approx(law.std() / law.mean(), rel=1e-7)
    assert point.radius == pytest.approx(law.mean(), rel=1e-10)


@pytest.mark.parametrize("square", [0.0, 0.25])
def test_one_image_over_and_over(square: float) -> None:
    """‖x_t‖/σ_t then has the noncentral chi law, of mean E‖ε‖ · ₁F₁(−1/2; n/2; −λ/2), λ = ᾱ‖x₀‖²/σ²."""
    n = 48
    for point, alpha_bar in _measured(torch.full((400, 3, 4, 4), math.sqrt(square))):
        noncentrality = alpha_bar * n * square / (1 - alpha_bar)
        ratio = hyp1f1(-0.5, n / 2, -noncentrality / 2)
        second = (n + noncentrality) / expected_radius(n) ** 2  # E‖x_t‖² / r_t²
        assert point.radius == pytest.approx(math.sqrt(1 - alpha_bar) * expected_radius(n), rel=1e-6)
        assert _inside(ratio, point.ratio_interval)
        assert _inside(math.sqrt(second / ratio**2 - 1), point.variation_interval)


def test_gaussian_images() -> None:
    """x_t is Gaussian again: the ratio is √(1 + s²ᾱ/(1 − ᾱ)), and the shell as thin as that of noise at every step."""
    for point, alpha_bar in _measured(0.3 * torch.randn(400, 3, 4, 4, generator=torch.Generator().manual_seed(5))):
        assert _inside(math.sqrt(1 + 0.3**2 * alpha_bar / (1 - alpha_bar)), point.ratio_interval)
        assert _inside(point.noise_variation, point.variation_interval)


def test_it_is_the_schedulers_own_noising() -> None:
    """With the noise drawn as documented, norms are those of `add_noise`, and the seed decides."""
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    generator = torch.Generator().manual_seed(3)
    eps = torch.stack([torch.randn(2, 48, generator=generator) for _ in range(6)]).view(6, 2, 3, 4, 4)
    times = [10, 700]
    noisy = [SCHEDULER.add_noise(images, eps[:, i], torch.full((6,), t)) for i, t in enumerate(times)]
    norms = torch.stack([x_t.flatten(1).norm(dim=1) for x_t in noisy]).double().numpy()
    expected = shell_points(norms, times, (1 - ALPHA_BAR[times]).sqrt().tolist(), 48)
    shell = measure_shell(Images(images), SCHEDULER, num_images=6, times=times, seed=3)
    assert [point.ratio for point in shell.points] == pytest.approx([point.ratio for point in expected], rel=1e-5)
    assert shell != measure_shell(Images(images), SCHEDULER, num_images=6, times=times, seed=4)


def test_a_stream_is_read_in_order_and_others_at_random() -> None:
    """Each image once; a choice by the seed, ascending."""
    images = torch.rand(200, 3, 2, 2)
    stream, others = Images(images, sequential=True), Images(images)
    measure_shell(stream, SCHEDULER, num_images=100, times=[500])
    measure_shell(others, SCHEDULER, num_images=100, times=[500])
    assert stream.asked == list(range(100))
    assert others.asked == sorted(set(others.asked))
    assert others.asked != stream.asked


def test_a_condition_holds_from_the_last_step_at_which_it_did_not() -> None:
    assert holds_from([0, 5, 10, 15], [True, False, True, True]) == 10
    assert holds_from([0, 5], [True, False]) is None


FIVE = partial(measure_shell, Images(torch.rand(5, 3, 2, 2)), SCHEDULER)
test_other_input_is_refused = refusals(
    (partial(FIVE, num_images=6), "num_images must be 2 … 5, the images there are; got 6"),
    (partial(FIVE, times=(3, 2)), r"times must be ascending steps of 0 … 999; got \[3, 2\]"),
    (partial(shell_points, np.array([[1.0, np.nan]]), [0], [1.0], 5), "finite and positive"),
)
