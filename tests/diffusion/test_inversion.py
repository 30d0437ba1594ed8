"""Inversion finds the latent that the sampler started from, and says how nearly."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets.images import open_digits
from isodiff.diffusion.inversion import invert
from isodiff.diffusion.pretrained import build_pipeline, load_pipeline
from isodiff.diffusion.process import ddim_invert, ddim_sample


class _Linear(torch.nn.Module):
    """The exact predictor of noise or velocity, times `gain`, for data x₀ ~ N(0, s² I): linear in x_t."""

    def __init__(self, scheduler: DDPMScheduler, scale: float = 0.6, gain: float = 1.0) -> None:
        super().__init__()
        self.scheduler, self.scale, self.gain, self.calls = scheduler, scale, gain, 0
        self.config = SimpleNamespace(in_channels=1, sample_size=4)

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        self.calls += 1
        alpha_bar = self.scheduler.alphas_cumprod.to(x)[t]
        variance = alpha_bar * self.scale**2 + 1 - alpha_bar
        eps, clean = x * (1 - alpha_bar).sqrt() / variance, x * alpha_bar.sqrt() * self.scale**2 / variance
        velocity = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * clean
        prediction = eps if self.scheduler.config.prediction_type == "epsilon" else velocity
        return SimpleNamespace(sample=self.gain * prediction)


def images(count: int = 2, *, scale: float = 0.6, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (scale * drawn).clamp(-1, 1)


def digits(count: int) -> Tensor:
    data = open_digits(16)
    return torch.stack([data[i] for i in range(count)])


def unclipped(scheduler: DDPMScheduler) -> DDPMScheduler:
    return DDPMScheduler.from_config(scheduler.config, clip_sample=False)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [7, 10])
def test_a_converged_inversion_is_undone_exactly_by_the_sampler(kind: str, spacing: str, num_steps: int) -> None:
    """In all spacings, also where num_steps does not divide T and the sampler's grid is uneven."""
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing=spacing)
    unet, x_0 = _Linear(scheduler), images()
    found = invert(unet, scheduler, x_0, num_steps, refinements=60)
    torch.testing.assert_close(found.reconstruction, x_0, atol=1e-8, rtol=0)
    torch.testing.assert_close(ddim_sample(unet, scheduler, found.latents, num_steps), x_0, atol=1e-8, rtol=0)
    assert found.error.max() < 1e-16
    assert found.residuals.shape == (2, num_steps)
    assert found.residuals.max() < 1e-18


def test_a_converged_inversion_returns_to_the_latents_that_were_sampled_from() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    x_T = images(scale=0.2)
    sampled = ddim_sample(_Linear(scheduler), scheduler, x_T, 10)
    torch.testing.assert_close(invert(_Linear(scheduler), scheduler, sampled, 10, refinements=60).latents, x_T)


def test_a_sampler_that_clips_changes_nothing_where_nothing_is_clipped() -> None:
    clips = DDPMScheduler(clip_sample=True, timestep_spacing="trailing")
    x_0 = images(scale=0.05)
    found = invert(_Linear(clips), clips, x_0, 10, refinements=60)
    torch.testing.assert_close(found.reconstruction, x_0, atol=1e-8, rtol=0)


@pytest.mark.parametrize("num_steps", [4, 10])
def test_without_refinement_it_is_plain_ddim_inversion(num_steps: int) -> None:
    pipeline = build_pipeline("digits16")
    x_0 = digits(2)
    found = invert(pipeline.unet, pipeline.scheduler, x_0, num_steps)
    with torch.no_grad():
        plain = ddim_invert(pipeline.unet, pipeline.scheduler, x_0, num_steps)
        again = ddim_sample(pipeline.unet, pipeline.scheduler, plain, num_steps)
    torch.testing.assert_close(found.latents, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.error, (again - x_0).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.error, (found.reconstruction - x_0).square().mean((1, 2, 3)))


def test_each_refinement_of_a_contraction_shrinks_the_residual_at_its_rate() -> None:
    """One step t → −1 with ε = c x: x ← √ᾱ x₀ + √(1−ᾱ) c x contracts by √(1−ᾱ) c."""
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=300)
    unet, x_0 = _Linear(scheduler), images()
    alpha_bar = scheduler.alphas_cumprod[300].double()
    rate = (1 - alpha_bar) / (alpha_bar * 0.36 + 1 - alpha_bar)
    sizes = torch.stack([invert(unet, scheduler, x_0, 1, refinements=k).residuals[:, 0] for k in range(4)])
    torch.testing.assert_close(sizes[1:] / sizes[:-1], rate.square().expand(3, 2), rtol=1e-5, atol=0)


def test_an_iteration_that_diverges_keeps_its_best_iterate_and_says_so() -> None:
    """ε three times too large makes the iteration expand; every refinement is worse, none is taken."""
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=300)
    unet, x_0 = _Linear(scheduler, gain=3.0), images()
    plain, refined = (invert(unet, scheduler, x_0, 1, refinements=k) for k in (0, 9))
    torch.testing.assert_close(refined.latents, plain.latents, atol=0, rtol=0)
    torch.testing.assert_close(refined.residuals, plain.residuals, atol=0, rtol=0)
    assert refined.residuals.min() > 1e-3


def test_the_cost_is_what_the_documentation_says() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    unet = _Linear(scheduler)
    invert(unet, scheduler, images(), 10, refinements=3)
    assert unet.calls == (3 + 2) * 10 + 10


def test_on_digits_the_error_falls_with_steps_and_refinement_at_least_halves_it() -> None:
    pipeline, x_0 = load_pipeline("digits16/base"), digits(4)
    scheduler = unclipped(pipeline.scheduler)
    plain = [invert(pipeline.unet, scheduler, x_0, n).error.mean() for n in (5, 10, 20)]
    refined = [invert(pipeline.unet, scheduler, x_0, n, refinements=3).error.mean() for n in (5, 10)]
    assert plain[0] > plain[1] > plain[2]
    assert all(fine < coarse / 2 for fine, coarse in zip(refined, plain, strict=False))


def test_rows_do_not_depend_on_each_other() -> None:
    pipeline, x_0 = load_pipeline("digits16/base"), digits(3)
    together = invert(pipeline.unet, pipeline.scheduler, x_0, 3, refinements=1)
    alone = invert(pipeline.unet, pipeline.scheduler, x_0[1:2], 3, refinements=1)
    torch.testing.assert_close(together.latents[1:2], alone.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.residuals[1:2], alone.residuals, atol=1e-6, rtol=1e-3)
    assert not together.latents.requires_grad


@pytest.mark.parametrize(
    ("x_0", "num_steps", "refinements", "message"),
    [
        (
            torch.zeros(1, 1, 32, 32),
            5,
            0,
            r"x_0 must have the shape \(B, 1, 16, 16\) of this model; got \(1, 1, 32, 32\)",
        ),
        (torch.zeros(1, 3, 16, 16), 5, 0, r"\(B, 1, 16, 16\).*got \(1, 3, 16, 16\)"),
        (torch.zeros(1, 16, 16), 5, 0, r"got \(1, 16, 16\)"),
        (torch.zeros(0, 1, 16, 16), 5, 0, r"got \(0, 1, 16, 16\)"),
        (torch.full((1, 1, 16, 16), math.nan), 5, 0, "floating-point and finite; got torch.float32, 256"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), 5, 0, "got torch.uint8"),
        (torch.zeros(1, 1, 16, 16), 0, 0, "num_steps must be 1 to 1000; got 0"),
        (torch.zeros(1, 1, 16, 16), 1001, 0, "num_steps must be 1 to 1000; got 1001"),
        (torch.zeros(1, 1, 16, 16), 5, -1, "refinements must be at least 0; got -1"),
    ],
)
def test_bad_input_is_refused(x_0: Tensor, num_steps: int, refinements: int, message: str) -> None:
    pipeline = build_pipeline("digits16")
    with pytest.raises(ValueError, match=message):
        invert(pipeline.unet, pipeline.scheduler, x_0, num_steps, refinements=refinements)


def test_steps_without_an_inverse_are_refused() -> None:
    """With ᾱ_T = 0 the first step sees nothing of the image in x_T; in the velocity form only a single step forgets."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    noise_form = DDPMScheduler(**options)
    with pytest.raises(ValueError, match="the step from t = 999 has no inverse"):
        invert(_Linear(noise_form), noise_form, images(), 5)
    velocity = DDPMScheduler(prediction_type="v_prediction", **options)
    assert invert(_Linear(velocity), velocity, images(), 5).error.isfinite().all()
    with pytest.raises(ValueError, match="the step from t = 999 has no inverse"):
        invert(_Linear(velocity), velocity, images(), 1)


def test_a_model_that_overflows_is_an_error() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    with pytest.raises(FloatingPointError, match="t = 199 is not finite"):
        invert(_Linear(scheduler, gain=math.inf), scheduler, images(), 5)
