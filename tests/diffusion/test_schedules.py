"""Every scheduler of diffusers is read for its betas or refused; losses and samplers are those of the papers."""

import warnings
from functools import partial
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler
from torch import Tensor

from isodiff.diffusion.models import build_pipeline
from isodiff.diffusion.process import (
    PREDICTIONS,
    NoiseSchedule,
    ddim_invert,
    ddim_sample,
    ddim_trajectory,
    dsm_loss,
    predict,
)

from ..geometry.tensors import refusals
from .tiny import Gaussian, noise

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
SCALE = torch.tensor([0.1, 0.45, 1.2], dtype=torch.float64).view(1, 3, 1, 1)
BETAS = {"beta_start": 1e-3, "beta_end": 3e-2, "beta_schedule": "scaled_linear", "num_train_timesteps": 250}
READ = (
    *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete"),
    *("KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "RePaint", "SASolver", "TCD"),
    "UniPCMultistep",
)
double = partial(noise, dtype=torch.float64)
gaussian = partial(Gaussian, scale=SCALE, mean=MEAN)


def flow(scheduler: DDPMScheduler, x: Tensor, t: int) -> Tensor:
    """Where the probability-flow ODE leads from x at t: (x_t − α_t μ) / √(α_t² s² + σ_t²) is constant along it."""
    alpha_bar = scheduler.alphas_cumprod[t].double()
    return MEAN + SCALE * (x - alpha_bar.sqrt() * MEAN) / (alpha_bar * SCALE**2 + 1 - alpha_bar).sqrt()


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_scheduler_counts_as_the_betas_of_its_configuration(name: str, prediction_type: str) -> None:
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(BETAS | {"prediction_type": prediction_type})
    asked = scheduler.config.get("prediction_type", "epsilon")
    schedule, ddpm = NoiseSchedule.of(scheduler), DDPMScheduler(**BETAS, prediction_type=asked)
    x_0, eps, t = noise(4, 3, 8, 8), noise(4, 3, 8, 8, seed=1), torch.tensor([0, 30, 120, 249])
    assert schedule.prediction_type == asked
    assert torch.equal(schedule.add_noise(x_0, eps, t), ddpm.add_noise(x_0, eps, t))
    assert torch.equal(NoiseSchedule.of(ddpm).alphas_cumprod, schedule.alphas_cumprod)
    if asked == "v_prediction":
        assert torch.equal(schedule.target(x_0, eps, t), ddpm.get_velocity(x_0, eps, t))


def test_every_other_scheduler_of_diffusers_has_other_noise_and_is_refused_by_name() -> None:
    """Those that come later too, unless they have the α of their betas."""
    refused = set()
    for name in dir(diffusers):
        if not name.endswith("Scheduler") or name.removesuffix("Scheduler") in READ:
            continue
        try:
            scheduler = getattr(diffusers, name)()
        except (ImportError, TypeError):  # needs a package or a setting
            continue
        with pytest.raises(ValueError, match=name):
            NoiseSchedule.of(scheduler)
        refused.add(name.removesuffix("Scheduler"))
    assert refused >= {"CogVideoXDDIM", "DDPMWuerstchen", "EDMEuler", "FlowMatchEulerDiscrete", "IPNDM", "ScoreSdeVe"}


@pytest.mark.filterwarnings("ignore:.*leading spacing")
@pytest.mark.parametrize("horizon", [100, 250, 1000, 4000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_sampler_and_its_inverse_approach_the_flow_whatever_divides_the_horizon(
    horizon: int, spacing: str, kind: str
) -> None:
    options = {"beta_start": 0.1 / horizon, "beta_end": 20 / horizon, "clip_sample": False}
    scheduler = DDPMScheduler(horizon, **options, timestep_spacing=spacing, prediction_type=kind)
    model, x, errors, lost = gaussian(scheduler), double(4, 3, 2, 2), [], []
    for n in (5, 10, 20, 50, 93):  # leading steps begin elsewhere for each
        x_0 = flow(scheduler, x, NoiseSchedule.of(scheduler).steps(n)[0][0])
        errors.append((ddim_sample(model, scheduler, x, n) - x_0).abs().max().item())
        lost.append((ddim_invert(model, scheduler, x_0, n) - x).abs().max().item())
    for error in (errors, lost):
        assert error == sorted(error, reverse=True)
    assert errors[3] < 0.3 * errors[1]
    if horizon == 1000 and spacing != "leading":
        all_steps = ddim_sample(model, scheduler, x, horizon)
        assert (all_steps - flow(scheduler, x, horizon - 1)).abs().max() < 0.12 * errors[3]


@pytest.mark.parametrize("horizon", [100, 250, 1000, 4000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.filterwarnings("ignore:.*leading spacing")
def test_steps_lead_to_the_next_the_last_to_the_image_and_are_diffusers_where_those_are_right(
    horizon: int, spacing: str
) -> None:
    theirs = DDIMScheduler(horizon, timestep_spacing=spacing)
    for n in (1, 2, 3, 5, 7, 10, 20, 50, 99, horizon * 2 // 5, horizon * 3 // 5, horizon - 1, horizon):
        steps = NoiseSchedule.of(theirs).steps(n)
        times = [t for t, _ in steps]
        assert times == sorted(set(times), reverse=True)
        assert len(times) == n
        assert [s for _, s in steps] == [*times[1:], None]
        assert spacing == "leading" or times[0] == horizon - 1
        if spacing != "linspace" and n in (1, 2, 5, 10, 20, 50):
            theirs.set_timesteps(n)
            assert times == theirs.timesteps.tolist()


def test_leading_steps_that_begin_far_from_noise_are_told() -> None:
    schedule = NoiseSchedule.of(DDIMScheduler(timestep_spacing="leading"))
    with pytest.warns(UserWarning, match=r"600 steps.*t = 599 of T = 1000.*trailing"):
        schedule.steps(600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.steps(50)


def test_a_terminal_step_without_signal_is_sampled_by_the_velocity() -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    scheduler, x = DDIMScheduler(**options, clip_sample=False), double(4, 3, 2, 2)
    assert scheduler.alphas_cumprod[-1] == 0
    x_0 = ddim_sample(gaussian(scheduler), scheduler, x, 500)
    torch.testing.assert_close(x_0, flow(scheduler, x, 999), rtol=0, atol=0.02)


def test_of_a_model_that_learned_its_variance_the_first_half_is_the_noise() -> None:
    first, x = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    wide = torch.cat([first, torch.full_like(first, torch.nan)], 1)
    assert torch.equal(predict(lambda x, t: SimpleNamespace(sample=wide), x, 7), first)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_dsm_loss_of_the_exact_model_is_the_conditional_variance_of_its_target(kind: str) -> None:
    """That is the smallest for Gaussian data; and it is the mean squared error at any t."""
    scheduler, scale = DDPMScheduler(prediction_type=kind), 0.7
    unet, x_0, eps = Gaussian(scheduler, scale), scale * double(4000, 1, 4, 4), double(4000, 1, 4, 4, seed=1)
    for step in (100, 500, 900):
        alpha_bar = scheduler.alphas_cumprod[step].double()
        variance = alpha_bar * scale**2 + 1 - alpha_bar
        expected = alpha_bar * scale**2 / variance if kind == "epsilon" else scale**2 / variance
        loss = dsm_loss(unet, scheduler, x_0, torch.full((4000,), step), eps)
        assert loss.item() == pytest.approx(expected.item(), rel=0.03)
    t = torch.arange(4000) % 1000
    target = eps if kind == "epsilon" else scheduler.get_velocity(x_0, eps, t)
    error = unet(scheduler.add_noise(x_0, eps, t), t).sample - target
    torch.testing.assert_close(dsm_loss(unet, scheduler, x_0, t, eps), error.square().mean())


@torch.no_grad()
def test_a_trajectory_is_the_sampler_step_by_step() -> None:
    pipeline, seen = build_pipeline("digits16"), []
    x = x_T = noise(2, 1, 16, 16)
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for t, x_t, x_s in ddim_trajectory(pipeline.unet, pipeline.scheduler, x_T, 5):
        assert torch.equal(x_t, x)
        assert torch.equal(seen[-1], x_t)
        assert t == NoiseSchedule.of(pipeline.scheduler).steps(5)[len(seen) - 1][0]
        x = x_s
    assert len(seen) == 5
    assert torch.equal(x, ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 5))


@torch.no_grad()
def test_ddim_invert_equals_the_diffusers_scheduler() -> None:
    pipeline = build_pipeline("digits16")
    theirs = x = noise(2, 1, 16, 16)
    inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    inverse.set_timesteps(8)
    for t in inverse.timesteps:
        theirs = inverse.step(pipeline.unet(theirs, t).sample, t, theirs).prev_sample
    torch.testing.assert_close(ddim_invert(pipeline.unet, pipeline.scheduler, x, 8), theirs, rtol=1e-4, atol=1e-4)


def test_the_sampler_has_the_gradient_of_the_flow() -> None:
    """The probability-flow map of N(0, I) onto N(0, s² I) is x₀ = s x_T."""
    scheduler, x_T = DDPMScheduler(clip_sample=False, timestep_spacing="trailing"), double(2, 1, 4, 4).requires_grad_()
    sample = ddim_sample(Gaussian(scheduler, 0.6), scheduler, x_T, 500)
    torch.testing.assert_close(sample, 0.6 * x_T, rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(sample.sum(), x_T)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.6), rtol=0.05, atol=0)


ZERO, DDPM = torch.zeros(2, 1, 4, 4), DDPMScheduler()


def steps(n: int = 5, **options: object) -> list:
    return NoiseSchedule.of(DDIMScheduler.from_config(options)).steps(n)


def loss(t: list[float]) -> Tensor:
    return dsm_loss(Gaussian(DDPM), DDPM, ZERO, torch.tensor(t), ZERO)


test_bad_input_and_what_is_not_done_are_refused = refusals(
    (lambda: steps(thresholding=True), "thresholding"),
    (lambda: steps(prediction_type="flow"), "epsilon, v_prediction, sample; got 'flow'"),
    (lambda: steps(rescale_betas_zero_snr=True, timestep_spacing="trailing"), "epsilon tells nothing at t = 999"),
    (lambda: steps(1000, steps_offset=1, timestep_spacing="leading"), "steps_offset 1"),
    *((lambda n=n: steps(n), f"1 to 1000; got {n}") for n in (0, 1001)),
    (lambda: loss([1000, 3]), "0 to 999"),
    (lambda: loss([0.5, 3.0]), "integer steps"),
    (lambda: loss([1, 2, 3]), r"\(3,\)"),
    (lambda: predict(lambda x, t: SimpleNamespace(sample=ZERO), ZERO[:, [0, 0, 0]], 7), "3 or 6 .*; got 1"),
    (lambda: ddim_sample(Gaussian(DDPM), DDPM, ZERO * torch.nan, 10), "expected finite"),
    (lambda: ddim_invert(Gaussian(DDPM), DDPM, ZERO * torch.nan, 10), "expected finite"),
    (lambda: ddim_sample(Gaussian(DDPM), DDPM, ZERO[0], 10), r"got shape \(1, 4, 4\)"),
)
