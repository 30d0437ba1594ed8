"""The shipped models are what the course says they are: small, recorded, isometric, and faithful to the manifold."""

import json
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline

from isodiff.datasets import estimate_factors, open_dataset, render, sample_factors
from isodiff.diffusion import autoencoder_of, ddim_sample, dsm_loss, images_to_latents, latents_to_images, load_pipeline
from isodiff.files import data_directory
from isodiff.metrics import encoder_anisotropy

FOLDER = data_directory() / "checkpoints"
FAMILIES = {"faces32": ("faces", 32, 2_000_000), "digits16": ("digits", 16, 700_000), "latent64": ("faces", 64, None)}
MODELS = ("base", "control", "isometric")
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def model(family: str, name: str) -> DiffusionPipeline:
    pipeline = load_pipeline(f"{family}/{name}")
    for part in (pipeline.unet, autoencoder_of(pipeline) or pipeline.unet):
        part.eval().requires_grad_(False)
    return pipeline


def record(family: str, name: str) -> dict:
    return json.loads((FOLDER / family / name / "training.json").read_text())


def held_out(family: str, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    dataset, resolution, _ = FAMILIES[family]
    images = torch.stack(open_dataset(dataset, resolution, seed=1234).__getitems__(list(range(num))))
    return images, images_to_latents(autoencoder_of(model(family, "base")), images)


@every_family
@pytest.mark.parametrize("name", MODELS)
def test_models_are_small_recorded_float32_as_stock_diffusers_reads_them(family: str, name: str) -> None:
    stock, ours = DiffusionPipeline.from_pretrained(FOLDER / family / name), model(family, name)
    torch.testing.assert_close(stock.unet.state_dict(), ours.unet.state_dict(), rtol=0, atol=0)
    assert stock.scheduler.config == ours.scheduler.config
    assert ours.unet.num_parameters() <= (FAMILIES[family][2] or torch.inf)
    assert {p.dtype for p in ours.unet.parameters()} == {torch.float32}
    assert not [p for p in (FOLDER / family / name).rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    assert record(family, name)["command"].startswith("isodiff ")
    assert len(record(family, name)["curves"]["dsm"]) >= 50


@every_family
def test_the_control_differs_in_lambda_alone(family: str) -> None:
    control, isometric, base = (record(family, name)["config"] for name in ("control", "isometric", "base"))
    assert {name for name in control if control[name] != isometric[name]} == {"lambda_iso"}
    assert control["lambda_iso"] == 0 < isometric["lambda_iso"]
    assert isometric["normalize"] is True
    assert family == "latent64" or (base["num_steps"] >= 20_000 and base["batch_size"] == 32)


@every_family
@pytest.mark.parametrize("t", [600, 800])
def test_the_isometric_encoder_is_at_most_a_quarter_as_anisotropic_as_the_control(family: str, t: int) -> None:
    models, x_0 = [model(family, name) for name in ("control", "isometric")], held_out(family, 64)[1]
    control, isometric = (encoder_anisotropy(m.unet, m.scheduler, x_0, t).mean() for m in models)
    assert 0.9 < isometric <= 0.25 * control  # anisotropy has the lower bound 1


@pytest.mark.parametrize("family", ["faces32", "digits16"])
def test_denoising_costs_at_most_three_per_cent(family: str) -> None:
    x_0, generator = held_out(family, 512)[1], torch.Generator().manual_seed(0)
    t = torch.randint(1000, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    parts = list(zip(x_0.split(64), t.split(64), eps.split(64), strict=True))
    models = [model(family, name) for name in ("control", "isometric")]
    control, isometric = (sum(dsm_loss(m.unet, m.scheduler, *part).item() for part in parts) for m in models)
    assert isometric == pytest.approx(control, rel=0.03)


@pytest.mark.parametrize(("family", "num_steps"), [("faces32", 50), ("latent64", 20)])
@pytest.mark.parametrize("name", MODELS)
def test_generated_faces_lie_on_the_manifold(family: str, num_steps: int, name: str) -> None:
    pipeline, generator = model(family, name), torch.Generator().manual_seed(0)
    x_T = torch.randn(32, *held_out(family, 1)[1].shape[1:], generator=generator)
    with torch.no_grad():
        z = ddim_sample(pipeline.unet, pipeline.scheduler, x_T, num_steps)
    distance = estimate_factors(latents_to_images(autoencoder_of(pipeline), z)).error.median().item()
    pairs = [render(sample_factors(256, generator=generator), 32) for _ in range(2)]
    assert distance <= min(0.005, 0.05 * (pairs[0] - pairs[1]).square().mean().item())


def test_latent_models_share_one_small_autoencoder_that_gives_faces_back_at_unit_variance() -> None:
    assert sum(file.stat().st_size for file in (FOLDER / "latent64").rglob("*") if file.is_file()) <= 8 * 2**20
    states = [model("latent64", name).vqvae.state_dict() for name in MODELS]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])
    base, (faces, latents) = model("latent64", "base"), held_out("latent64", 64)
    decoded = latents_to_images(base.vqvae, latents).clamp(-1, 1)
    assert 10 * torch.log10(4 / (decoded - faces).square().mean()) > 35  # PSNR in dB
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    assert (latents.abs() > base.scheduler.config.clip_sample_range).float().mean() < 1e-4
