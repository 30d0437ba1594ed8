"""The autoencoder of latent diffusion: its loss in closed form, exact resumption, and what it leaves behind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from isodiff.cli import main
from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.autoencoder import (
    autoencoder_loss,
    build_autoencoder,
    fit_autoencoder,
    latent_deviation,
    load_autoencoder,
    reconstruction,
    train_autoencoder,
)
from isodiff.diffusion.autoencoder_config import AutoencoderConfig
from isodiff.diffusion.latent import images_to_latents, latents_to_images

CONFIG = AutoencoderConfig(num_steps=4, batch_size=4, checkpoint_every=2)


def _images() -> FacesDataset:
    return FacesDataset(8, num_images=20)


def _weights(autoencoder: AutoencoderKL) -> Tensor:
    return torch.cat([p.detach().flatten() for p in autoencoder.parameters()])


def test_the_loss_is_the_error_and_the_divergence_of_torch() -> None:
    autoencoder, x, eps = build_autoencoder(8).double(), torch.randn(2, 3, 8, 8).double(), torch.randn(2, 4, 2, 2)
    posterior = autoencoder.encode(x).latent_dist
    error = (autoencoder.decode(posterior.mean + posterior.std * eps.double()).sample - x).abs().mean()
    divergence = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).mean()
    loss, first = autoencoder_loss(autoencoder, x, eps.double(), beta=0.3)
    torch.testing.assert_close(loss, error + 0.3 * divergence)
    torch.testing.assert_close(first, error.detach())


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight = build_autoencoder(8)
    errors = list(fit_autoencoder(straight, _images(), CONFIG))
    cut = fit_autoencoder(build_autoencoder(8), _images(), CONFIG, checkpoint=tmp_path / "c.safetensors")
    first = list(itertools.islice(cut, 3))  # the checkpoint is of step 2
    resumed = build_autoencoder(8, seed=1)
    rest = list(fit_autoencoder(resumed, _images(), CONFIG, checkpoint=tmp_path / "c.safetensors"))
    assert first + rest[1:] == errors
    assert torch.equal(_weights(resumed), _weights(straight))
    assert resumed.config.scaling_factor == straight.config.scaling_factor


def test_latents_have_unit_deviation_afterwards() -> None:
    autoencoder, images = build_autoencoder(8), _images()
    list(fit_autoencoder(autoencoder, images, CONFIG))
    x = torch.stack([images[i] for i in range(20)])
    with torch.no_grad():
        latents = images_to_latents(autoencoder, x)
        error = (latents_to_images(autoencoder, latents).clamp(-1, 1) - x).double()
    assert float(latents.double().std()) == pytest.approx(1.0, abs=1e-5)
    found = reconstruction(autoencoder, images)
    assert found["n"] == 20
    assert found["mean_absolute_error"] == pytest.approx(float(error.abs().mean()), rel=1e-6)
    assert found["psnr"] == pytest.approx(-10 * float(torch.log10(error.square().mean() / 4)), rel=1e-6)


def test_the_deviation_does_not_depend_on_the_scale_before() -> None:
    autoencoder = build_autoencoder(8)
    first = latent_deviation(autoencoder, _images())
    autoencoder.register_to_config(scaling_factor=7.0)
    assert latent_deviation(autoencoder, _images()) == first


def test_the_command_makes_a_directory_for_diffusers_and_for_pretrain(tmp_path: Path) -> None:
    output, model = tmp_path / "a", tmp_path / "m"
    size = ["--num-steps", "2", "--batch-size", "2", "--device", "cpu", "--dataset", "faces"]
    train = ["train-autoencoder", *size, "--resolution", "32", "--output", str(output)]
    assert main(train) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "training.json",
    ]
    record = json.loads((output / "training.json").read_text())
    assert (record["dataset"], record["config"]["num_steps"], record["reconstruction"]["n"]) == ("faces", 2, 256)
    assert torch.equal(_weights(AutoencoderKL.from_pretrained(output)), _weights(load_autoencoder(output)))
    assert main(train) == 0  # done already
    assert main([*train, "--seed", "3"]) != 0  # another run

    pretrain = ["pretrain", *size, "--architecture", "digits16", "--autoencoder", str(output), "--output", str(model)]
    assert main([*pretrain, "--half"]) == 0
    assert json.loads((model / "model_index.json").read_text())["_class_name"] == "LDMPipeline"
    tune = ["finetune", *size, "--base", str(model), "--output", str(tmp_path / "tuned")]
    assert main([*tune, "--lambda-iso", "1e-3", "--p", "0"]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite; got inf"),
        ({"beta": -1.0}, "beta must be at least 0 and finite; got -1.0"),
        ({"ema_decay": 2.0}, r"ema_decay must lie in \[0, 1\]; got 2.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig(**change)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4, at least 8; got 10"):
        build_autoencoder(10)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\); this autoencoder needs \(3, 16, 16\)"):
        next(fit_autoencoder(build_autoencoder(16), _images(), CONFIG))
    with pytest.raises(FileNotFoundError, match=r"expected a directory with config\.json"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the autoencoder"):
        load_autoencoder(tmp_path)
    train_autoencoder(_images(), CONFIG, tmp_path / "a")
    with pytest.raises(ValueError, match=r"seed = 0 there, 1 now"):
        train_autoencoder(_images(), AutoencoderConfig(num_steps=4, batch_size=4, seed=1), tmp_path / "a")
