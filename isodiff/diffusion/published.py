"""The published models that the papers start from, and the architectures of everything that is built here.

Weights of the published models come from the Hugging Face hub. Their architectures are here as data, so that what will
run on them is tested on models of the same layers with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isodiff.geometry.sphere import expected_radius


@dataclass(frozen=True)
class PublishedModel:
    """A model on the hub.

    Attributes:
        dataset: what it was trained on, a name of `isodiff.datasets.open_dataset`.
        resolution: side of its images in pixels.
        latent: shape (C, H, W) of what it denoises.
        h: shape (C', H', W') of its bottleneck.
        architecture: key of `ARCHITECTURES`.
        revision: commit to load; None takes the newest, which is then not pinned: add `@REVISION` to the name.
        scaling_factor: what replaces that of the autoencoder's configuration, or None to keep it.
        used_by: table of *Isometric Diffusion* with its numbers, if any.
    """

    dataset: str
    resolution: int
    latent: tuple[int, int, int]
    h: tuple[int, int, int]
    architecture: str
    revision: str | None = None
    scaling_factor: float | None = None
    used_by: str = ""

    @property
    def radius(self) -> float:
        """E‖x_T‖ for x_T ~ N(0, I), the radius of the sphere that its noise lives on."""
        channels, height, width = self.latent
        return expected_radius(channels * height * width)


def _ddpm_256(dataset: str, revision: str | None = None, used_by: str = "") -> PublishedModel:
    return PublishedModel(dataset, 256, (3, 256, 256), (512, 8, 8), "ddpm-256", revision, used_by=used_by)


PUBLISHED: dict[str, PublishedModel] = {
    "google/ddpm-cifar10-32": PublishedModel(
        "cifar10",
        32,
        (3, 32, 32),
        (256, 4, 4),
        "ddpm-32",
        "267b167dc01f0e4e61923ea244e8b988f84deb80",
        used_by="Tab. 1",
    ),
    "google/ddpm-celebahq-256": _ddpm_256("celebahq", used_by="Tab. 1–3"),
    "google/ddpm-church-256": _ddpm_256("lsun-church", used_by="Tab. 1"),
    "google/ddpm-bedroom-256": _ddpm_256("lsun-bedroom", "d6ccd889ac8a4c072ae35e63fed664718cdaa060", "Tab. 1"),
    "google/ddpm-ema-celebahq-256": _ddpm_256("celebahq"),
    "google/ddpm-ema-church-256": _ddpm_256("lsun-church"),
    "google/ddpm-ema-bedroom-256": _ddpm_256("lsun-bedroom", "95b78f0a84119732446c4eddbcbfc28d3744f1fc"),
    "CompVis/ldm-celebahq-256": PublishedModel(
        "celebahq",
        256,
        (3, 64, 64),
        (896, 8, 8),
        "ldm-256",
        "03978f22272a3c2502da709c3940e227c9714bdd",
        # Its configuration does not name the factor, so that diffusers fills in that of Stable Diffusion, and samples
        # come out washed out (huggingface/diffusers, discussion 6725). The model was trained on unscaled latents.
        scaling_factor=1.0,
        used_by="Tab. I",
    ),
}
"""Models by their name on the hub. Pinned revisions are commits seen there; one without awaits whoever is online."""


def _ddpm(*, channels: tuple[int, ...], attention: int, size: int) -> dict[str, Any]:
    """Return the layers of Ho et al. 2020, with attention at one level, as converted for diffusers."""
    depth = len(channels)
    return {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": channels,
        "down_block_types": tuple("AttnDownBlock2D" if i == attention else "DownBlock2D" for i in range(depth)),
        "up_block_types": tuple("AttnUpBlock2D" if i == depth - 1 - attention else "UpBlock2D" for i in range(depth)),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }


def _small(*, channels: tuple[int, ...], size: int, image_channels: int, head: int) -> dict[str, Any]:
    """Return a U-Net with attention at the bottleneck only."""
    return {
        "sample_size": size,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "block_out_channels": channels,
        "down_block_types": ("DownBlock2D",) * len(channels),
        "up_block_types": ("UpBlock2D",) * len(channels),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": head,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "faces32": _small(channels=(16, 48, 64, 96), size=32, image_channels=3, head=24),
    "digits16": _small(channels=(24, 48, 48), size=16, image_channels=1, head=16),
    "faces16": _small(channels=(16, 32, 32), size=16, image_channels=3, head=16),
    "latent16": _small(channels=(32, 48, 64), size=16, image_channels=4, head=16),
    "ddpm-32": _ddpm(channels=(128, 256, 256, 256), attention=1, size=32),
    "ddpm-256": _ddpm(channels=(128, 128, 256, 256, 512, 512), attention=4, size=256),
    "ldm-256": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (224, 448, 672, 896),
        "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "attention_head_dim": 32,
    },
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
