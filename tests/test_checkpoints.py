"""The shipped models are what the course says they are: small, recorded, isometric, and faithful to the manifold."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from diffusers import DDPMPipeline

from isodiff.datasets import open_dataset
from isodiff.datasets.face_factors import estimate_factors
from isodiff.datasets.faces import render, sample_factors
from isodiff.diffusion.pretrained import load_pipeline
from isodiff.diffusion.process import ddim_sample, dsm_loss
from isodiff.metrics.isotropy import encoder_isotropy
from isodiff.paths import data_directory

FAMILIES = {"faces32": ("faces", 2_000_000), "digits16": ("digits", 700_000)}
MODELS = ("base", "control", "isometric")


@cache
def _model(family: str, name: str) -> DDPMPipeline:
    pipeline = load_pipeline(f"{family}/{name}")
    pipeline.unet.eval()
    return pipeline


def _record(family: str, name: str) -> dict:
    return json.loads((data_directory() / "checkpoints" / family / name / "training.json").read_text())


def _held_out(family: str, num: int) -> torch.Tensor:
    dataset = open_dataset(FAMILIES[family][0], _model(family, "base").unet.config.sample_size, seed=1234)
    return torch.stack(dataset.__getitems__(list(range(num))))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MODELS)
def test_models_are_small_float32_safetensors_with_a_record(family: str, name: str) -> None:
    unet = _model(family, name).unet
    assert sum(p.numel() for p in unet.parameters()) <= FAMILIES[family][1]
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    folder = data_directory() / "checkpoints" / family / name
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    record = _record(family, name)
    assert record["command"].startswith("isodiff ")
    assert len(record["curves"]["dsm"]) >= 50


@pytest.mark.parametrize("family", FAMILIES)
def test_the_control_differs_in_lambda_alone(family: str) -> None:
    control, isometric = (_record(family, name)["config"] for name in ("control", "isometric"))
    assert {name for name in control if control[name] != isometric[name]} == {"lambda_iso"}
    assert control["lambda_iso"] == 0 < isometric["lambda_iso"]
    assert isometric["normalize"] is True
    base = _record(family, "base")["config"]
    assert base["num_steps"] >= 20_000
    assert base["batch_size"] == 32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("t", [600, 800])
def test_the_isometric_encoder_is_at_most_a_quarter_as_anisotropic_as_the_control(family: str, t: int) -> None:
    x_0 = _held_out(family, 64)
    measured = {
        name: encoder_isotropy(_model(family, name).unet, _model(family, name).scheduler, x_0, t).mean()
        for name in ("control", "isometric")
    }
    assert measured["isometric"] <= 0.25 * measured["control"]
    assert measured["isometric"] > 0.9  # isotropy has the lower bound 1


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_denoising_costs_at_most_three_per_cent(family: str) -> None:
    x_0 = _held_out(family, 512)
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(1000, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    loss = {}
    for name in ("control", "isometric"):
        pipeline = _model(family, name)
        parts = zip(x_0.split(64), t.split(64), eps.split(64), strict=True)
        loss[name] = sum(dsm_loss(pipeline.unet, pipeline.scheduler, *part).item() for part in parts)
    assert loss["isometric"] == pytest.approx(loss["control"], rel=0.03)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_generated_faces_lie_on_the_manifold(name: str) -> None:
    pipeline, generator = _model("faces32", name), torch.Generator().manual_seed(0)
    samples = ddim_sample(pipeline.unet, pipeline.scheduler, torch.randn(64, 3, 32, 32, generator=generator), 50)
    distance = estimate_factors(samples).error.median().item()
    pairs = [render(sample_factors(256, generator=generator), 32) for _ in range(2)]
    assert distance <= 0.005
    assert distance <= 0.05 * (pairs[0] - pairs[1]).square().mean().item()
