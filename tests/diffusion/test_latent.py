"""Latent diffusion: what diffusers' own pipeline does, and the isometry term in the space of the latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, LDMPipeline
from torch import Tensor

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.latent import autoencoder_of, image_shape, images_to_latents, latent_shape, latents_to_images
from isodiff.diffusion.pretrained import load_pipeline, save_pipeline
from isodiff.metrics.evaluation import evaluate
from isodiff.metrics.generator import Generator, model_digest
from isodiff.metrics.maps import sampler_map

from .tiny import tiny_autoencoder, tiny_ddpm, tiny_ldm

CONFIG = FinetuneConfig(num_steps=3, batch_size=4, lambda_iso=0.3, normalize=True, p=0.0, ema_decay=0.0)


class Encoded(torch.utils.data.Dataset):
    """The latents of images, as a dataset of their own."""

    horizontal_flip = False

    def __init__(self, images: FacesDataset, pipeline: LDMPipeline) -> None:
        with torch.no_grad():
            self.latents = images_to_latents(pipeline.vqvae, torch.stack([images[i] for i in range(len(images))]))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Tensor:
        return self.latents[index]


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
        ours = Generator(pipeline, 4)(x_T) / 2 + 0.5
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


def test_training_on_images_is_training_on_their_latents() -> None:
    pipeline, images = tiny_ldm(), FacesDataset(16, num_images=12)
    before = {name: tensor.clone() for name, tensor in pipeline.vqvae.state_dict().items()}
    states = list(finetune(pipeline, images, CONFIG))
    assert all(state.isotropy is not None and state.isotropy >= 0.9 for state in states)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipeline.vqvae.state_dict().items())

    latent = tiny_ldm()
    scheduler = DDPMScheduler.from_config(latent.scheduler.config)
    again = list(finetune(DDPMPipeline(latent.unet, scheduler), Encoded(images, latent), CONFIG))
    assert [state.dsm for state in states] == pytest.approx([state.dsm for state in again], rel=1e-5)
    assert [state.isotropy for state in states] == pytest.approx([state.isotropy for state in again], rel=1e-4)


def test_the_isometry_term_moves_the_encoder_of_a_latent_model() -> None:
    def weights(lambda_iso: float) -> Tensor:
        pipeline = tiny_ldm()
        list(finetune(pipeline, FacesDataset(16, num_images=12), replace(CONFIG, lambda_iso=lambda_iso)))
        return pipeline.unet.conv_in.weight.detach()

    assert not torch.equal(weights(0.0), weights(0.3))


def test_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\); this model needs \(3, 16, 16\)"):
        next(finetune(tiny_ldm(), FacesDataset(8, num_images=4), CONFIG))


def test_the_sampler_map_ends_in_the_image() -> None:
    generate = Generator(tiny_ldm(), 2)
    x_T = torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        assert sampler_map(generate)(x_T).shape == (1, 3, 16, 16)
        torch.testing.assert_close(sampler_map(generate)(x_T).clamp(-1, 1), generate(x_T))


def test_the_digest_covers_the_autoencoder_and_its_scale() -> None:
    reference, pipeline = model_digest(tiny_ldm()), tiny_ldm()
    assert model_digest(pipeline) == reference
    pipeline.vqvae.register_to_config(scaling_factor=0.8)
    assert model_digest(pipeline) != reference
    pipeline = tiny_ldm()
    with torch.no_grad():
        pipeline.vqvae.quant_conv.bias += 1
    assert model_digest(pipeline) != reference


@pytest.mark.parametrize("half", [False, True])
def test_is_saved_and_loaded_as_stock_diffusers_does(tmp_path: Path, half: bool) -> None:
    pipeline = tiny_ldm()
    save_pipeline(pipeline, tmp_path / "m", half=half)
    ours, stock = load_pipeline(tmp_path / "m"), LDMPipeline.from_pretrained(tmp_path / "m")
    assert model_digest(ours) == model_digest(stock)
    assert (model_digest(ours) == model_digest(pipeline)) is not half
    assert ours.unet.dtype == ours.vqvae.dtype == torch.float32
    tolerance = 1e-3 if half else 0.0
    for saved, loaded in zip(pipeline.unet.parameters(), ours.unet.parameters(), strict=True):
        torch.testing.assert_close(saved, loaded, rtol=tolerance, atol=1e-7 if half else 0.0)


def test_half_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    pipeline = tiny_ldm()
    with torch.no_grad():
        pipeline.unet.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"unet has weights beyond the range of float16; store it in full"):
        save_pipeline(pipeline, tmp_path / "m", half=True)
    assert not (tmp_path / "m").exists()


def test_every_metric_of_table_one_is_measured() -> None:
    sizes = (
        '{"num_fid_images": 4, "num_spectra": 3, "num_isotropy": 4, "num_rtl_pairs": 2, "rtl_points": 3, '
        '"rtl_steps": 2, "fid_steps": 2, "spectrum_k": 3, "spectrum_times": [600], "num_maps": 3, "map_steps": 2, '
        '"map_k": 3, "batch_size": 4}'
    )
    names = ("mrtl", "mcn", "vor", "isotropy", "map")
    record = evaluate(tiny_ldm(), names, dataset="faces", overrides=sizes, device="cpu")
    assert {"mrtl", "mcn_t600", "vor_t600", "isotropy_t600", "map_condition"} <= record.measurements.keys()
    assert all(measured.value > 0 for measured in record.measurements.values())
    with pytest.raises(ValueError, match="inversion cannot be measured: it is defined for models of pixels"):
        evaluate(tiny_ldm(), ("inversion",), device="cpu")
