"""A noise level: its step and σ, the score there, and images that go up and come back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets.images import open_digits
from isodiff.diffusion.inversion import invert
from isodiff.diffusion.noise_level import NoiseLevel
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.diffusion.process import ddim_sample


class _Gaussian(torch.nn.Module):
    """The exact predictor for data x₀ ~ N(0, s² I), whose noisy density is N(0, (ᾱ s² + 1 − ᾱ) I)."""

    def __init__(self, scheduler: DDPMScheduler, scale: float = 0.6) -> None:
        super().__init__()
        self.scheduler, self.scale = scheduler, scale
        self.config = SimpleNamespace(in_channels=1, sample_size=4)

    def variance(self, t: int, x: Tensor) -> Tensor:
        alpha_bar = self.scheduler.alphas_cumprod.to(x)[t]
        return alpha_bar * self.scale**2 + 1 - alpha_bar

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        alpha_bar = self.scheduler.alphas_cumprod.to(x)[t]
        eps = x * (1 - alpha_bar).sqrt() / self.variance(t, x)
        clean = x * alpha_bar.sqrt() * self.scale**2 / self.variance(t, x)
        velocity = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * clean
        return SimpleNamespace(sample=eps if self.scheduler.config.prediction_type == "epsilon" else velocity)


def points(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_score_of_gaussian_data_is_exact(kind: str, spacing: str, share: float) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing=spacing)
    unet, x = _Gaussian(scheduler), points()
    level = NoiseLevel(unet, scheduler, share=share, num_steps=20)
    torch.testing.assert_close(level.score(x), -x / unet.variance(level.t, x), rtol=1e-5, atol=0)
    clean = level.alpha * unet.scale**2 / unet.variance(level.t, x) * x  # E[x₀ | x_t] of Gaussian data
    torch.testing.assert_close(level.filtered(x), level.alpha * clean, rtol=1e-5, atol=1e-6)
    assert level.t <= share * 1000 - 1 < level.t + 50
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_full_level_is_the_sampler_and_the_inversion(spacing: str) -> None:
    pipeline = load_pipeline("digits16/base")
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, timestep_spacing=spacing)
    images = torch.stack([open_digits(16)[i] for i in range(2)])
    level = NoiseLevel(pipeline.unet, scheduler, share=1.0, num_steps=8)
    whole, found = invert(pipeline.unet, scheduler, images, 8, refinements=1), level.invert(images, refinements=1)
    torch.testing.assert_close(found.latents, whole.latents)
    torch.testing.assert_close(found.residuals, whole.residuals)
    with torch.no_grad():
        sampled = ddim_sample(pipeline.unet, scheduler, whole.latents, 8)
    torch.testing.assert_close(level.decode(found.latents, batch_size=1), sampled.clamp(-1, 1), rtol=0, atol=1e-4)


def test_a_lower_level_takes_the_last_steps_and_gives_images_back_better() -> None:
    pipeline = load_pipeline("digits16/base")
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    images = torch.stack([open_digits(16)[i] for i in range(4)])
    levels = [NoiseLevel(pipeline.unet, scheduler, share=share, num_steps=20) for share in (0.3, 0.6, 1.0)]
    assert [level.num_steps_below for level in levels] == [6, 12, 20]
    errors = [level.invert(images, refinements=3).error.mean().item() for level in levels]
    assert errors[0] < errors[1] < 0.01
    found = levels[1].invert(images)
    assert found.residuals.shape == (4, 12)
    torch.testing.assert_close(levels[1].decode(found.latents), found.reconstruction.clamp(-1, 1), rtol=0, atol=1e-5)


def test_clipping_follows_the_scheduler() -> None:
    pipeline = load_pipeline("digits16/base")
    clipped, free = (
        NoiseLevel(pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=clip), num_steps=5)
        for clip in (True, False)
    )
    x = 3 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(clipped.decode(x), free.decode(x))
    assert torch.equal(clipped.score(x), free.score(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share must lie in"),
        ({"share": 1.5}, "share must lie in"),
        ({"share": 0.01, "num_steps": 10}, "none of the sampler's 10 steps lies within share 0.01"),
        ({"num_steps": 0}, "num_steps must be 1 to 1000"),
    ],
)
def test_bad_levels(options: dict, message: str) -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    with pytest.raises(ValueError, match=message):
        NoiseLevel(_Gaussian(scheduler), scheduler, **options)


def test_bad_points_and_predictions() -> None:
    scheduler = DDPMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="'epsilon' or 'v_prediction'; got 'sample'"):
        NoiseLevel(_Gaussian(scheduler), scheduler)
    scheduler = DDPMScheduler(clip_sample=False)
    level = NoiseLevel(_Gaussian(scheduler), scheduler)
    with pytest.raises(ValueError, match="x must have the shape"):
        level.decode(torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="x_0 must have the shape"):
        level.invert(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        level.decode(points().float(), batch_size=0)
    with pytest.raises(ValueError, match="refinements must be at least 0"):
        level.invert(points().float(), refinements=-1)
