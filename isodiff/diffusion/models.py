"""Diffusion models: the published ones and all architectures as data; built, loaded and saved as diffusers pipelines.

Weights of published ones come from the hub; what runs on them is tested on the same layers with random weights.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, LDMPipeline, UNet2DModel, VQModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from isodiff.diffusion.latent import Autoencoder, downsampling
from isodiff.diffusion.process import NoiseSchedule
from isodiff.diffusion.training import seeded
from isodiff.files import data_directory


class PublishedModel(NamedTuple):
    """A model on the hub: its architecture, the shapes (C, H, W) of what it denoises and of its bottleneck."""

    architecture: str
    latent: tuple[int, int, int]
    h: tuple[int, int, int]
    revision: str | None = None  # the commit to load; None: the newest, not pinned


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
        *("ldm-256", (3, 64, 64), (896, 8, 8), "03978f22272a3c2502da709c3940e227c9714bdd"),
    ),
}
"""Models by their name on the hub. Pinned revisions are commits seen there; one without awaits whoever is online."""


def _unet(
    size: int, channels: int, widths: tuple[int, ...], attention: tuple[int, ...] = (), **options: object
) -> dict[str, Any]:
    """Return the settings of a U-Net with attention at some of its levels, and at the bottleneck."""
    kinds = ["Attn" if level in attention else "" for level in range(len(widths))]
    down, up = [f"{kind}DownBlock2D" for kind in kinds], [f"{kind}UpBlock2D" for kind in reversed(kinds)]
    sides = {"sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": widths}
    return {**sides, "down_block_types": tuple(down), "up_block_types": tuple(up), **options}


_small = partial(_unet, layers_per_block=1, norm_num_groups=8)
_large = partial(_unet, layers_per_block=2, norm_num_groups=32)
_ddpm = partial(  # the layers of Ho et al. 2020, as converted for diffusers
    _large, attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "faces32": _small(32, 3, (16, 48, 64, 96), attention_head_dim=24),
    "digits16": _small(16, 1, (24, 48, 48), attention_head_dim=16),
    "faces16": _small(16, 3, (16, 32, 32), attention_head_dim=16),
    "latent16": _small(16, 4, (32, 48, 64), attention_head_dim=16),
    "ddpm-32": _ddpm(32, 3, (128, 256, 256, 256), attention=(1,)),
    "ddpm-256": _ddpm(256, 3, (128, 128, 256, 256, 512, 512), attention=(4,)),
    "ldm-256": _large(64, 3, (224, 448, 672, 896), attention=(1, 2, 3), attention_head_dim=32),
}
"""`UNet2DModel` settings: the first four are trained here, `latent16` on latents; the others are published."""

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "ldm-256": {
        **{"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3},
        **{"block_out_channels": (128, 256, 512), "layers_per_block": 2, "sample_size": 256},
        **{"latent_channels": 3, "num_vq_embeddings": 8192, "scaling_factor": 1.0},
    }
}
"""`VQModel` settings of the published latent diffusion."""

PIPELINES = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "StableDiffusionPipeline")  # what is understood here


def build_unet(
    architecture: str, *, resolution: int | None = None, channels: int | None = None, seed: int = 0
) -> UNet2DModel:
    """Build a U-Net of a key of `ARCHITECTURES`, of its side and channels by default; `seed` draws the weights."""
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
    with seeded(seed, torch.device("cpu")):
        return UNet2DModel(**settings)


def build_pipeline(
    architecture: str,
    *,
    resolution: int | None = None,
    channels: int | None = None,
    autoencoder: Autoencoder | None = None,
    seed: int = 0,
) -> DDPMPipeline | LDMPipeline:
    """Build an untrained model with the linear schedule of Ho et al. 2020 (T = 1000, β from 10⁻⁴ to 0.02).

    An autoencoder makes it a latent-diffusion model; the published one comes with its own, untrained.
    """
    if autoencoder is None and architecture in AUTOENCODERS:
        with seeded(seed, torch.device("cpu")):
            autoencoder = VQModel(**AUTOENCODERS[architecture])
    if autoencoder is not None:
        resolution = resolution or autoencoder.config.sample_size // downsampling(autoencoder)
        channels = channels or autoencoder.config.latent_channels
    unet = build_unet(architecture, resolution=resolution, channels=channels, seed=seed)
    # Trailing spacing lets samplers start at t = T−1, at pure noise. Estimates of x₀ are clipped, as Ho et al. do:
    # near T they divide an error of ε_θ by √ᾱ_t, 0.006 at the end. Latents hardly exceed 4.
    if autoencoder is None:
        return DDPMPipeline(unet=unet, scheduler=DDPMScheduler(clip_sample=True, timestep_spacing="trailing"))
    scheduler = DDIMScheduler(clip_sample=True, clip_sample_range=4.0, timestep_spacing="trailing")
    return LDMPipeline(vqvae=autoencoder, unet=unet, scheduler=scheduler)


def load_pipeline(source: str | Path, *, scheduler: diffusers.SchedulerMixin | None = None) -> DiffusionPipeline:
    """Load a model from a directory, from what this project ships, or from the hub, in float32.

    `source` is a directory, a shipped name such as "faces32/base", a published one (`PUBLISHED`) or "hub:OWNER/NAME";
    the latter two may end in @REVISION, a commit, tag or branch. A directory is a pipeline of diffusers, or holds a
    U-Net alone: one saved by itself, or a training checkpoint with a folder `unet`. Such a U-Net gets the `scheduler`
    given, the one stored beside it, or DDPM's default, as a warning tells. Pickles are read restricted to tensors.
    """
    path = local_model(source)
    if path is None:
        name, _, pinned = str(source).removeprefix("hub:").partition("@")
        published = PUBLISHED.get(name)
        if published is None and not str(source).startswith("hub:"):
            shipped = data_directory() / "checkpoints"
            names = sorted(str(p.parent.relative_to(shipped)) for p in shipped.glob("*/*/model_index.json"))
            known = f"one shipped here ({', '.join(names)}), one published ({', '.join(PUBLISHED)}), or hub:OWNER/NAME"
            needed = f"a directory with model_index.json or a U-Net, {known}"
            raise FileNotFoundError(f"no diffusers model at {str(source)!r}: expected {needed}")
        path = _fetch(name, pinned or (published.revision if published else None))
    try:
        with _quiet():
            whole = (path / "model_index.json").is_file()
            pipeline = _open_pipeline(path) if whole else _open_unet(path, scheduler)
        if scheduler is not None:
            pipeline.scheduler = scheduler
        NoiseSchedule.of(pipeline.scheduler)
        channels, made = pipeline.unet.config.in_channels, pipeline.unet.config.out_channels
        if made not in (channels, 2 * channels):
            raise ValueError(f"its U-Net makes {made} channels of {channels}; expected {channels} or {2 * channels}")
    except Exception as error:  # diffusers, safetensors and json each raise their own
        raise ValueError(f"cannot load the model in {str(source)!r}: {error}") from error
    return pipeline


def local_model(source: str | Path) -> Path | None:
    """Return the directory of a model that is on this machine, given its path or its shipped name; None if none is."""
    for path in (Path(source).expanduser(), data_directory() / "checkpoints" / source):
        if path.is_file():
            convert = f"diffusers.StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained(FOLDER)"
            raise ValueError(f"{path} is one file; expected a directory, which this writes: {convert}")
        if path.is_dir():
            return path
    return None


def model_name(source: str | Path) -> str:
    """Return one name for a model however it is spelled: its shipped one, its absolute path, or that on the hub."""
    if (path := local_model(source)) is None:
        return str(source).removeprefix("hub:")
    path, shipped = path.resolve(), (data_directory() / "checkpoints").resolve()
    return path.relative_to(shipped).as_posix() if path.is_relative_to(shipped) else str(path)


def _fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model: from the cache if it is whole there, else downloaded."""
    from huggingface_hub import errors, model_info

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(f"{name!r} is no name of a model on the hub; expected OWNER/NAME")
    with suppress(OSError, ValueError):  # not in the cache
        return Path(DiffusionPipeline.download(name, revision=revision, local_files_only=True))
    try:  # this fails at once where a download would try again and again
        model_info(name, revision=revision, timeout=10.0)
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"the hub has no model {name}@{revision or 'main'}, or not for everybody") from error
    except Exception as error:  # the hub's client raises whatever its transport does
        problem = f"{name} is not in the cache and the hub cannot be reached ({type(error).__name__})"
        command = f"hf download {name} --revision {revision or 'main'}"
        raise ConnectionError(f"{problem}; where there is a network: {command}, then name its folder") from error
    return Path(DiffusionPipeline.download(name, revision=revision))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers from showing a bar for two files, and from telling at length what is an error of one line here."""
    showing, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(50)  # critical
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if showing:
            logging.enable_progress_bar()


def _open_pipeline(path: Path) -> DiffusionPipeline:
    kind = json.loads((path / "model_index.json").read_text())["_class_name"]
    if kind not in PIPELINES:
        raise ValueError(f"it holds a {kind}; accepted are {', '.join(PIPELINES)}")
    pipeline = DiffusionPipeline.from_pretrained(path, variant=_variant(path / "unet"), local_files_only=True)
    parts = {key: part for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    lacking = [f"{key}.{name}" for key, part in parts.items() for name, w in part.named_parameters() if w.is_meta]
    if lacking:  # diffusers found no weights for some layers, and left them without
        raise ValueError(f"its files lack {len(lacking)} weights, such as {lacking[0]}")
    # Models older than the factor were trained on unscaled latents, but diffusers fills in that of Stable Diffusion, so
    # that samples of CompVis/ldm-celebahq-256 come out washed out (huggingface/diffusers, discussion 6725).
    vqvae = getattr(pipeline, "vqvae", None)
    if isinstance(vqvae, VQModel) and "scaling_factor" not in json.loads((path / "vqvae/config.json").read_text()):
        vqvae.register_to_config(scaling_factor=1.0)
    return pipeline.to(torch.float32)


def _open_unet(path: Path, scheduler: diffusers.SchedulerMixin | None) -> DDPMPipeline:
    """Open a U-Net saved by itself, or the one of a training checkpoint, with a scheduler."""
    folder = next((place for place in (path, path / "unet") if (place / "config.json").is_file()), None)
    if folder is None:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        build = "unet.load_state_dict(torch.load(FILE, weights_only=True)); unet.save_pretrained(FOLDER)"
        needed = "model_index.json, a folder unet, or config.json with weights"
        raise ValueError(f"it holds {found}; expected {needed}; of weights alone build the trained U-Net, then {build}")
    kind = json.loads((folder / "config.json").read_text()).get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"it holds a {kind} alone; accepted are a UNet2DModel, and pipelines {', '.join(PIPELINES)}")
    unet = UNet2DModel.from_pretrained(folder, variant=_variant(folder), local_files_only=True).to(torch.float32)
    if (path / "unet_ema").is_dir() and folder != path:
        warnings.warn(f"{path}: opening unet; its moving average is opened by {path / 'unet_ema'}", stacklevel=3)
    if scheduler is not None:
        return DDPMPipeline(unet=unet, scheduler=scheduler)
    places = [place / "scheduler" / "scheduler_config.json" for place in (path, *path.resolve().parents[:2])]
    if (stored := next(filter(Path.is_file, places), None)) is not None:
        scheduler = getattr(diffusers, json.loads(stored.read_text())["_class_name"]).from_pretrained(stored.parent)
        return DDPMPipeline(unet=unet, scheduler=scheduler)
    told = f"{path} stores no scheduler; taking DDPM's default, 1000 steps with beta from 1e-4 to 0.02, linear"
    warnings.warn(told, stacklevel=3)
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


def _variant(folder: Path) -> str | None:
    """Return the suffix that all weight files of a folder carry, such as fp16; None where some carry none."""
    name = r"diffusion_pytorch_model(-\d+-of-\d+)?(?:\.(\w+))?(-\d+-of-\d+)?\.(safetensors|bin)"
    found = {match[2] for file in folder.glob("*") if (match := re.fullmatch(name, file.name))}
    if not found:
        raise ValueError(f"its {folder.name} has no weights diffusion_pytorch_model.safetensors or .bin")
    for file in folder.glob("diffusion_pytorch_model*"):
        with file.open("rb") as opened:
            if opened.read(24) == b"version https://git-lfs.":
                raise ValueError(f"{file.name} is a pointer of Git LFS, not the weights; git lfs pull gets them")
    if len(found) > 1 and None not in found:
        raise ValueError(f"it holds the variants {', '.join(sorted(found))}; keep the files of one")
    return None if None in found else found.pop()


def save_pipeline(pipeline: DiffusionPipeline, path: str | Path, *, half: bool = False) -> None:
    """Write a pipeline as a directory that stock diffusers loads, all or nothing; in float16 if `half`."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for file in partial.rglob("*.safetensors") if half else ():
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{file.parent.name} has weights beyond the range of float16; store it in full")
        save_file(tensors, file, metadata={"format": "pt"})
    for file in partial.rglob("*.json"):  # the path of the base tells about a machine, not about the model
        config = json.loads(file.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n")
    path.mkdir(parents=True, exist_ok=True)
    # model_index.json, which marks a complete model, is moved last.
    for entry in sorted(partial.iterdir(), key=lambda p: p.name == "model_index.json"):
        if (target := path / entry.name).is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    partial.rmdir()
