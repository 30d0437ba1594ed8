"""Diffusion models: the published ones and all architectures as data; built, loaded and saved as diffusers pipelines.

A model of ours is a directory that `diffusers.DiffusionPipeline.from_pretrained` opens without this package. Weights of
published ones come from the Hugging Face hub; what runs on them is tested on the same layers with random weights.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from diffusers.utils import logging

from isodiff.files import data_directory

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class PublishedModel(NamedTuple):
    """A model on the hub: its architecture, the shapes (C, H, W) of what it denoises and of its bottleneck."""

    architecture: str
    latent: tuple[int, int, int]
    h: tuple[int, int, int]
    revision: str | None = None  # the commit to load; None: the newest, not pinned
    scaling_factor: float | None = None  # replaces that of the autoencoder's configuration


_PIXELS_256 = ("ddpm-256", (3, 256, 256), (512, 8, 8))

PUBLISHED: dict[str, PublishedModel] = {
    "google/ddpm-cifar10-32": PublishedModel(  # this and the next three: Tab. 1, Hahm et al. 2024
        "ddpm-32", (3, 32, 32), (256, 4, 4), "267b167dc01f0e4e61923ea244e8b988f84deb80"
    ),
    "google/ddpm-celebahq-256": PublishedModel(*_PIXELS_256),
    "google/ddpm-church-256": PublishedModel(*_PIXELS_256),
    "google/ddpm-bedroom-256": PublishedModel(*_PIXELS_256, "d6ccd889ac8a4c072ae35e63fed664718cdaa060"),
    "google/ddpm-ema-celebahq-256": PublishedModel(*_PIXELS_256),
    "google/ddpm-ema-church-256": PublishedModel(*_PIXELS_256),
    "google/ddpm-ema-bedroom-256": PublishedModel(*_PIXELS_256, "95b78f0a84119732446c4eddbcbfc28d3744f1fc"),
    "CompVis/ldm-celebahq-256": PublishedModel(  # Tab. I
        # Its configuration does not name the factor, so that diffusers fills in that of Stable Diffusion, and samples
        # come out washed out (huggingface/diffusers, discussion 6725). The model was trained on unscaled latents.
        *("ldm-256", (3, 64, 64), (896, 8, 8), "03978f22272a3c2502da709c3940e227c9714bdd"),
        scaling_factor=1.0,
    ),
}
"""Models by their name on the hub. Pinned revisions are commits seen there; one without awaits whoever is online."""


def _unet(
    size: int, channels: int, widths: tuple[int, ...], attention: tuple[int, ...] = (), **options: object
) -> dict[str, Any]:
    """Return the settings of a U-Net with attention at some of its levels, and at the bottleneck."""
    kinds = ["Attn" if level in attention else "" for level in range(len(widths))]
    return {
        **{"sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": widths},
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        **options,
    }


_SMALL = {"layers_per_block": 1, "norm_num_groups": 8}
_LARGE = {"layers_per_block": 2, "norm_num_groups": 32}
_DDPM = {  # the layers of Ho et al. 2020, as converted for diffusers
    **_LARGE,
    **{
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    },
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "faces32": _unet(32, 3, (16, 48, 64, 96), **_SMALL, attention_head_dim=24),
    "digits16": _unet(16, 1, (24, 48, 48), **_SMALL, attention_head_dim=16),
    "faces16": _unet(16, 3, (16, 32, 32), **_SMALL, attention_head_dim=16),
    "latent16": _unet(16, 4, (32, 48, 64), **_SMALL, attention_head_dim=16),
    "ddpm-32": _unet(32, 3, (128, 256, 256, 256), attention=(1,), **_DDPM),
    "ddpm-256": _unet(256, 3, (128, 128, 256, 256, 512, 512), attention=(4,), **_DDPM),
    "ldm-256": _unet(64, 3, (224, 448, 672, 896), attention=(1, 2, 3), **_LARGE, attention_head_dim=32),
}
"""`UNet2DModel` settings: the first four are trained here, `latent16` on latents; the others are published."""

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "ldm-256": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (128, 256, 512),
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 8192,
        "sample_size": 256,
        "scaling_factor": 1.0,
    }
}
"""`VQModel` settings of the published latent diffusion."""

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "StableDiffusionPipeline")  # what is understood here


def build_unet(
    architecture: str, *, resolution: int | None = None, channels: int | None = None, seed: int = 0
) -> UNet2DModel:
    """Build a U-Net of a key of `ARCHITECTURES`, its weights drawn from `seed`.

    Side and channels of what it denoises are the architecture's own by default; the side is a multiple of 2 to the
    number of downsamplings.
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
    return _seeded(UNet2DModel, settings, seed)


def build_pipeline(
    architecture: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    autoencoder: AutoencoderKL | VQModel | None = None,
    seed: int = 0,
) -> DDPMPipeline | LDMPipeline:
    """Build an untrained model with the linear schedule of Ho et al. 2020 (T = 1000, β from 10⁻⁴ to 0.02).

    An autoencoder makes it a latent-diffusion model, whose side and channels are the latents' by default; the published
    one comes with its own, untrained. Otherwise as `build_unet`.
    """
    if autoencoder is None and architecture in AUTOENCODERS:
        autoencoder = _seeded(VQModel, AUTOENCODERS[architecture], seed)
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


def _seeded(kind: type, settings: dict[str, Any], seed: int) -> UNet2DModel | VQModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**settings)


def load_pipeline(source: str | Path) -> DiffusionPipeline:
    """Load a model from a directory, from what this project ships, or from the hub, in float32.

    `source` is a directory that holds `model_index.json`; a shipped name such as "faces32/base"; a published name such
    as "google/ddpm-celebahq-256" (see `PUBLISHED`); or "hub:OWNER/NAME". The latter two may end in @REVISION, a commit,
    tag or branch; a published model has one by default. Weights are read from safetensors; where a published model has
    nothing but pickles, torch reads them restricted to tensors. A name that nothing has is a FileNotFoundError, a hub
    out of reach a ConnectionError that tells how to fetch the model elsewhere.
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
    revision = pinned or (published.revision if published else None)
    pipeline = _open(_fetch(name, revision), name, local_files_only=True)
    if published is not None and published.scaling_factor is not None:
        pipeline.vqvae.register_to_config(scaling_factor=published.scaling_factor)
    return pipeline


def _fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model: from the cache if it is whole there, else downloaded."""
    from huggingface_hub import errors, model_info
    from huggingface_hub.constants import is_offline_mode

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name!r} is no name of a model on the hub; expected OWNER/NAME")
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        pass  # not in the cache
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    if is_offline_mode():
        raise ConnectionError(
            f"{name} is not in the cache and HF_HUB_OFFLINE is set; where there is a network: {command}"
        )
    try:  # this fails at once where a download would try again and again
        model_info(name, revision=revision, timeout=10.0)
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"the hub has no revision {revision!r} of {name!r}") from error
    except errors.RepositoryNotFoundError as error:
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
            parts = {key: part for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
            lacking = [f"{key}.{p}" for key, part in parts.items() for p, w in part.named_parameters() if w.is_meta]
            if lacking:  # diffusers found no weights for some layers, and left them without
                raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")
            return pipeline
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the pipeline in {name!r}: {error}; copy or train it again") from error
    finally:
        logging.set_verbosity(verbosity)
        if showing:
            logging.enable_progress_bar()
    raise ValueError(f"{name!r} holds a {kind}; accepted are {', '.join(PIPELINES)}")


def save_pipeline(pipeline: DiffusionPipeline, path: str | Path, *, half: bool = False) -> None:
    """Write a pipeline as a directory that stock diffusers loads; safetensors, and all or nothing.

    `half` stores the weights in float16, at half the size; stock diffusers loads them as float32 again.
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
