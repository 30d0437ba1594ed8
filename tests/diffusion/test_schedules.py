"""Every scheduler of diffusers is read for its betas or refused, and the sampler solves the probability-flow ODE."""

from __future__ import annotations

import warnings

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from isodiff.diffusion import ddim_invert, ddim_sample
from isodiff.diffusion.process import PREDICTIONS, NoiseSchedule, predict

MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
VARIANCE = torch.tensor([0.01, 0.2, 1.5], dtype=torch.float64).view(1, 3, 1, 1)
BETAS = {"beta_start": 1e-3, "beta_end": 3e-2, "beta_schedule": "scaled_linear", "num_train_timesteps": 250}

READ = (
    *("DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverMultistepInverse", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete"),
    *("KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "RePaint", "SASolver", "TCD"),
    "UniPCMultistep",
)
REFUSED = (
    *("CMStochasticIterative", "CogVideoXDDIM", "CogVideoXDPM", "DDPMWuerstchen", "EDMDPMSolverMultistep", "EDMEuler"),
    *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "IPNDM", "KarrasVe", "SCM", "ScoreSdeVe"),
)


class Output:
    """What a U-Net returns."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


def gaussian_model(schedule: NoiseSchedule) -> object:
    """The optimal model of data N(MEAN, VARIANCE), with whatever it is asked to predict."""

    def unet(x: Tensor, t: int) -> Output:
        alpha, sigma = schedule.coefficients(t, x)
        x_0 = MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)
        return Output(schedule.target(x_0, (x - alpha * x_0) / sigma, t))

    return unet


def flow(schedule: NoiseSchedule, x: Tensor, t: int) -> Tensor:
    """Where the probability-flow ODE leads from x at t: (x_t − α_t μ) / √(α_t² s² + σ_t²) is constant along it."""
    alpha, sigma = schedule.coefficients(t, x)
    return MEAN + VARIANCE.sqrt() * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2).sqrt()


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_scheduler_counts_as_the_betas_of_its_configuration(name: str, prediction_type: str) -> None:
    kind = getattr(diffusers, f"{name}Scheduler")
    scheduler = kind.from_config(BETAS | {"prediction_type": prediction_type})
    asked = scheduler.config.get("prediction_type", "epsilon")
    ddpm = DDPMScheduler(**BETAS, prediction_type=asked)
    x_0, eps = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 30, 120, 249])
    schedule = NoiseSchedule.of(scheduler)
    assert schedule.prediction_type == asked
    torch.testing.assert_close(schedule.add_noise(x_0, eps, t), ddpm.add_noise(x_0, eps, t), rtol=0, atol=0)
    torch.testing.assert_close(NoiseSchedule.of(ddpm).alphas_cumprod, schedule.alphas_cumprod, rtol=0, atol=0)
    if asked == "v_prediction":
        torch.testing.assert_close(schedule.target(x_0, eps, t), ddpm.get_velocity(x_0, eps, t), rtol=0, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_other_noise_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}Scheduler"):
        NoiseSchedule.of(getattr(diffusers, f"{name}Scheduler")())


def test_no_scheduler_of_diffusers_is_left_out() -> None:
    """Those that come later are either read with the α of their own class, or refused."""
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if kind is None or name.removesuffix("Scheduler") in READ + REFUSED:
            continue
        try:
            scheduler = kind()
        except (ImportError, TypeError):  # needs a package or a setting
            continue
        with pytest.raises((ValueError, AttributeError)):
            NoiseSchedule.of(scheduler)


@pytest.mark.filterwarnings("ignore:.*leading spacing")
@pytest.mark.parametrize("horizon", [100, 250, 1000, 4000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_sampler_and_its_inverse_approach_the_flow_whatever_divides_the_horizon(
    horizon: int, spacing: str, prediction_type: str
) -> None:
    betas = {"beta_start": 0.1 / horizon, "beta_end": 20 / horizon}
    scheduler = DDPMScheduler(
        horizon, **betas, timestep_spacing=spacing, prediction_type=prediction_type, clip_sample=False
    )
    schedule, errors, lost = NoiseSchedule.of(scheduler), [], []
    model, x = gaussian_model(schedule), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    # to a number that divides few horizons; leading steps begin elsewhere for each
    for n in (5, 10, 20, 50, 93):
        x_0 = flow(schedule, x, schedule.steps(n)[0][0])
        errors.append((ddim_sample(model, scheduler, x, n) - x_0).abs().max().item())
        lost.append((ddim_invert(model, scheduler, x_0, n) - x).abs().max().item())
    for error in (errors, lost):
        assert error == sorted(error, reverse=True)
    assert errors[3] < 0.3 * errors[1]
    if horizon == 1000 and spacing != "leading":
        all_steps = ddim_sample(model, scheduler, x, horizon)
        assert (all_steps - flow(schedule, x, horizon - 1)).abs().max() < 0.12 * errors[3]


@pytest.mark.parametrize("horizon", [100, 250, 1000, 4000])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_steps_are_those_of_diffusers_where_those_are_right(horizon: int, spacing: str) -> None:
    for n in (1, 2, 5, 10, 20, 50):
        theirs = DDIMScheduler(horizon, timestep_spacing=spacing)
        theirs.set_timesteps(n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = NoiseSchedule.of(theirs).steps(n)
        assert [t for t, _ in ours] == theirs.timesteps.tolist()
        if horizon % n == 0:
            assert [s if s is not None else t - horizon // n for t, s in ours] == [t - horizon // n for t, _ in ours]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 150, 400, 600, 999, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.filterwarnings("ignore:.*leading spacing")
def test_every_step_leads_to_the_next_and_the_last_to_the_image(n: int, spacing: str) -> None:
    steps = NoiseSchedule.of(DDPMScheduler(timestep_spacing=spacing)).steps(n)
    times = [t for t, _ in steps]
    assert times == sorted(set(times), reverse=True)
    assert len(times) == n
    assert [s for _, s in steps] == [*times[1:], None]
    assert spacing == "leading" or times[0] == 999


def test_leading_steps_that_begin_far_from_noise_are_told() -> None:
    schedule = NoiseSchedule.of(DDIMScheduler(timestep_spacing="leading"))
    with pytest.warns(UserWarning, match=r"600 steps.*t = 599 of T = 1000.*trailing"):
        schedule.steps(600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.steps(50)


@pytest.mark.parametrize(
    ("settings", "n", "message"),
    [
        ({"thresholding": True}, 5, "thresholding"),
        ({"prediction_type": "flow_prediction"}, 5, "epsilon, v_prediction, sample; got 'flow_prediction'"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 5, "epsilon tells nothing at t = 999"),
        ({"steps_offset": 1, "timestep_spacing": "leading"}, 1000, "steps_offset 1"),
        ({}, 0, "1 to 1000; got 0"),
        ({}, 1001, "1 to 1000; got 1001"),
    ],
)
def test_what_is_not_done_is_refused_by_name(settings: dict, n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.of(DDIMScheduler.from_config(settings)).steps(n)


def test_a_terminal_step_without_signal_is_sampled_by_the_velocity() -> None:
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    scheduler = DDIMScheduler(**settings, clip_sample=False)
    schedule, x = NoiseSchedule.of(scheduler), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert schedule.alphas_cumprod[-1] == 0
    x_0 = ddim_sample(gaussian_model(schedule), scheduler, x, 500)
    torch.testing.assert_close(x_0, flow(schedule, x, 999), rtol=0, atol=0.02)


def test_of_a_model_that_learned_its_variance_the_first_half_is_the_noise() -> None:
    schedule = NoiseSchedule.of(DDPMScheduler(**BETAS))
    model, x = gaussian_model(schedule), torch.randn(4, 3, 2, 2, dtype=torch.float64)

    def wide(z: Tensor, t: int) -> Output:
        return Output(torch.cat([model(z, t).sample, torch.full_like(z, torch.nan)], 1))

    assert torch.equal(predict(wide, x, 7), model(x, 7).sample)
    with pytest.raises(ValueError, match="3 or 6 output channels; got 4"):
        predict(lambda z, t: Output(z[:, [0, 1, 2, 2]]), x, 7)
