"""Latent diffusion: what diffusers' own pipeline does, and the isometry term in the space of the latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LDMPipeline
from torch import Tensor

from isodiff.datasets import FacesDataset
from isodiff.diffusion import FinetuneConfig, autoencoder_of, ddim_sample, image_shape, latent_shape
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.latent import images_to_latents, latents_to_images
from isodiff.diffusion.models import load_pipeline, save_pipeline

from .tiny import tiny_autoencoder, tiny_ddpm, tiny_ldm

CONFIG = FinetuneConfig(num_steps=3, batch_size=4, lambda_iso=0.3, normalize=True, p=0.0, ema_decay=0.0)


class Encoded(list):
    """The latents of images, as a dataset of their own."""

    horizontal_flip = False


def test_without_an_autoencoder_images_are_their_own_latents() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert images_to_latents(None, x) is x
    assert latents_to_images(None, x) is x
    assert autoencoder_of(tiny_ddpm()) is None
    assert image_shape(tiny_ddpm()) == latent_shape(tiny_ddpm().unet) == (3, 8, 8)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_encodes_and_scales_as_diffusers_does(kind: str) -> None:
    autoencoder, x = tiny_autoencoder(kind), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        encoded = autoencoder.encode(x)
        raw = encoded.latent_dist.mode() if kind == "kl" else encoded.latents
        latents = images_to_latents(autoencoder, x)
        torch.testing.assert_close(latents, 0.7 * raw)
        torch.testing.assert_close(latents_to_images(autoencoder, latents), autoencoder.decode(raw).sample)
    assert image_shape(tiny_ldm(kind)) == (3, 16, 16)
    assert latent_shape(tiny_ldm(kind).unet) == tuple(latents.shape[1:]) == (2, 8, 8)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_samples_are_those_of_diffusers_own_pipeline(kind: str) -> None:
    pipeline = tiny_ldm(kind)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=3, num_inference_steps=4, generator=torch.manual_seed(5), output_type="numpy").images
    x_T = torch.randn(3, 2, 8, 8, generator=torch.manual_seed(5))
    with torch.no_grad():
        ours = latents_to_images(pipeline.vqvae, ddim_sample(pipeline.unet, pipeline.scheduler, x_T, 4))
    ours = (ours / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


def test_training_on_images_is_training_on_their_latents() -> None:
    pipeline, images = tiny_ldm(), FacesDataset(16, num_images=12)
    before = {name: tensor.clone() for name, tensor in pipeline.vqvae.state_dict().items()}
    states = list(finetune(pipeline, images, CONFIG))
    assert all(state.anisotropy is not None and state.anisotropy >= 0.9 for state in states)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipeline.vqvae.state_dict().items())

    latent = tiny_ldm()
    scheduler = DDPMScheduler.from_config(latent.scheduler.config)
    with torch.no_grad():
        latents = Encoded(images_to_latents(latent.vqvae, torch.stack([images[i] for i in range(12)])))
    again = list(finetune(DDPMPipeline(latent.unet, scheduler), latents, CONFIG))
    assert [state.dsm for state in states] == pytest.approx([state.dsm for state in again], rel=1e-5)
    assert [state.anisotropy for state in states] == pytest.approx([state.anisotropy for state in again], rel=1e-4)


def test_the_isometry_term_moves_the_encoder_of_a_latent_model() -> None:
    def weights(lambda_iso: float) -> Tensor:
        pipeline = tiny_ldm()
        list(finetune(pipeline, FacesDataset(16, num_images=12), replace(CONFIG, lambda_iso=lambda_iso)))
        return pipeline.unet.conv_in.weight.detach()

    assert not torch.equal(weights(0.0), weights(0.3))


def test_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\); this model needs \(3, 16, 16\)"):
        next(finetune(tiny_ldm(), FacesDataset(8, num_images=4), CONFIG))


@pytest.mark.parametrize("half", [False, True])
def test_is_saved_and_loaded_as_stock_diffusers_does(tmp_path: Path, half: bool) -> None:
    pipeline = tiny_ldm()
    save_pipeline(pipeline, tmp_path / "m", half=half)
    ours, stock = load_pipeline(tmp_path / "m"), LDMPipeline.from_pretrained(tmp_path / "m")
    assert ours.unet.dtype == ours.vqvae.dtype == torch.float32
    for part in ("unet", "vqvae"):
        loaded, saved = getattr(ours, part).state_dict(), getattr(pipeline, part).state_dict()
        torch.testing.assert_close(loaded, getattr(stock, part).state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(saved, loaded, rtol=1e-3 if half else 0.0, atol=1e-7 if half else 0.0)
        assert half == any(not torch.equal(saved[key], loaded[key]) for key in saved)


def test_half_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    pipeline = tiny_ldm()
    with torch.no_grad():
        pipeline.unet.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"unet has weights beyond the range of float16; store it in full"):
        save_pipeline(pipeline, tmp_path / "m", half=True)
    assert not (tmp_path / "m").exists()
