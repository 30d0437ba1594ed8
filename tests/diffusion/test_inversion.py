"""Inversion finds what the sampler started from, the latent or a point at a noise level, and says how nearly."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion.inversion import NoiseLevel, invert
from isodiff.diffusion.models import build_pipeline, load_pipeline
from isodiff.diffusion.process import ddim_invert, ddim_sample

from .tiny import Gaussian


def images(count: int = 2, *, scale: float = 0.6, shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    drawn = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (scale * drawn).clamp(-1, 1)


def digits(count: int) -> Tensor:
    return torch.stack(open_dataset("digits", 16).__getitems__(range(count)))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [7, 10])
def test_a_converged_inversion_is_undone_exactly_by_the_sampler(kind: str, spacing: str, num_steps: int) -> None:
    """In all spacings, also where num_steps does not divide T and the sampler's grid is uneven."""
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing=spacing)
    unet, x_0 = Gaussian(scheduler), images()
    found = invert(unet, scheduler, x_0, num_steps, refinements=60)
    torch.testing.assert_close(found.reconstruction, x_0, atol=1e-8, rtol=0)
    torch.testing.assert_close(ddim_sample(unet, scheduler, found.latents, num_steps), x_0, atol=1e-8, rtol=0)
    assert found.error.max() < 1e-16
    assert found.residuals.shape == (2, num_steps)
    assert found.residuals.max() < 1e-18


def test_a_converged_inversion_returns_to_the_latents_that_were_sampled_from() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    x_T = images(scale=0.2)
    sampled = ddim_sample(Gaussian(scheduler), scheduler, x_T, 10)
    torch.testing.assert_close(invert(Gaussian(scheduler), scheduler, sampled, 10, refinements=60).latents, x_T)


def test_a_sampler_that_clips_changes_nothing_where_nothing_is_clipped() -> None:
    clips = DDPMScheduler(clip_sample=True, timestep_spacing="trailing")
    x_0 = images(scale=0.05)
    found = invert(Gaussian(clips), clips, x_0, 10, refinements=60)
    torch.testing.assert_close(found.reconstruction, x_0, atol=1e-8, rtol=0)


def test_without_refinement_it_is_plain_ddim_inversion() -> None:
    pipeline = build_pipeline("digits16")
    x_0 = digits(2)
    found = invert(pipeline.unet, pipeline.scheduler, x_0, 10)
    with torch.no_grad():
        plain = ddim_invert(pipeline.unet, pipeline.scheduler, x_0, 10)
        again = ddim_sample(pipeline.unet, pipeline.scheduler, plain, 10)
    torch.testing.assert_close(found.latents, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.error, (again - x_0).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.error, (found.reconstruction - x_0).square().mean((1, 2, 3)))


def test_each_refinement_of_a_contraction_shrinks_the_residual_at_its_rate() -> None:
    """One step t → −1 with ε = c x: x ← √ᾱ x₀ + √(1−ᾱ) c x contracts by √(1−ᾱ) c."""
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=300)
    unet, x_0 = Gaussian(scheduler), images()
    alpha_bar = scheduler.alphas_cumprod[300].double()
    rate = (1 - alpha_bar) / (alpha_bar * 0.36 + 1 - alpha_bar)
    sizes = torch.stack([invert(unet, scheduler, x_0, 1, refinements=k).residuals[:, 0] for k in range(4)])
    torch.testing.assert_close(sizes[1:] / sizes[:-1], rate.square().expand(3, 2), rtol=1e-5, atol=0)


def test_an_iteration_that_diverges_keeps_its_best_iterate_and_says_so() -> None:
    """ε three times too large makes the iteration expand; every refinement is worse, none is taken."""
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="leading", steps_offset=300)
    unet, x_0 = Gaussian(scheduler, gain=3.0), images()
    plain, refined = (invert(unet, scheduler, x_0, 1, refinements=k) for k in (0, 9))
    torch.testing.assert_close(refined.latents, plain.latents, atol=0, rtol=0)
    torch.testing.assert_close(refined.residuals, plain.residuals, atol=0, rtol=0)
    assert refined.residuals.min() > 1e-3


def test_the_cost_is_what_the_documentation_says() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    unet = Gaussian(scheduler)
    invert(unet, scheduler, images(), 10, refinements=3)
    assert unet.calls == (3 + 2) * 10 + 10


def test_on_digits_the_error_falls_with_steps_and_refinement_at_least_halves_it() -> None:
    pipeline, x_0 = load_pipeline("digits16/base"), digits(4)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
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
        (torch.zeros(1, 1, 32, 32), 5, 0, r"x_0 must have the shape \(B, 1, 16, 16\) of this model; got \(1, 1, 32, "),
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
        invert(Gaussian(noise_form), noise_form, images(), 5)
    velocity = DDPMScheduler(prediction_type="v_prediction", **options)
    assert invert(Gaussian(velocity), velocity, images(), 5).error.isfinite().all()
    with pytest.raises(ValueError, match="the step from t = 999 has no inverse"):
        invert(Gaussian(velocity), velocity, images(), 1)


def test_a_model_that_overflows_is_an_error() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    with pytest.raises(FloatingPointError, match="t = 199 is not finite"):
        invert(Gaussian(scheduler, gain=math.inf), scheduler, images(), 5)


def points(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_score_of_gaussian_data_is_exact(kind: str, spacing: str, share: float) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing=spacing)
    unet, x = Gaussian(scheduler), points()
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
    images = digits(2)
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
    images = digits(4)
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
        ({"prediction_type": "sample"}, "'epsilon' or 'v_prediction'; got 'sample'"),
    ],
)
def test_bad_levels_are_refused(options: dict, message: str) -> None:
    scheduler = DDPMScheduler(timestep_spacing="trailing", prediction_type=options.pop("prediction_type", "epsilon"))
    with pytest.raises(ValueError, match=message):
        NoiseLevel(Gaussian(scheduler), scheduler, **options)


@pytest.mark.parametrize(
    ("method", "x", "options", "message"),
    [
        ("decode", torch.zeros(1, 1, 5, 5), {}, "x must have the shape"),
        ("invert", torch.zeros(1, 3, 4, 4), {}, "x_0 must have the shape"),
        ("decode", torch.zeros(1, 1, 4, 4), {"batch_size": 0}, "batch_size must be at least 1"),
        ("invert", torch.zeros(1, 1, 4, 4), {"refinements": -1}, "refinements must be at least 0"),
    ],
)
def test_bad_points_are_refused(method: str, x: Tensor, options: dict, message: str) -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match=message):
        getattr(NoiseLevel(Gaussian(scheduler), scheduler), method)(x, **options)
