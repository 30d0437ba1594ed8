r"""Training of the small KL autoencoder of latent diffusion (Kingma and Welling 2014; Rombach et al. 2022).

    L = E|x − D(z)| + β KL(q(z | x) ‖ N(0, I)),    z = μ + σ ε,    q(z | x) = N(μ(x), σ²(x)),

are means over pixels and over entries of z. β is so small that it only keeps the latents bounded. There is neither a
perceptual nor an adversarial term, which photographs need and drawings do not.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.diffusion.config import AutoencoderConfig
from isodiff.diffusion.latent import downsampling, images_to_latents
from isodiff.diffusion.run_folder import train_into
from isodiff.diffusion.training import RunOptions, Training, seeded


def build_autoencoder(resolution: int, *, channels: int = 3, seed: int = 0) -> AutoencoderKL:
    """Build an untrained autoencoder of 0.4 M parameters, for images of a side that is a multiple of 4."""
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution must be a multiple of 4, at least 8; got {resolution}")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {"block_out_channels": (16, 32, 48), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8}
    with seeded(seed, torch.device("cpu")):
        return AutoencoderKL(**blocks, **sizes, in_channels=channels, out_channels=channels, sample_size=resolution)


def autoencoder_loss(autoencoder: AutoencoderKL, x: Tensor, eps: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the loss above and its first part, E|x − D(z)|, of images in [−1, 1] and noise ε of the latents' shape."""
    posterior = autoencoder.encode(x).latent_dist
    error = (autoencoder.decode(posterior.mean + posterior.std * eps).sample - x).abs().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error + beta * divergence, error.detach()


def fit_autoencoder(
    autoencoder: AutoencoderKL, images: Dataset[Tensor], config: AutoencoderConfig, **options: Unpack[RunOptions]
) -> Iterator[tuple[int, float]]:
    """Train as `finetune` does, yielding (steps done, reconstruction error); at the end latents have unit variance."""
    side, factor = autoencoder.config.sample_size, downsampling(autoencoder)
    latent = (config.batch_size, autoencoder.config.latent_channels, side // factor, side // factor)
    run = Training(autoencoder, images, (autoencoder.config.in_channels, side, side), config, options)
    for step, x in run.steps():
        eps = step.rows(torch.randn(latent, generator=step.generator("posterior")))
        loss, error = autoencoder_loss(autoencoder, x, eps, config.beta)
        step.accelerator.backward(loss)
        run.update(step, {"the loss": loss.item()})
        run.log.append({"error": step.mean(error).item()})
        yield step.number + 1, run.log[-1]["error"]
    autoencoder.register_to_config(scaling_factor=1.0)
    first = torch.stack([images[i] for i in range(min(len(images), 1024))]).split(64)
    with torch.no_grad():
        latents = [images_to_latents(autoencoder, x).cpu() for x in first]
    autoencoder.register_to_config(scaling_factor=1 / float(torch.cat(latents).double().std()))


def train_autoencoder(
    images: Dataset[Tensor], config: AutoencoderConfig, output: str | Path, **options: object
) -> AutoencoderKL:
    """Train an autoencoder into a directory that diffusers opens, beside its `training.json`; resumed like `train`."""
    autoencoder = build_autoencoder(images.resolution, channels=images.channels, seed=config.seed)
    steps, save = partial(fit_autoencoder, autoencoder, images, config), autoencoder.save_pretrained
    ran = train_into(output, config, autoencoder, steps, save, **options)
    return autoencoder if ran else load_autoencoder(output)


def load_autoencoder(path: str | Path) -> AutoencoderKL:
    """Open a directory that `train_autoencoder` wrote, or any other of a diffusers `AutoencoderKL`."""
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"no autoencoder at {str(path)!r}: expected a directory with config.json")
    try:
        return AutoencoderKL.from_pretrained(path, local_files_only=True)
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the autoencoder in {Path(path).name!r}: {error}; train it again") from error
