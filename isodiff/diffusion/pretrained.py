"""Diffusion models in and out: ordinary diffusers pipelines, from a directory, from this project or from the hub.

A model of ours is a directory that `diffusers.DiffusionPipeline.from_pretrained` opens without this package.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from diffusers.utils import logging

from isodiff.diffusion.published import ARCHITECTURES, AUTOENCODERS, PUBLISHED
from isodiff.paths import data_directory

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "StableDiffusionPipeline")
"""Classes of pipelines that are understood here."""

_SECONDS = 10.0  # to wait for the hub


def build_unet(
    architecture: str, *, resolution: int | None = None, channels: int | None = None, seed: int = 0
) -> UNet2DModel:
    """Build a randomly initialised U-Net of a named architecture.

    Args:
        architecture: a key of `ARCHITECTURES`.
        resolution: side of what it denoises, a multiple of 2 to the number of its downsamplings; the architecture's own
            by default.
        channels: of what it denoises; the architecture's own by default.
        seed: of the initial weights.

    Raises:
        ValueError: unknown architecture, or a resolution that its downsamplings do not divide.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; accepted: {', '.join(ARCHITECTURES)}")
    settings = dict(ARCHITECTURES[architecture])
    if resolution is not None:
        factor = 2 ** (len(settings["block_out_channels"]) - 1)
        if resolution < 2 * factor or resolution % factor:
            raise ValueError(f"resolution must be a multiple of {factor}, at least {2 * factor}; got {resolution}")
        settings["sample_size"] = resolution
    if channels is not None:
        settings["in_channels"] = settings["out_channels"] = channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**settings)


def build_pipeline(
    architecture: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    autoencoder: AutoencoderKL | VQModel | None = None,
    seed: int = 0,
) -> DDPMPipeline | LDMPipeline:
    """Build an untrained model with the linear schedule of Ho et al. 2020 (T = 1000, β from 10⁻⁴ to 0.02).

    Args:
        architecture: as in `build_unet`.
        resolution: as in `build_unet`; with an autoencoder, what follows from the side of its images by default.
        channels: as in `build_unet`; with an autoencoder, its latents' by default.
        autoencoder: makes it a latent-diffusion model; the published one comes with its own, untrained.
        seed: of the initial weights.

    Raises:
        ValueError: see `build_unet`.
    """
    if autoencoder is None and architecture in AUTOENCODERS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = VQModel(**AUTOENCODERS[architecture])
    if autoencoder is None:
        unet = build_unet(architecture, resolution=resolution, channels=channels, seed=seed)
        # Trailing spacing lets every sampler start at t = T−1, where x_t is pure noise. Estimates of x₀ are clipped, as
        # Ho et al. do: at t near T they divide a small error of ε_θ by √ᾱ_t, 0.006 at the end.
        scheduler = DDPMScheduler(clip_sample=True, timestep_spacing="trailing")
        return DDPMPipeline(unet=unet, scheduler=scheduler)
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    unet = build_unet(
        architecture,
        resolution=resolution or autoencoder.config.sample_size // factor,
        channels=channels or autoencoder.config.latent_channels,
        seed=seed,
    )
    # Latents of unit variance hardly exceed 4. Without a clip, samples drift out of their range at t near T, as above.
    scheduler = DDIMScheduler(clip_sample=True, clip_sample_range=4.0, timestep_spacing="trailing")
    return LDMPipeline(vqvae=autoencoder, unet=unet, scheduler=scheduler)


def load_pipeline(source: str | Path, *, revision: str | None = None) -> DiffusionPipeline:
    """Load a model from a directory, from what this project ships, or from the hub.

    Args:
        source: a directory that holds `model_index.json`; a shipped name such as `"faces32/base"`; a published name
            such as `"google/ddpm-celebahq-256"` (see `published.PUBLISHED`); or `"hub:OWNER/NAME"`. The latter two may
            end in `@REVISION`.
        revision: commit, tag or branch on the hub, in place of `@REVISION`; a published model has one by default.

    Returns:
        A pipeline of one of the classes `PIPELINES`, in float32.

    Raises:
        FileNotFoundError: there is no such model; the message lists what there is.
        ConnectionError: the model is on the hub only, which cannot be reached; the message names the command that
            fetches it elsewhere.
        ValueError: it is no pipeline that is understood here, or not readable, for example because a file was cut
            short.

    Note:
        Weights are read from safetensors. Some published models have nothing but pickles, which torch then reads
        restricted to tensors.
    """
    shipped = data_directory() / "checkpoints"
    path = next((p for p in (Path(source), shipped / source) if (p / "model_index.json").is_file()), None)
    if path is not None:
        return _open(path, path.name, use_safetensors=True, local_files_only=True)
    name, _, pinned = str(source).removeprefix("hub:").partition("@")
    published = PUBLISHED.get(name)
    if published is None and not str(source).startswith("hub:"):
        names = sorted(str(p.parent.relative_to(shipped)) for p in shipped.glob("*/*/model_index.json"))
        raise FileNotFoundError(
            f"no diffusers pipeline at {str(source)!r}: expected a directory with model_index.json, one shipped here "
            f"({', '.join(names)}), one published ({', '.join(PUBLISHED)}), or hub:OWNER/NAME"
        )
    revision = revision or pinned or (published.revision if published else None)
    pipeline = _open(_fetch(name, revision), name, local_files_only=True)
    if published is not None and published.scaling_factor is not None:
        pipeline.vqvae.register_to_config(scaling_factor=published.scaling_factor)
    return pipeline


def _fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model: from the cache if it is whole there, else downloaded."""
    from huggingface_hub import model_info
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name!r} is no name of a model on the hub; expected OWNER/NAME")
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError, HFValidationError, LocalEntryNotFoundError):
        pass  # not in the cache
    if is_offline_mode():
        raise ConnectionError(
            f"{name} is not in the cache and HF_HUB_OFFLINE is set; where there is a network: {command}"
        )
    try:  # this fails at once where a download would try again and again
        model_info(name, revision=revision, timeout=_SECONDS)
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"the hub has no revision {revision!r} of {name!r}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"the hub has no model {name!r}, or not for everybody") from error
    except Exception as error:  # the hub's client raises whatever its transport does
        raise ConnectionError(
            f"{name} is not in the cache and the hub cannot be reached ({type(error).__name__}); where there is a "
            f"network: {command}, then name the folder that it prints"
        ) from error
    return Path(DiffusionPipeline.download(name, revision=revision))


def _open(path: Path, name: str, **options: bool) -> DiffusionPipeline:
    showing, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # a bar for two files says nothing
    logging.set_verbosity_error()  # what weights are missing is an error here, and said in one line
    try:
        kind = json.loads((path / "model_index.json").read_text())["_class_name"]
        if kind in PIPELINES:
            pipeline = DiffusionPipeline.from_pretrained(path, **options)
            _require_weights(pipeline)
            return pipeline
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the pipeline in {name!r}: {error}; copy or train it again") from error
    finally:
        logging.set_verbosity(verbosity)
        if showing:
            logging.enable_progress_bar()
    raise ValueError(f"{name!r} holds a {kind}; accepted are {', '.join(PIPELINES)}")


def _require_weights(pipeline: DiffusionPipeline) -> None:
    """Refuse a pipeline of which diffusers found no weights for some layers, and left them without."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    lacking = [f"{name}.{p}" for name, part in parts.items() for p, weight in part.named_parameters() if weight.is_meta]
    if lacking:
        raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")


def save_pipeline(pipeline: DiffusionPipeline, path: str | Path, *, half: bool = False) -> None:
    """Write a pipeline as a directory that stock diffusers loads; safetensors, and all or nothing.

    Args:
        pipeline: it stays as it is.
        path: the directory.
        half: store weights in float16, at half the size. Stock diffusers loads them as float32 again.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    if half:
        for file in partial.rglob("*.safetensors"):
            _halve(file)
    for file in partial.rglob("*.json"):  # the path of the base tells about a machine, not about the model
        config = json.loads(file.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")
    path.mkdir(parents=True, exist_ok=True)
    # model_index.json, which marks a complete model, is moved last.
    for entry in sorted(partial.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = path / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    partial.rmdir()


def _halve(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{file.parent.name} has weights beyond the range of float16; store it in full")
    save_file(tensors, file, metadata={"format": "pt"})
