"""Diffusion models in and out: ordinary diffusers pipelines, safetensors only.

A model of ours is a directory that `diffusers.DDPMPipeline.from_pretrained` opens without this package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.utils import logging

from isodiff.paths import data_directory

_DOWN, _UP = "DownBlock2D", "UpBlock2D"

ARCHITECTURES: dict[str, dict] = {
    "faces32": {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 48, 64, 96),
        "down_block_types": (_DOWN,) * 4,
        "up_block_types": (_UP,) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 24,
    },
    "digits16": {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (24, 48, 48),
        "down_block_types": (_DOWN,) * 3,
        "up_block_types": (_UP,) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 16,
    },
}
"""`UNet2DModel` settings of the models this project trains itself; both keep attention at the bottleneck only."""


def build_unet(
    architecture: str, *, resolution: int | None = None, channels: int | None = None, seed: int = 0
) -> UNet2DModel:
    """Build a randomly initialised U-Net of a named architecture.

    Args:
        architecture: a key of `ARCHITECTURES`.
        resolution: side of its images in pixels, a multiple of 8 (faces32) or 4 (digits16); the architecture's own by
            default.
        channels: of its images; the architecture's own by default.
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
    architecture: str, *, resolution: int | None = None, channels: int | None = None, seed: int = 0
) -> DDPMPipeline:
    """Build an untrained DDPM with the linear schedule of Ho et al. 2020 (T = 1000, β from 10⁻⁴ to 0.02)."""
    unet = build_unet(architecture, resolution=resolution, channels=channels, seed=seed)
    # Trailing spacing lets every sampler start at t = T−1, where x_t is pure noise. Estimates of x₀ are clipped, as Ho
    # et al. do: at t near T they divide a small error of ε_θ by √ᾱ_t, 0.006 at the end.
    scheduler = DDPMScheduler(clip_sample=True, timestep_spacing="trailing")
    return DDPMPipeline(unet=unet, scheduler=scheduler)


def load_pipeline(source: str | Path) -> DDPMPipeline:
    """Load a DDPM from a directory, or one of the models shipped with the project.

    Args:
        source: a directory that holds `model_index.json`, or a shipped name such as `"faces32/base"`.

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped models.
        ValueError: the directory holds no readable pipeline, for example because a file was cut short.
    """
    shipped = data_directory() / "checkpoints"
    path = next((p for p in (Path(source), shipped / source) if (p / "model_index.json").is_file()), None)
    if path is None:
        names = sorted(str(p.parent.relative_to(shipped)) for p in shipped.glob("*/*/model_index.json"))
        raise FileNotFoundError(
            f"no diffusers pipeline at {str(source)!r}: expected a directory with model_index.json, "
            f"or one of {', '.join(names)}"
        )
    showing = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for two files says nothing
    try:
        return DDPMPipeline.from_pretrained(path, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the pipeline in {path.name!r}: {error}; copy or train it again") from error
    finally:
        if showing:
            logging.enable_progress_bar()


def save_pipeline(pipeline: DDPMPipeline, path: str | Path) -> None:
    """Write a pipeline as a directory that stock diffusers loads; safetensors, and all or nothing."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for file in partial.rglob("*.json"):  # the path of the base tells about a machine, not about the model
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")
    path.mkdir(parents=True, exist_ok=True)
    # model_index.json, which marks a complete model, is moved last.
    for entry in sorted(partial.iterdir(), key=lambda p: p.name == "model_index.json"):
        target = path / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    partial.rmdir()
