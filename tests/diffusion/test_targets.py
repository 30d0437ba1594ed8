"""The targets of the term: each is its map's, right on linear denoisers, reaches what it should and goes on exactly."""

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion import FinetuneConfig, NoiseSchedule, encode
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.terms import Terms
from isodiff.diffusion.training import TrainingStep
from isodiff.geometry import dense_jacobian, sample_probes

from ..geometry.tensors import slopes
from .tiny import noise, tiny_ddpm, weights

TARGETS = ("encoder", "pooled", "denoiser", "sampler", "smooth")
MAPS = ("denoiser", "sampler", "smooth")
SCHEDULER = DDPMScheduler(timestep_spacing="trailing", clip_sample=False)


class Linear(torch.nn.Module):
    """A model of the noise that is linear, the same at every step: ε̂ = W x, n = 9."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(0.3 * noise(9, 9, dtype=torch.float64))
        self.config = SimpleNamespace(in_channels=1, sample_size=3)

    def forward(self, x: Tensor, t: Tensor | int) -> SimpleNamespace:
        return SimpleNamespace(sample=(x.flatten(1) @ self.weight.mT).view_as(x))


def _config(target: str, **options: object) -> FinetuneConfig:
    at = {"p": 0.0} if target in ("encoder", "pooled", "denoiser") else {}
    return FinetuneConfig(**{"num_steps": 4, "batch_size": 4, "lambda_iso": 0.3, "target": target, **at, **options})


def _add(terms: Terms, x_0: Tensor, step: int = 0) -> tuple[float | None, int | None]:
    return terms.add_isometry(TrainingStep(step, 0, Accelerator(cpu=True)), x_0)


@pytest.mark.parametrize("target", MAPS)
def test_terms_of_a_linear_denoiser_are_those_of_its_known_jacobian(target: str) -> None:
    """Dense matrices in numpy's way, on the draws that the step makes: t, the rows' t and noise, one probe a row."""
    model, x_0, config = Linear(), noise(4, 1, 3, 3, seed=1, dtype=torch.float64), _config(target)
    terms = Terms(model, SCHEDULER, config, 1)
    value, _ = _add(terms, x_0)
    draw = TrainingStep(0, 0, Accelerator(cpu=True)).generator("isometry")
    t = int(torch.randint(1000, (), generator=draw)) if target == "denoiser" else None
    times, eps = torch.randint(1000, (4,), generator=draw), torch.randn(4, 1, 3, 3, generator=draw).double().flatten(1)
    v = sample_probes((4, 9), generator=draw).double()
    alphas, eye, w = SCHEDULER.alphas_cumprod.double(), torch.eye(9, dtype=torch.float64), model.weight.detach()

    def denoised(t: int) -> Tensor:
        return (eye - (1 - alphas[t]).sqrt() * w) / alphas[t].sqrt()

    if target == "smooth":
        sigma = (1 - alphas[times]).sqrt()
        pulled = [s**2 / 3 * denoised(at).mT @ row for s, at, row in zip(sigma, times, v, strict=True)]
        lengths = torch.stack([row.norm() for row in pulled])
        expected = (lengths - 0.01 * lengths.mean()).square().mean()
        assert terms.length == pytest.approx(lengths.mean().item(), rel=1e-6)
    else:
        jacobian, x = eye, eps
        if target == "denoiser":
            jacobian, x = denoised(t), alphas[t].sqrt() * x_0.flatten(1) + (1 - alphas[t]).sqrt() * eps
        else:
            for at, to in NoiseSchedule.of(SCHEDULER).steps(4):
                final = 1.0 if to is None else alphas[to].item()
                jacobian = (math.sqrt(final) * denoised(at) + math.sqrt(1 - final) * w) @ jacobian
        unit = x / x.norm(dim=1, keepdim=True)
        v = v - (v * unit).sum(1, keepdim=True) * unit
        pushed = v @ jacobian.mT
        pulled = pushed @ jacobian
        pulled = pulled - (pulled * unit).sum(1, keepdim=True) * unit
        expected = pulled.square().sum(1).mean() / pushed.square().sum(1).mean() ** 2
    assert value == pytest.approx(expected.item(), rel=1e-5)  # the schedule is in float32


@pytest.mark.parametrize("target", ["encoder", "pooled"])
def test_the_encoder_and_its_mean_over_positions_have_the_term_of_their_dense_jacobians(target: str) -> None:
    unet, x_0 = tiny_ddpm().unet.double(), noise(4, 3, 8, 8, seed=1, dtype=torch.float64)
    value, t = _add(Terms(unet, SCHEDULER, _config(target), 1), x_0)
    draw = TrainingStep(0, 0, Accelerator(cpu=True)).generator("isometry")
    torch.randint(1000, (), generator=draw), torch.randint(1000, (4,), generator=draw)  # t, and the rows' own
    eps, v = torch.randn(x_0.shape, generator=draw).double(), sample_probes(x_0.shape, generator=draw).double()
    x = SCHEDULER.add_noise(x_0, eps, torch.tensor(t))

    def f(x: Tensor) -> Tensor:
        h = encode(unet, x, t)
        assert h.shape[-1] > 1
        return h.mean((-2, -1)) if target == "pooled" else h

    unit, v, samples = x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True), v.flatten(1), []
    for row, direction, jacobian in zip(unit, v, dense_jacobian(f, x), strict=True):
        tangent = torch.eye(len(row)).double() - torch.outer(row, row)
        pushed = jacobian @ tangent @ direction
        samples.append(torch.stack([pushed.square().sum(), (tangent @ jacobian.mT @ pushed).square().sum()]))
    one, two = torch.stack(samples).mean(0)
    assert value == pytest.approx((two / one**2).item(), rel=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
def test_the_gradient_is_the_slope_of_the_term_whatever_the_passes(target: str, options: dict) -> None:
    pipeline, config = tiny_ddpm(), _config(target, **options)
    unet, x_0 = pipeline.unet.double(), noise(4, 3, 8, 8, seed=2, dtype=torch.float64)

    def term() -> float:
        return _add(Terms(unet, SCHEDULER, config, 1, [3.0, 5.0]), x_0)[0]  # clipping has no slope

    term()
    parameters = [p for p in unet.parameters() if p.grad is not None]
    said, measured = slopes(term, parameters, [p.grad.clone() for p in parameters])
    assert said / config.lambda_iso == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_reaches_all_parameters_of_its_map(target: str) -> None:
    pipeline = tiny_ddpm()
    _add(Terms(pipeline.unet.double(), pipeline.scheduler, _config(target), 1), noise(4, 3, 8, 8, dtype=torch.float64))
    reached = {name for name, p in pipeline.unet.named_parameters() if p.grad is not None and p.grad.any()}
    missed = {name.split(".")[0] for name, _ in pipeline.unet.named_parameters() if name not in reached}
    decoder = {"up_blocks", "conv_norm_out", "conv_out"}
    # a bias added last, and the keys' in attention, change no Jacobian
    of_encoder = target in ("encoder", "pooled")
    allowed = {"sampler": {"mid_block"}}.get(target, {"mid_block", "conv_out"})
    assert missed <= (decoder | {"mid_block"} if of_encoder else allowed)
    assert any(name.startswith("up_blocks") for name in reached) != of_encoder
    assert any(name.startswith("conv_in") for name in reached)


def test_the_running_mean_of_smooth_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def run(steps: int | None, **options: object) -> Tensor:
        pipeline, told = tiny_ddpm(), []
        config = _config("smooth", checkpoint_every=2, lambda_iso=1e-3)
        told = finetune(pipeline, FacesDataset(8, num_images=8), config, accelerator=Accelerator(cpu=True), **options)
        states = list(islice(told, steps))
        assert all(state.anisotropy is None and state.t is None and state.isometry > 0 for state in states)
        return weights(pipeline.unet)

    run(3, checkpoint=tmp_path / "checkpoint.pt")
    assert torch.equal(run(None, checkpoint=tmp_path / "checkpoint.pt"), run(None))
