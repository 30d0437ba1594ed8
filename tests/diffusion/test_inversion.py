"""Inversion finds what the sampler started from, the latent or a point at a noise level, and says how nearly."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets import open_dataset
from isodiff.diffusion.inversion import NoiseLevel, invert
from isodiff.diffusion.models import build_pipeline, load_pipeline
from isodiff.diffusion.process import ddim_invert, ddim_sample

from ..geometry.tensors import refusals
from .tiny import Gaussian, noise


def points(scale: float = 0.6) -> Tensor:
    return (scale * noise(2, 1, 4, 4, dtype=torch.float64)).clamp(-1, 1)


def digits(count: int) -> Tensor:
    return torch.stack(open_dataset("digits", 16).__getitems__(range(count)))


def gaussian(gain: float = 1.0, **options: object) -> tuple[Gaussian, DDPMScheduler]:
    scheduler = DDPMScheduler(**{"clip_sample": False, "timestep_spacing": "trailing"} | options)
    return Gaussian(scheduler, gain=gain), scheduler


def trained(**options: object) -> tuple[torch.nn.Module, DDPMScheduler]:
    pipeline = load_pipeline("digits16/base")
    return pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config, **{"clip_sample": False} | options)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("clip", "scale"), [(False, 0.6), (True, 0.05)])
def test_a_converged_inversion_and_the_sampler_undo_each_other(
    kind: str, spacing: str, clip: bool, scale: float
) -> None:
    """In all spacings, where num_steps does not divide T, and with a clip where nothing is clipped."""
    unet, scheduler = gaussian(prediction_type=kind, clip_sample=clip, timestep_spacing=spacing)
    found = invert(unet, scheduler, x_0 := points(scale), 7, refinements=60)
    assert unet.calls == (60 + 2) * 7 + 7
    torch.testing.assert_close(found.reconstruction, x_0, atol=1e-8, rtol=0)
    torch.testing.assert_close(ddim_sample(unet, scheduler, found.latents, 7), x_0, atol=1e-8, rtol=0)
    assert found.error.max() < 1e-16
    assert found.residuals.shape == (2, 7)
    assert found.residuals.max() < 1e-18
    sampled = ddim_sample(unet, scheduler, x_T := points(min(scale, 0.2)), 7)
    torch.testing.assert_close(invert(unet, scheduler, sampled, 7, refinements=60).latents, x_T)


def test_without_refinement_it_is_plain_ddim_inversion() -> None:
    pipeline, x_0 = build_pipeline("digits16"), digits(2)
    found = invert(pipeline.unet, pipeline.scheduler, x_0, 10)
    with torch.no_grad():
        plain = ddim_invert(pipeline.unet, pipeline.scheduler, x_0, 10)
        again = ddim_sample(pipeline.unet, pipeline.scheduler, plain, 10)
    torch.testing.assert_close(found.latents, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.error, (again - x_0).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.error, (found.reconstruction - x_0).square().mean((1, 2, 3)))


def test_each_refinement_of_a_contraction_shrinks_the_residual_at_its_rate_and_one_that_expands_takes_none() -> None:
    """One step t → −1 with ε = c x: x ← √ᾱ x₀ + √(1−ᾱ) c x contracts by √(1−ᾱ) c; of three times c it expands."""
    unet, scheduler = gaussian(timestep_spacing="leading", steps_offset=300)
    alpha_bar = scheduler.alphas_cumprod[300].double()
    rate = (1 - alpha_bar) / (alpha_bar * 0.36 + 1 - alpha_bar)
    sizes = torch.stack([invert(unet, scheduler, points(), 1, refinements=k).residuals[:, 0] for k in range(4)])
    torch.testing.assert_close(sizes[1:] / sizes[:-1], rate.square().expand(3, 2), rtol=1e-5, atol=0)
    plain, refined = (invert(Gaussian(scheduler, gain=3.0), scheduler, points(), 1, refinements=k) for k in (0, 9))
    assert torch.equal(refined.latents, plain.latents)
    assert torch.equal(refined.residuals, plain.residuals)
    assert refined.residuals.min() > 1e-3


def test_rows_do_not_depend_on_each_other() -> None:
    together, alone = (invert(*trained(clip_sample=True), x, 3, refinements=1) for x in (digits(3), digits(3)[1:2]))
    torch.testing.assert_close(together.latents[1:2], alone.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.residuals[1:2], alone.residuals, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_the_score_of_gaussian_data_is_exact(kind: str, spacing: str, share: float) -> None:
    unet, scheduler = gaussian(prediction_type=kind, timestep_spacing=spacing)
    level, x = NoiseLevel(unet, scheduler, share=share, num_steps=20), noise(3, 1, 4, 4, dtype=torch.float64)
    alpha_bar = scheduler.alphas_cumprod[level.t].double()
    variance = alpha_bar * unet.scale**2 + 1 - alpha_bar
    torch.testing.assert_close(level.score(x), -x / variance, rtol=1e-5, atol=0)
    clean = level.alpha * unet.scale**2 / variance * x  # E[x₀ | x_t] of Gaussian data
    torch.testing.assert_close(level.filtered(x), level.alpha * clean, rtol=1e-5, atol=1e-6)
    assert level.t <= share * 1000 - 1 < level.t + 50
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_full_level_is_the_sampler_clipping_included(spacing: str, clip: bool) -> None:
    unet, scheduler = trained(timestep_spacing=spacing, clip_sample=clip)
    level, x = NoiseLevel(unet, scheduler, share=1.0, num_steps=8), 3 * noise(2, 1, 16, 16)
    with torch.no_grad():
        sampled = ddim_sample(unet, scheduler, x, 8)
    torch.testing.assert_close(level.decode(x), sampled.clamp(-1, 1), rtol=0, atol=1e-4)


def test_a_lower_level_takes_the_last_steps_and_gives_images_back_better() -> None:
    model, x_0 = trained(), digits(4)
    levels = [NoiseLevel(*model, share=share, num_steps=20) for share in (0.3, 0.6, 1.0)]
    assert [level.num_steps_below for level in levels] == [6, 12, 20]
    errors = [level.invert(x_0, refinements=3).error.mean().item() for level in levels]
    assert errors[0] < errors[1] < 0.01
    found = levels[1].invert(x_0)
    assert found.residuals.shape == (4, 12)
    torch.testing.assert_close(levels[1].decode(found.latents), found.reconstruction.clamp(-1, 1), rtol=0, atol=1e-5)


def test_a_velocity_is_inverted_where_no_signal_is_left() -> None:
    model = gaussian(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert invert(*model, points(), 5).error.isfinite().all()
    with pytest.raises(ValueError, match="has no inverse"):  # a single step forgets x_T
        invert(*model, points(), 1)


def level(**options: object) -> NoiseLevel:
    return NoiseLevel(*gaussian(), **options)


ZERO = torch.zeros(1, 1, 4, 4)
test_bad_input_and_what_overflows_is_refused = refusals(
    (lambda: level(share=1.5), "share must lie in"),
    (lambda: level(share=0.001, num_steps=10), "none of the sampler's 10 steps lies within share 0.001"),
    (lambda: level().invert(torch.zeros(1, 1, 5, 5)), r"x_0 .* shape \(B, 1, 4, 4\) of this .*; got \(1, 1, 5, 5"),
    (lambda: level().invert(ZERO * math.nan), "floating-point and finite; got torch.float32, 16"),
    (lambda: level().invert(ZERO.byte()), "got torch.uint8"),
    (lambda: level().invert(ZERO, refinements=-1), "refinements must be at least 0; got -1"),
    (lambda: level().decode(torch.zeros(1, 1, 5, 5)), "x must have the shape"),
    (lambda: invert(*gaussian(math.inf), points(), 5), "t = 199 is not finite"),
    errors=(ValueError, FloatingPointError),
)
