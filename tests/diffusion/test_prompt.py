"""Stable Diffusion with its prompt held fixed: diffusers' own samples, and everything here as for any other model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from isodiff.datasets import FacesDataset
from isodiff.diffusion import FinetuneConfig, ddim_sample, image_shape, save_pipeline
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.hspace import bottleneck_hook, bottleneck_shape, encode
from isodiff.diffusion.latent import latents_to_images
from isodiff.diffusion.prompt import FixedPrompt, open_model, with_prompt

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
    options = {"num_inference_steps": 4, "guidance_scale": scale, "eta": 0.0, "output_type": "np"}
    theirs = pipeline(["a face"] * 2, latents=x_T, **options).images
    prompted = with_prompt(pipeline, "a face", guidance_scale=scale)
    with torch.no_grad():
        ours = latents_to_images(prompted.vae, ddim_sample(prompted.unet, prompted.scheduler, x_T, 4))
    ours = (ours / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)
    assert image_shape(prompted) == (3, 16, 16)


@torch.no_grad()
def test_encode_gives_what_the_mid_block_gives_of_this_prompt(pipeline: StableDiffusionPipeline, x_T: Tensor) -> None:
    unet, other, t = with_prompt(pipeline, "a face").unet, with_prompt(pipeline, "b").unet, torch.tensor([10, 900])
    seen: list[Tensor] = []
    with bottleneck_hook(unet, seen.append):
        unet(x_T, t)
    h = encode(unet, x_T, t)
    torch.testing.assert_close(seen[0], h)
    assert bottleneck_shape(unet) == tuple(h.shape[1:]) == (8, 4, 4)
    assert not torch.allclose(encode(other, x_T, t), h)
    guided = with_prompt(pipeline, "a face", guidance_scale=2.0).unet
    assert torch.equal(encode(guided, x_T, t), h), "of the conditional branch"
    message = r"guidance_scale = 2\.0 the bottleneck is visited twice"
    with pytest.raises(ValueError, match=message), bottleneck_hook(guided, lambda h: None):
        pass


def test_trains_and_saves_the_whole_pipeline(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompted = with_prompt(pipeline, "a face")
    kept = (*pipeline.vae.parameters(), *pipeline.text_encoder.parameters())
    before, frozen = pipeline.unet.conv_in.weight.detach().clone(), [p.detach().clone() for p in kept]
    config = FinetuneConfig(num_steps=2, batch_size=2, lambda_iso=0.1, normalize=True, p=0.0, ema_decay=0.0)
    list(finetune(prompted, FacesDataset(16, num_images=4), config))
    assert not torch.equal(pipeline.unet.conv_in.weight, before)
    assert all(torch.equal(p, q) for p, q in zip(kept, frozen, strict=True))

    save_pipeline(prompted, tmp_path / "m")
    again = open_model(tmp_path / "m", "a face")
    torch.testing.assert_close(again.unet.state_dict(), prompted.unet.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.unet.embedding, prompted.unet.embedding, rtol=0, atol=0)
    torch.testing.assert_close(again.vae.state_dict(), prompted.vae.state_dict(), rtol=0, atol=0)


def test_bad_input_is_refused_by_name(tmp_path: Path, x_T: Tensor) -> None:
    pipeline, prompt = tiny_stable_diffusion(tmp_path), torch.zeros(1, 8, 8)
    save_pipeline(pipeline, tmp_path / "sd")
    save_pipeline(tiny_ddpm(), tmp_path / "ddpm")
    for refused, kind, message in (
        (lambda: encode(pipeline.unet, x_T, 5), ValueError, "prompt is fixed; wrap the pipeline in with_prompt"),
        (lambda: with_prompt(tiny_ddpm(), "a"), TypeError, "got DDPMPipeline, which takes no prompt"),
        (lambda: FixedPrompt(tiny_unet(), prompt), TypeError, "diffusers UNet2DConditionModel; got UNet2DModel"),
        (lambda: FixedPrompt(pipeline.unet, prompt[..., :5]), ValueError, r"shape \(1, L, 8\) here; got \(1, 8, 5\)"),
        (lambda: FixedPrompt(pipeline.unet, prompt, guidance_scale=-1), ValueError, "must be at least 0; got -1"),
        (lambda: FixedPrompt(pipeline.unet, prompt, guidance_scale=2), ValueError, "needs a negative prompt"),
        (lambda: open_model(tmp_path / "sd"), ValueError, "draws what a prompt says; give one"),
        (lambda: open_model(tmp_path / "ddpm", "a"), ValueError, "is a DDPMPipeline, which takes no prompt; got 'a'"),
    ):
        with pytest.raises(kind, match=message):
            refused()
