"""Stable Diffusion with its prompt held fixed: diffusers' own samples, and everything here as for any other model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from isodiff.cli import main
from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.hspace import bottleneck_hook, bottleneck_shape, encode
from isodiff.diffusion.inversion import invert
from isodiff.diffusion.latent import image_shape
from isodiff.diffusion.noise_level import NoiseLevel
from isodiff.diffusion.pretrained import save_pipeline
from isodiff.diffusion.process import ddim_sample, dsm_loss
from isodiff.diffusion.prompt import FixedPrompt, open_model, with_prompt
from isodiff.geometry.geodesics import solve_geodesic
from isodiff.geometry.isometry import exact_isometry_loss, isometry_loss
from isodiff.metrics.generator import Generator, model_digest

from .tiny import tiny_ddpm, tiny_stable_diffusion, tiny_unet


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> StableDiffusionPipeline:
    return tiny_stable_diffusion(tmp_path, request.param)


@pytest.fixture
def x_T() -> Tensor:
    return torch.randn(2, 2, 8, 8)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_diffusers_own_pipeline(
    pipeline: StableDiffusionPipeline, x_T: Tensor, scale: float
) -> None:
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a face"] * 2, latents=x_T, num_inference_steps=3, guidance_scale=scale, eta=0.0, output_type="np"
    ).images
    prompted = with_prompt(pipeline, "a face", guidance_scale=scale)
    with torch.no_grad():
        ours = Generator(prompted, 3)(x_T) / 2 + 0.5
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)
    assert image_shape(prompted) == (3, 16, 16)


def test_the_prompt_is_part_of_the_map(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    one, other = with_prompt(pipeline, "a face"), with_prompt(pipeline, "b")
    with torch.no_grad():
        assert not torch.allclose(one.unet(x_T, 500).sample, other.unet(x_T, 500).sample)
    assert model_digest(one) == model_digest(with_prompt(pipeline, "a face")) != model_digest(other)


def test_encode_gives_what_the_mid_block_gives(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    unet = with_prompt(pipeline, "a face").unet
    seen: list[Tensor] = []
    with torch.no_grad(), bottleneck_hook(unet, seen.append):
        unet(x_T, torch.tensor([10, 900]))
    with torch.no_grad():
        h = encode(unet, x_T, torch.tensor([10, 900]))
    torch.testing.assert_close(seen[0], h)
    assert bottleneck_shape(unet) == tuple(h.shape[1:]) == (8, 4, 4)


def test_the_isometry_term_agrees_with_the_dense_oracle_and_reaches_the_weights(
    pipeline: StableDiffusionPipeline, x_T: Tensor
) -> None:
    unet = with_prompt(pipeline.to(torch.float64), "a face").unet
    x = x_T.double()

    def f(z: Tensor) -> Tensor:
        return encode(unet, z, 700)

    estimate = isometry_loss(f, x, num_probes=500, generator=torch.Generator().manual_seed(1))
    assert float(estimate) == pytest.approx(float(exact_isometry_loss(f, x)), rel=0.1)
    isometry_loss(f, x).backward()
    gradient = pipeline.unet.conv_in.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_trains_and_saves_the_whole_pipeline(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompted = with_prompt(pipeline, "a face")
    before = pipeline.unet.conv_in.weight.detach().clone()
    frozen = [p.detach().clone() for p in (*pipeline.vae.parameters(), *pipeline.text_encoder.parameters())]
    config = FinetuneConfig(num_steps=2, batch_size=2, lambda_iso=0.1, normalize=True, p=0.0, ema_decay=0.0)
    states = list(finetune(prompted, FacesDataset(16, num_images=4), config))
    assert [state.step for state in states] == [1, 2]
    assert not torch.equal(pipeline.unet.conv_in.weight, before)
    kept = (*pipeline.vae.parameters(), *pipeline.text_encoder.parameters())
    assert all(torch.equal(p, q) for p, q in zip(kept, frozen, strict=True))

    save_pipeline(prompted, tmp_path / "m")
    again = open_model(tmp_path / "m", "a face")
    assert model_digest(again) == model_digest(prompted)


def test_inversion_comes_back(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    """The sampler of random weights spreads nearby latents 10⁵-fold, so that only exact steps lead back."""
    prompted = with_prompt(pipeline.to(torch.float64), "a face")
    z_0 = 0.5 * x_T.double()
    with torch.no_grad():
        latent = invert(prompted.unet, prompted.scheduler, z_0, 50, refinements=20).latents
        back = ddim_sample(prompted.unet, prompted.scheduler, latent, 50)
    torch.testing.assert_close(back, z_0, atol=1e-4, rtol=0)


def test_a_geodesic_of_the_tangential_metric_is_found(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    prompted = with_prompt(pipeline, "a face")
    level = NoiseLevel(prompted.unet, prompted.scheduler, share=0.4, num_steps=10)
    found = solve_geodesic(level.score, x_T[:1], x_T[1:], sigma=level.sigma, num_segments=8)
    assert found.path.shape == (1, 9, 2, 8, 8)
    torch.testing.assert_close(found.path[:, [0, -1]], torch.stack([x_T[:1], x_T[1:]], 1).to(found.path))
    assert float(found.energy) > 0


def test_the_denoising_loss_is_of_the_conditional_model(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    prompted, t, eps = with_prompt(pipeline, "a face"), torch.tensor([10, 700]), torch.randn(2, 2, 8, 8)
    context = prompted.unet.embedding.expand(2, -1, -1)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        predicted = pipeline.unet(scheduler.add_noise(x_T, eps, t), t, encoder_hidden_states=context).sample
        target = eps if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x_T, eps, t)
        torch.testing.assert_close(
            dsm_loss(prompted.unet, scheduler, x_T, t, eps), (predicted - target).square().mean()
        )


def test_under_guidance_the_bottleneck_is_refused_and_the_encoder_is_the_conditional_one(
    pipeline: StableDiffusionPipeline, x_T: Tensor
) -> None:
    guided, plain = with_prompt(pipeline, "a", guidance_scale=2.0).unet, with_prompt(pipeline, "a").unet
    with torch.no_grad():
        assert torch.equal(encode(guided, x_T, 5), encode(plain, x_T, 5))
    with (
        pytest.raises(ValueError, match=r"guidance_scale = 2\.0 the bottleneck is visited twice"),
        bottleneck_hook(guided, lambda h: None),
    ):
        pass


def test_bad_input_is_refused_by_name(tmp_path: Path, x_T: Tensor) -> None:
    pipeline = tiny_stable_diffusion(tmp_path)
    with pytest.raises(ValueError, match="once its prompt is fixed; wrap the pipeline in with_prompt"):
        encode(pipeline.unet, x_T, 5)
    with pytest.raises(TypeError, match="got DDPMPipeline, which takes no prompt"):
        with_prompt(tiny_ddpm(), "a")
    with pytest.raises(TypeError, match="expected a diffusers UNet2DConditionModel; got UNet2DModel"):
        FixedPrompt(tiny_unet(), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(1, L, 8\) here; got \(1, 8, 5\)"):
        FixedPrompt(pipeline.unet, torch.zeros(1, 8, 5))
    with pytest.raises(ValueError, match=r"guidance_scale must be at least 0; got -1"):
        FixedPrompt(pipeline.unet, torch.zeros(1, 8, 8), guidance_scale=-1)
    with pytest.raises(ValueError, match="needs a negative prompt"):
        FixedPrompt(pipeline.unet, torch.zeros(1, 8, 8), guidance_scale=2)


def test_a_prompt_is_asked_for_where_it_is_needed_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pipeline(tiny_stable_diffusion(tmp_path), tmp_path / "sd")
    save_pipeline(tiny_ddpm(), tmp_path / "ddpm")
    with pytest.raises(ValueError, match="draws what a prompt says"):
        open_model(tmp_path / "sd")
    with pytest.raises(ValueError, match="is a DDPMPipeline, which takes no prompt; got 'a'"):
        open_model(tmp_path / "ddpm", "a")
    common = ["--dataset", "faces", "--num-steps", "1", "--batch-size", "1", "--device", "cpu", "--lambda-iso", "0"]
    tune = ["finetune", "--base", str(tmp_path / "sd"), "--output", str(tmp_path / "tuned"), *common]
    assert main(tune) == 2
    assert "give one" in capsys.readouterr().err
    assert main([*tune, "--prompt", "a face"]) == 0
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["prompt"] == "a face"
