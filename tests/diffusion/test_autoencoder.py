"""The autoencoder of latent diffusion: its loss in closed form, exact resumption, and what it leaves behind."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from isodiff.datasets.faces import FacesDataset
from isodiff.diffusion.autoencoder import (
    autoencoder_loss,
    build_autoencoder,
    fit_autoencoder,
    load_autoencoder,
    train_autoencoder,
)
from isodiff.diffusion.config import AutoencoderConfig, FinetuneConfig
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.latent import images_to_latents
from isodiff.diffusion.models import build_pipeline

from .tiny import weights

CONFIG = AutoencoderConfig(num_steps=4, batch_size=4, checkpoint_every=2)
IMAGES = FacesDataset(8, num_images=20)


def test_the_loss_is_the_error_and_the_divergence_of_torch() -> None:
    autoencoder, x, eps = build_autoencoder(8).double(), torch.randn(2, 3, 8, 8).double(), torch.randn(2, 4, 2, 2)
    posterior = autoencoder.encode(x).latent_dist
    error = (autoencoder.decode(posterior.mean + posterior.std * eps.double()).sample - x).abs().mean()
    divergence = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).mean()
    loss, first = autoencoder_loss(autoencoder, x, eps.double(), beta=0.3)
    torch.testing.assert_close(loss, error + 0.3 * divergence)
    torch.testing.assert_close(first, error.detach())


def test_an_interrupted_run_ends_with_the_same_weights_and_latents_of_unit_deviation(tmp_path: Path) -> None:
    straight, resumed, file = build_autoencoder(8), build_autoencoder(8, seed=1), tmp_path / "c.pt"
    errors = list(fit_autoencoder(straight, IMAGES, CONFIG))
    first = list(itertools.islice(fit_autoencoder(build_autoencoder(8), IMAGES, CONFIG, checkpoint=file), 3))
    resumed.register_to_config(scaling_factor=7.0)  # plays no part
    rest = list(fit_autoencoder(resumed, IMAGES, CONFIG, checkpoint=file))  # from step 2
    assert first + rest[1:] == errors
    assert torch.equal(weights(resumed), weights(straight))
    assert resumed.config.scaling_factor == straight.config.scaling_factor

    x = torch.stack([IMAGES[i] for i in range(20)])
    with torch.no_grad():
        assert images_to_latents(resumed, x).double().std().item() == pytest.approx(1.0, abs=1e-5)


def test_a_run_makes_a_directory_for_diffusers_and_for_latent_diffusion(tmp_path: Path) -> None:
    output, images, facts = tmp_path / "a", FacesDataset(32, num_images=20), {"dataset": "faces", "command": "one"}
    config = AutoencoderConfig(num_steps=2, batch_size=2)
    trained = train_autoencoder(images, config, output, provenance=facts)
    written = {"config.json", "diffusion_pytorch_model.safetensors", "training.json"}
    assert {path.name for path in output.iterdir()} == written
    record = json.loads((output / "training.json").read_text())
    assert (record["dataset"], record["curves"]["step"]) == ("faces", [1, 2])
    again = train_autoencoder(images, config, output, provenance=facts | {"command": "two"})  # done already
    for opened in (AutoencoderKL.from_pretrained(output), load_autoencoder(output), again):
        assert torch.equal(weights(opened), weights(trained))
    with pytest.raises(ValueError, match=r"seed = 0 there, 3 now"):
        train_autoencoder(images, AutoencoderConfig(num_steps=2, batch_size=2, seed=3), output, provenance=facts)

    pipeline = build_pipeline("digits16", autoencoder=again)
    states = list(finetune(pipeline, images, FinetuneConfig(num_steps=2, batch_size=2, lambda_iso=1e-3, p=0.0)))
    assert all(state.isometry > 0 for state in states)
    assert torch.equal(weights(pipeline.vqvae), weights(trained))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4, at least 8; got 10"):
        build_autoencoder(10)
    with pytest.raises(FileNotFoundError, match=r"expected a directory with config\.json"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the autoencoder"):
        load_autoencoder(tmp_path)
