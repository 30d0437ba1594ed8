"""The losses and samplers are those of diffusers and of the papers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMPipeline, DDIMScheduler, DDPMScheduler
from torch import Tensor

from isodiff.diffusion.models import build_pipeline, build_unet
from isodiff.diffusion.process import ddim_invert, ddim_sample, ddim_trajectory, dsm_loss

from .tiny import Gaussian, noise

double = partial(noise, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_dsm_loss_of_the_exact_predictor(kind: str) -> None:
    """For Gaussian data the smallest loss is the conditional variance of the target, known in closed form."""
    scheduler, scale = DDPMScheduler(prediction_type=kind), 0.7
    x_0, eps = scale * double(4000, 1, 4, 4), double(4000, 1, 4, 4, seed=1)
    for step in (100, 500, 900):
        alpha_bar = scheduler.alphas_cumprod[step].double()
        variance = alpha_bar * scale**2 + 1 - alpha_bar
        expected = alpha_bar * scale**2 / variance if kind == "epsilon" else scale**2 / variance
        loss = dsm_loss(Gaussian(scheduler, scale), scheduler, x_0, torch.full((4000,), step), eps)
        assert loss.item() == pytest.approx(expected.item(), rel=0.03)


@torch.no_grad()
def test_dsm_loss_is_the_mean_squared_error_of_the_noise() -> None:
    pipeline, t = build_pipeline("digits16"), torch.tensor([0, 500, 999])
    x_0, eps = (noise(3, 1, 16, 16, seed=seed) for seed in (0, 1))
    alpha_bar = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    expected = (pipeline.unet(alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps, t).sample - eps).square().mean()
    torch.testing.assert_close(dsm_loss(pipeline.unet, pipeline.scheduler, x_0, t, eps), expected)


@torch.no_grad()
@pytest.mark.parametrize(("spacing", "clip"), [("leading", True), ("trailing", False)])
def test_ddim_sample_equals_the_diffusers_pipeline(spacing: str, clip: bool) -> None:
    unet, options = build_unet("digits16").eval(), {"clip_sample": clip, "timestep_spacing": spacing}
    theirs = DDIMPipeline(unet, DDIMScheduler(**options))(
        batch_size=2, generator=torch.Generator().manual_seed(5), num_inference_steps=8, output_type="np"
    ).images
    ours = ddim_sample(unet, DDPMScheduler(**options), noise(2, 1, 16, 16, seed=5), 8)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_trajectory_is_the_sampler_step_by_step() -> None:
    """Steps are those of diffusers, each begins where the last one ended, and the model has seen each x_t."""
    pipeline, x_T = build_pipeline("digits16"), noise(2, 1, 16, 16)
    ddim, seen = DDIMScheduler.from_config(pipeline.scheduler.config), []
    ddim.set_timesteps(5)
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    steps, x = [], x_T
    for t, x_t, x_s in ddim_trajectory(pipeline.unet, pipeline.scheduler, x_T, 5):
        assert torch.equal(x_t, x)
        assert torch.equal(seen[-1], x_t)
        steps.append(int(t))
        x = x_s
    assert (steps, len(seen)) == (ddim.timesteps.tolist(), 5)
    assert torch.equal(x, ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 5))


@torch.no_grad()
def test_ddim_invert_equals_the_diffusers_scheduler() -> None:
    pipeline, x = build_pipeline("digits16"), noise(2, 1, 16, 16)
    inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    inverse.set_timesteps(8)
    theirs = x
    for t in inverse.timesteps:
        theirs = inverse.step(pipeline.unet(theirs, t).sample, t, theirs).prev_sample
    torch.testing.assert_close(ddim_invert(pipeline.unet, pipeline.scheduler, x, 8), theirs, rtol=1e-4, atol=1e-4)


def test_ddim_reaches_the_data_scale_of_the_exact_predictor_with_its_gradient() -> None:
    """The probability-flow map of N(0, I) onto N(0, s² I) is x₀ = s x_T."""
    scheduler, scale = DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), 0.6
    unet, x_T = Gaussian(scheduler, scale), double(2, 1, 4, 4).requires_grad_()
    sample = ddim_sample(unet, scheduler, x_T, 500)
    torch.testing.assert_close(sample, scale * x_T, rtol=0.01, atol=0)
    torch.testing.assert_close(ddim_invert(unet, scheduler, sample, 500), x_T, rtol=0.02, atol=0)
    (gradient,) = torch.autograd.grad(sample.sum(), x_T)
    torch.testing.assert_close(gradient, torch.full_like(gradient, scale), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("kind", "t", "message"),
    [
        ("flow", [1, 2], "epsilon, v_prediction, sample; got 'flow'"),
        ("epsilon", [1000, 3], "0 to 999"),
        ("epsilon", [-1, 3], "0 to 999"),
        ("epsilon", [0.5, 3.0], "integer steps"),
        ("epsilon", [1, 2, 3], r"\(3,\)"),
    ],
)
def test_bad_losses_are_refused(kind: str, t: list[float], message: str) -> None:
    scheduler, x = DDPMScheduler(prediction_type=kind), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        dsm_loss(Gaussian(scheduler), scheduler, x, torch.tensor(t), x)


@pytest.mark.parametrize("run", [ddim_sample, ddim_invert])
@pytest.mark.parametrize(
    ("num_steps", "x", "message"),
    [
        (0, torch.zeros(1, 1, 4, 4), "1 to 1000; got 0"),
        (1001, torch.zeros(1, 1, 4, 4), "1 to 1000; got 1001"),
        (10, torch.full((1, 1, 4, 4), torch.nan), "expected finite"),
        (10, torch.zeros(1, 4, 4), r"got shape \(1, 4, 4\)"),
    ],
)
def test_bad_sampling_is_refused(run: Callable, num_steps: int, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Gaussian(DDPMScheduler()), DDPMScheduler(), x, num_steps)
