"""The losses and samplers are those of diffusers and of the papers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMPipeline, DDIMScheduler, DDPMScheduler

from isodiff.diffusion.models import build_pipeline, build_unet
from isodiff.diffusion.process import ddim_invert, ddim_sample, ddim_trajectory, dsm_loss

from .tiny import Gaussian


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_dsm_loss_of_the_exact_predictor(kind: str) -> None:
    """For Gaussian data the smallest loss is the conditional variance of the target, known in closed form."""
    scheduler, scale = DDPMScheduler(prediction_type=kind), 0.7
    x_0, eps = scale * _noise(4000, 1, 4, 4), _noise(4000, 1, 4, 4, seed=1)
    for step in (100, 500, 900):
        t = torch.full((4000,), step)
        alpha_bar = scheduler.alphas_cumprod[step].double()
        variance = alpha_bar * scale**2 + 1 - alpha_bar
        expected = alpha_bar * scale**2 / variance if kind == "epsilon" else scale**2 / variance
        loss = dsm_loss(Gaussian(scheduler, scale), scheduler, x_0, t, eps)
        assert loss.item() == pytest.approx(expected.item(), rel=0.03)


def test_dsm_loss_is_the_mean_squared_error_of_the_noise() -> None:
    pipeline = build_pipeline("digits16")
    x_0, eps = (_noise(3, 1, 16, 16, seed=seed).float() for seed in (0, 1))
    t = torch.tensor([0, 500, 999])
    alpha_bar = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    with torch.no_grad():
        expected = (pipeline.unet(x_t, t).sample - eps).square().mean()
        torch.testing.assert_close(dsm_loss(pipeline.unet, pipeline.scheduler, x_0, t, eps), expected)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_sample_equals_the_diffusers_pipeline(spacing: str, clip: bool) -> None:
    unet = build_unet("digits16").eval()
    scheduler = DDIMScheduler(clip_sample=clip, timestep_spacing=spacing)
    images = DDIMPipeline(unet, scheduler)(
        batch_size=2, generator=torch.Generator().manual_seed(5), num_inference_steps=7, output_type="np"
    ).images
    x_T = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = ddim_sample(unet, DDPMScheduler(clip_sample=clip, timestep_spacing=spacing), x_T, 7)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, torch.from_numpy(images), atol=1e-5, rtol=1e-5)


def test_a_trajectory_is_the_sampler_step_by_step() -> None:
    """Steps are those of diffusers, each begins where the last one ended, and the model has seen each x_t."""
    pipeline = build_pipeline("digits16")
    x_T = _noise(2, 1, 16, 16).float()
    ddim = DDIMScheduler.from_config(pipeline.scheduler.config)
    ddim.set_timesteps(5)
    seen: list[torch.Tensor] = []
    handle = pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        steps, x = [], x_T
        for t, x_t, x_s in ddim_trajectory(pipeline.unet, pipeline.scheduler, x_T, 5):
            assert torch.equal(x_t, x)
            assert torch.equal(seen[-1], x_t)
            steps.append(int(t))
            x = x_s
        handle.remove()
        assert torch.equal(x, ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 5))
    assert steps == ddim.timesteps.tolist()
    assert len(seen) == 5


def test_ddim_invert_equals_the_diffusers_scheduler() -> None:
    pipeline = build_pipeline("digits16")
    x = _noise(2, 1, 16, 16).float()
    inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    inverse.set_timesteps(9)
    with torch.no_grad():
        ours, theirs = ddim_invert(pipeline.unet, pipeline.scheduler, x, 9), x
        for t in inverse.timesteps:
            theirs = inverse.step(pipeline.unet(theirs, t).sample, t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs)


def test_ddim_reaches_the_data_scale_of_the_exact_predictor() -> None:
    """The probability-flow map of N(0, I) onto N(0, s² I) is x₀ = s x_T."""
    scheduler, scale = DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), 0.6
    x_T = _noise(2, 1, 4, 4)
    sample = ddim_sample(Gaussian(scheduler, scale), scheduler, x_T, 500)
    torch.testing.assert_close(sample, scale * x_T, rtol=0.01, atol=0)
    inverted = ddim_invert(Gaussian(scheduler, scale), scheduler, sample, 500)
    torch.testing.assert_close(inverted, x_T, rtol=0.02, atol=0)


def test_sampler_is_differentiable() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    x_T = _noise(1, 1, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(ddim_sample(Gaussian(scheduler, 0.6), scheduler, x_T, 100).sum(), x_T)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.6), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("kind", "t", "message"),
    [
        ("sample", torch.tensor([1, 2]), "epsilon.*v_prediction.*sample"),
        ("flow_prediction", torch.tensor([1, 2]), "epsilon.*v_prediction.*flow_prediction"),
        ("epsilon", torch.tensor([1000, 3]), "0 to 999"),
        ("epsilon", torch.tensor([-1, 3]), "0 to 999"),
        ("epsilon", torch.tensor([0.5, 3.0]), "integer steps"),
        ("epsilon", torch.tensor([1, 2, 3]), r"\(3,\)"),
    ],
)
def test_bad_losses_are_refused(kind: str, t: torch.Tensor, message: str) -> None:
    scheduler, x = DDPMScheduler(), torch.zeros(2, 1, 4, 4)
    scheduler.register_to_config(prediction_type=kind)
    with pytest.raises(ValueError, match=message):
        dsm_loss(Gaussian(scheduler), scheduler, x, t, x)


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
def test_bad_sampling_is_refused(run: Callable, num_steps: int, x: torch.Tensor, message: str) -> None:
    scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match=message):
        run(Gaussian(scheduler), scheduler, x, num_steps)
