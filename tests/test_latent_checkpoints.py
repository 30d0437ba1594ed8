"""The shipped latent-diffusion models: small, loaded by stock diffusers, isometric, and faces when decoded."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from diffusers import LDMPipeline

from isodiff.datasets import open_dataset
from isodiff.datasets.face_factors import estimate_factors
from isodiff.diffusion.latent import images_to_latents, latents_to_images
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.metrics.generator import Generator, draw_latents
from isodiff.metrics.isotropy import encoder_isotropy
from isodiff.paths import data_directory

FOLDER = data_directory() / "checkpoints" / "latent64"
MODELS = ("base", "control", "isometric")


@cache
def _model(name: str) -> LDMPipeline:
    pipeline = load_pipeline(f"latent64/{name}")
    pipeline.unet.eval()
    pipeline.vqvae.eval()
    return pipeline


@cache
def _held_out() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack(open_dataset("faces", 64, seed=1234).__getitems__(list(range(64))))
    with torch.no_grad():
        return images, images_to_latents(_model("base").vqvae, images)


def test_all_three_take_less_than_eight_mebibytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 8 * 2**20


@pytest.mark.parametrize("name", MODELS)
def test_stock_diffusers_draws_the_same_images(name: str) -> None:
    stock, x_T = LDMPipeline.from_pretrained(FOLDER / name), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(Generator(stock, 2)(x_T), Generator(_model(name), 2)(x_T))
    assert json.loads((FOLDER / name / "training.json").read_text())["command"].startswith("isodiff ")


def test_they_share_one_autoencoder_that_gives_faces_back_at_unit_variance() -> None:
    states = [_model(name).vqvae.state_dict() for name in MODELS]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])
    images, latents = _held_out()
    with torch.no_grad():
        decoded = latents_to_images(_model("base").vqvae, latents).clamp(-1, 1)
    assert 10 * torch.log10(4 / (decoded - images).square().mean()) > 35  # PSNR in dB
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    assert (latents.abs() > _model("base").scheduler.config.clip_sample_range).float().mean() < 1e-4


def test_the_control_differs_in_lambda_alone() -> None:
    control, isometric = (
        json.loads((FOLDER / name / "training.json").read_text())["config"] for name in ("control", "isometric")
    )
    assert {key for key in control if control[key] != isometric[key]} == {"lambda_iso"}
    assert control["lambda_iso"] == 0 < isometric["lambda_iso"]


@pytest.mark.parametrize("t", [600, 800])
def test_the_isometric_encoder_is_at_most_a_quarter_as_anisotropic_as_the_control(t: int) -> None:
    _, latents = _held_out()
    control, isometric = (
        encoder_isotropy(_model(name).unet, _model(name).scheduler, latents, t).mean()
        for name in ("control", "isometric")
    )
    assert 0.9 < isometric <= 0.25 * control


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_decoded_samples_lie_near_the_manifold_of_faces(name: str) -> None:
    generate = Generator(_model(name), 20)
    samples = generate(draw_latents(generate.shape, 0, 32, seed=0, stream="samples"))
    assert estimate_factors(samples).error.median() <= 0.005
