r"""Training of the small KL autoencoder of latent diffusion (Kingma and Welling 2014; Rombach et al. 2022).

With posterior q(z | x) = N(μ(x), σ²(x)) and decoder D,

    L = E|x − D(z)| + β KL(q(z | x) ‖ N(0, I)),    z = μ + σ ε,

both terms averaged over what they are taken of: pixels, and entries of z. β is so small that it only keeps the latents
bounded. There is neither a perceptual nor an adversarial term, which photographs need and drawings do not.

As in `finetune`, randomness is a function of (seed, step, purpose), so that an interrupted run resumes exactly and
several processes train as one.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from isodiff.diffusion.autoencoder_config import AutoencoderConfig
from isodiff.diffusion.checkpoint import Checkpoint
from isodiff.diffusion.finetune import TrainingInterrupted
from isodiff.diffusion.global_batch import (
    GlobalBatches,
    any_process,
    average_gradients,
    generator_of,
    global_mean,
    own_rows,
)
from isodiff.diffusion.latent import images_to_latents, latents_to_images
from isodiff.diffusion.training import (
    RECORD,
    discard_checkpoint,
    explained,
    read_record,
    require_same_run,
    stop_signals,
    versions,
)
from isodiff.paths import require_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTOENCODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 48),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
}
"""`AutoencoderKL` settings of the one this project trains: 0.4 M parameters, a latent side of a quarter."""


def build_autoencoder(resolution: int, *, channels: int = 3, seed: int = 0) -> AutoencoderKL:
    """Build an untrained autoencoder for images of a side that is a multiple of 4.

    Raises:
        ValueError: the resolution is not one.
    """
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution must be a multiple of 4, at least 8; got {resolution}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(**AUTOENCODER, in_channels=channels, out_channels=channels, sample_size=resolution)


def autoencoder_loss(
    autoencoder: AutoencoderKL, x: torch.Tensor, eps: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the module and its first part, the mean absolute error of the reconstruction.

    Args:
        autoencoder: the model.
        x: (B, C, R, R) images in [−1, 1].
        eps: (B, c, r, r) standard normal noise of the posterior.
        beta: weight of the KL term.
    """
    posterior = autoencoder.encode(x).latent_dist
    error = (autoencoder.decode(posterior.mean + posterior.std * eps).sample - x).abs().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error + beta * divergence, error.detach()


def fit_autoencoder(
    autoencoder: AutoencoderKL,
    images: Dataset,
    config: AutoencoderConfig,
    *,
    checkpoint: str | Path | None = None,
    accelerator: Accelerator | None = None,
    provenance: dict[str, str] | None = None,
    stop: Callable[[], int] | None = None,
) -> Iterator[tuple[int, float]]:
    """Train an autoencoder, yielding (steps done, reconstruction error over all processes) after each step.

    At the end it holds the moving average of its weights, and a `scaling_factor` that brings the latents of the first
    1,024 images to unit variance.

    Args:
        autoencoder: trained in place.
        images: map-style dataset of (C, R, R) images in [−1, 1].
        config: the settings.
        checkpoint: as in `finetune`: the run resumes from it, exactly.
        accelerator: for devices and processes.
        provenance: as in `finetune`.
        stop: as in `finetune`.

    Raises:
        ValueError: the batch cannot be shared out, images and model do not fit, or the checkpoint has other settings.
        FloatingPointError: the loss is not finite.
        TrainingInterrupted: `stop` said so; the checkpoint is written.
    """
    accelerator = accelerator or Accelerator()
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, {accelerator.num_processes}; "
            f"got {config.batch_size}"
        )
    side = autoencoder.config.sample_size
    expected = (autoencoder.config.in_channels, side, side)
    if len(images) < 1 or tuple(images[0].shape) != expected:
        found = tuple(images[0].shape) if len(images) else "no image"
        raise ValueError(f"the images have shape {found}; this autoencoder needs {expected} (channels, height, width)")
    autoencoder.train().to(accelerator.device)
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    latent = (config.batch_size, autoencoder.config.latent_channels, side // factor, side // factor)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=config.learning_rate)
    ema = EMAModel(autoencoder.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    ema.to(accelerator.device)
    settings = {**asdict(config), "num_images": len(images), **(provenance or {})}
    store = Checkpoint(checkpoint, autoencoder, ema, optimizer, settings, accelerator) if checkpoint else None
    start = store.restore() if store else 0
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    learning_rate = get_scheduler(
        "cosine", optimizer, num_warmup_steps=200, num_training_steps=config.num_steps, last_epoch=start - 1
    )
    sequential = getattr(images, "sequential", False)
    batches = GlobalBatches(len(images), config, start, accelerator, sequential=sequential)
    loader = DataLoader(images, batch_sampler=batches, num_workers=config.num_workers, generator=torch.Generator())
    for step, x in enumerate(loader, start=start + 1):
        eps = own_rows(torch.randn(latent, generator=generator_of(config.seed, step - 1, "posterior")), accelerator)
        loss, error = autoencoder_loss(autoencoder, x.to(accelerator.device), eps, config.beta)
        if not loss.isfinite():
            kept = store.kept if store else "no checkpoint was asked for"
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}; {kept}. Lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        average_gradients(autoencoder, accelerator)
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        learning_rate.step()
        ema.step(autoencoder.parameters())
        yield step, global_mean(error, accelerator).item()
        number = any_process(stop(), accelerator) if stop else 0
        if store and (number or step % config.checkpoint_every == 0 or step == config.num_steps):
            store.save(step)
        if number:
            raise TrainingInterrupted(f"stopped after step {step} of {config.num_steps}; run the same to go on", number)
    ema.copy_to(autoencoder.parameters())
    autoencoder.eval()
    autoencoder.register_to_config(scaling_factor=1 / latent_deviation(autoencoder, images))


@torch.no_grad()
def latent_deviation(autoencoder: AutoencoderKL, images: Dataset, count: int = 1024) -> float:
    """Return the standard deviation of the entries of E(x), not scaled, over the first images of a dataset."""
    autoencoder.register_to_config(scaling_factor=1.0)
    count = min(count, len(images))
    batches = (torch.stack([images[i] for i in range(s, min(s + 64, count))]) for s in range(0, count, 64))
    return float(torch.cat([images_to_latents(autoencoder, x).cpu() for x in batches]).double().std())


def train_autoencoder(
    images: Dataset,
    config: AutoencoderConfig,
    output: str | Path,
    *,
    provenance: dict[str, str] | None = None,
    accelerator: Accelerator | None = None,
) -> AutoencoderKL:
    """Train an autoencoder into a directory that `diffusers.AutoencoderKL.from_pretrained` opens, with a progress bar.

    Interrupted and called again it goes on from the last checkpoint; called once more when done, it loads the result.

    Args:
        images: the dataset.
        config: the settings.
        output: the directory; `training.json` in it holds settings, provenance, versions and the loss curve.
        provenance: facts to record; all but the command must be the same when the run goes on.
        accelerator: for devices and processes.

    Raises:
        ValueError: the directory holds an autoencoder trained with other settings or from other data.
    """
    output, provenance = Path(output), provenance or {}
    accelerator = accelerator or Accelerator()
    record_file, checkpoint = output / RECORD, output / "checkpoint.safetensors"
    lasting = {name: fact for name, fact in provenance.items() if name != "command"}
    require_folder(output)
    if record_file.exists():
        require_same_run(read_record(record_file), config, lasting, output)
        if accelerator.is_main_process:
            discard_checkpoint(checkpoint)  # a kill may have come between the record and this
        return load_autoencoder(output)
    autoencoder = build_autoencoder(images.resolution, channels=images.channels, seed=config.seed)
    main = accelerator.is_main_process
    with (
        stop_signals() as received,
        tqdm(total=config.num_steps, unit="step", mininterval=1.0, disable=not main) as bar,
    ):
        steps = fit_autoencoder(
            autoencoder,
            images,
            config,
            checkpoint=checkpoint,
            accelerator=accelerator,
            provenance=lasting,
            stop=received,
        )
        for step, error in steps:
            bar.update(step - bar.n)
            bar.set_postfix({"error": f"{error:.4f}"}, refresh=False)
    if main:
        record = {
            "config": asdict(config),
            **provenance,
            **versions(),
            "parameters": sum(p.numel() for p in autoencoder.parameters()),
            "reconstruction": {
                "images": "the first of the dataset, in training",
                **reconstruction(autoencoder, images),
            },
        }
        partial = output / f".{RECORD}.partial"
        with explained(output):
            autoencoder.save_pretrained(output, safe_serialization=True)
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(record_file)
        discard_checkpoint(checkpoint)
    accelerator.wait_for_everyone()
    return autoencoder


def load_autoencoder(path: str | Path) -> AutoencoderKL:
    """Open a directory that `train_autoencoder` wrote, or any other of a diffusers `AutoencoderKL`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it does not load.
    """
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"no autoencoder at {str(path)!r}: expected a directory with config.json")
    try:
        return AutoencoderKL.from_pretrained(path, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the autoencoder in {Path(path).name!r}: {error}; train it again") from error


@torch.no_grad()
def reconstruction(autoencoder: AutoencoderKL, images: Dataset, count: int = 256) -> dict[str, float]:
    """Return how near D(E(x)) is to the first images of a dataset: mean absolute error and PSNR in dB, of [−1, 1]."""
    x = torch.stack([images[i] for i in range(min(count, len(images)))])
    parts = [latents_to_images(autoencoder, images_to_latents(autoencoder, part)).cpu() for part in x.split(64)]
    difference = (torch.cat(parts).clamp(-1, 1) - x).double()
    return {
        "n": len(x),
        "mean_absolute_error": float(difference.abs().mean()),
        "psnr": float(10 * torch.log10(4 / difference.square().mean())),
    }
