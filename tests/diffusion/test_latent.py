"""Latent diffusion, and Stable Diffusion with a fixed prompt, sample and train as diffusers' own pipelines do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from isodiff.datasets import FacesDataset
from isodiff.diffusion import FinetuneConfig, autoencoder_of, ddim_sample, image_shape, latent_shape, train
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.hspace import bottleneck_hook, bottleneck_shape, encode
from isodiff.diffusion.latent import images_to_latents, latents_to_images
from isodiff.diffusion.models import save_pipeline
from isodiff.diffusion.prompt import open_model, with_prompt

from .tiny import noise, tiny_ddpm, tiny_ldm, tiny_stable_diffusion

X_T = noise(2, 2, 8, 8)
CONFIG = FinetuneConfig(num_steps=3, batch_size=4, lambda_iso=0.3, normalize=True, p=0.0, ema_decay=0.0)


def test_without_an_autoencoder_images_are_their_own_latents() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert images_to_latents(None, x) is latents_to_images(None, x) is x
    assert autoencoder_of(tiny_ddpm()) is None
    assert image_shape(tiny_ddpm()) == latent_shape(tiny_ddpm().unet) == (3, 8, 8)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_encodes_scales_and_samples_as_diffusers_does(kind: str) -> None:
    pipeline, x = tiny_ldm(kind), torch.randn(2, 3, 16, 16)
    encoded, latents = pipeline.vqvae.encode(x), images_to_latents(pipeline.vqvae, x)
    raw = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
    torch.testing.assert_close(latents, 0.7 * raw)
    torch.testing.assert_close(latents_to_images(pipeline.vqvae, latents), pipeline.vqvae.decode(raw).sample)
    assert image_shape(pipeline) == (3, 16, 16)
    assert latent_shape(pipeline.unet) == tuple(latents.shape[1:]) == (2, 8, 8)

    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=3, num_inference_steps=4, generator=torch.manual_seed(5), output_type="numpy").images
    ours = ddim_sample(pipeline.unet, pipeline.scheduler, noise(3, 2, 8, 8, seed=5), 4)
    ours = (latents_to_images(pipeline.vqvae, ours) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


def test_training_on_images_is_training_on_their_latents() -> None:
    pipeline, images = tiny_ldm(), FacesDataset(16, num_images=12)
    states = list(finetune(pipeline, images, CONFIG))
    torch.testing.assert_close(pipeline.vqvae.state_dict(), tiny_ldm().vqvae.state_dict(), rtol=0, atol=0)

    latent, control = tiny_ldm(), tiny_ldm()
    with torch.no_grad():
        latents = list(images_to_latents(latent.vqvae, torch.stack([images[i] for i in range(12)])))
    scheduler = DDPMScheduler.from_config(latent.scheduler.config)
    again = list(finetune(DDPMPipeline(latent.unet, scheduler), latents, CONFIG))
    assert [state.dsm for state in states] == pytest.approx([state.dsm for state in again], rel=1e-5)
    assert [state.anisotropy for state in states] == pytest.approx([state.anisotropy for state in again], rel=1e-4)
    list(finetune(control, images, replace(CONFIG, lambda_iso=0.0)))
    assert not torch.equal(control.unet.conv_in.weight, pipeline.unet.conv_in.weight), "the term moves the encoder"


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> StableDiffusionPipeline:
    return tiny_stable_diffusion(tmp_path, request.param)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_diffusers_own_pipeline(pipeline: StableDiffusionPipeline, scale: float) -> None:
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": scale, "eta": 0.0, "output_type": "np"}
    theirs = pipeline(["a face"] * 2, latents=X_T, **options).images
    prompted = with_prompt(pipeline, "a face", guidance_scale=scale)
    with torch.no_grad():
        ours = latents_to_images(prompted.vae, ddim_sample(prompted.unet, prompted.scheduler, X_T, 4))
    ours = (ours / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)
    assert image_shape(prompted) == (3, 16, 16)


@torch.no_grad()
def test_encode_gives_what_the_mid_block_gives_of_this_prompt(pipeline: StableDiffusionPipeline) -> None:
    unet, other, t = with_prompt(pipeline, "a face").unet, with_prompt(pipeline, "b").unet, torch.tensor([10, 900])
    seen: list[Tensor] = []
    with bottleneck_hook(unet, seen.append):
        unet(X_T, t)
    h = encode(unet, X_T, t)
    torch.testing.assert_close(seen[0], h)
    assert bottleneck_shape(unet) == tuple(h.shape[1:]) == (8, 4, 4)
    assert not torch.allclose(encode(other, X_T, t), h)
    guided = with_prompt(pipeline, "a face", guidance_scale=2.0).unet
    assert torch.equal(encode(guided, X_T, t), h), "of the conditional branch"
    message = r"guidance_scale = 2\.0 the bottleneck is visited twice"
    with pytest.raises(ValueError, match=message), bottleneck_hook(guided, lambda h: None):
        pass


def test_trains_and_saves_the_whole_pipeline(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompted = with_prompt(pipeline, "a face")
    kept = (*pipeline.vae.parameters(), *pipeline.text_encoder.parameters())
    before, frozen = pipeline.unet.conv_in.weight.detach().clone(), [p.detach().clone() for p in kept]
    train(prompted, FacesDataset(16, num_images=4), CONFIG, tmp_path / "m", progress=False)
    assert not torch.equal(pipeline.unet.conv_in.weight, before)
    assert all(torch.equal(p, q) for p, q in zip(kept, frozen, strict=True))

    again = open_model(tmp_path / "m", "a face")
    torch.testing.assert_close(again.unet.state_dict(), prompted.unet.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.unet.embedding, prompted.unet.embedding, rtol=0, atol=0)
    torch.testing.assert_close(again.vae.state_dict(), prompted.vae.state_dict(), rtol=0, atol=0)


def test_what_a_prompt_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    pipeline = tiny_stable_diffusion(tmp_path)
    save_pipeline(pipeline, tmp_path / "sd")
    save_pipeline(tiny_ddpm(), tmp_path / "ddpm")
    for refused, kind, message in (
        (lambda: encode(pipeline.unet, X_T, 5), ValueError, "prompt is fixed; wrap the pipeline in with_prompt"),
        (lambda: with_prompt(tiny_ddpm(), "a"), TypeError, "got DDPMPipeline, which takes no prompt"),
        (lambda: with_prompt(pipeline, "a", guidance_scale=-1), ValueError, "must be at least 0; got -1"),
        (lambda: open_model(tmp_path / "sd"), ValueError, "draws what a prompt says; give one"),
        (lambda: open_model(tmp_path / "ddpm", "a"), ValueError, "is a DDPMPipeline, which takes no prompt; got 'a'"),
    ):
        with pytest.raises(kind, match=message):
            refused()
