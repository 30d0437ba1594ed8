r"""Latent diffusion (Rombach et al. 2022): between images and what the U-Net is trained on.

A frozen autoencoder maps an image x to a latent z = s · E(x) and back, x ≈ D(z / s); `scaling_factor` s brings z to
about unit variance. A KL autoencoder encodes to the mean of its posterior, not to a draw from it; a VQ autoencoder
rounds to its code book when it decodes, which diffusers differentiates as if it were the identity.
"""

from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DModel, VQModel
from torch import Tensor

Autoencoder = AutoencoderKL | VQModel


def autoencoder_of(pipeline: DiffusionPipeline) -> Autoencoder | None:
    """Return the autoencoder of a latent-diffusion pipeline, or None where the U-Net works on pixels."""
    autoencoder = getattr(pipeline, "vqvae", None) or getattr(pipeline, "vae", None)
    if autoencoder is not None and (shift := autoencoder.config.get("shift_factor")):
        raise ValueError(f"the autoencoder has shift_factor = {shift}; expected one whose latents are only scaled")
    return autoencoder


def images_to_latents(autoencoder: Autoencoder | None, images: Tensor) -> Tensor:
    """Map images in [−1, 1], (B, C, R, R), to z = s · E(x), (B, c, R/f, R/f); without an autoencoder, to themselves."""
    if autoencoder is None:
        return images
    encoded = autoencoder.encode(images.to(autoencoder.device, autoencoder.dtype))
    latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return autoencoder.config.scaling_factor * latents


def latents_to_images(autoencoder: Autoencoder | None, latents: Tensor) -> Tensor:
    """Map latents (B, c, r, r) to images D(z / s), (B, C, R, R), not clamped; without an autoencoder, to themselves."""
    if autoencoder is None:
        return latents
    scaled = latents.to(autoencoder.device, autoencoder.dtype) / autoencoder.config.scaling_factor
    return autoencoder.decode(scaled).sample


def latent_shape(unet: UNet2DModel) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of what the U-Net denoises: of x_t, and of its noise."""
    side = unet.config.sample_size
    if side is None:
        raise ValueError("the U-Net's config has sample_size = None; expected the side of what it denoises")
    height, width = (side, side) if isinstance(side, int) else side
    return unet.config.in_channels, height, width


def image_shape(pipeline: DiffusionPipeline) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the images that the pipeline makes."""
    autoencoder, (channels, height, width) = autoencoder_of(pipeline), latent_shape(pipeline.unet)
    if autoencoder is None:
        return channels, height, width
    factor = downsampling(autoencoder)
    return autoencoder.config.out_channels, factor * height, factor * width


def downsampling(autoencoder: Autoencoder) -> int:
    """Return the side of an image over that of its latent."""
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)
