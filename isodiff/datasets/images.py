"""What a data point is, however the images are stored, and scikit-learn's digits.

A photograph becomes one in one way: EXIF orientation applied, RGB, largest central square, antialiased Lanczos resize
to R x R, bytes u in 0...255, and x = u / 127.5 - 1. One that does not decode completely is skipped and reported.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

MEMORY_LIMIT = 4 * 2**30  # bytes that decoded pixels may take; above it, each image is decoded at every access
UNREADABLE = (OSError, EOFError, zlib.error, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class DecodedOnDemand:
    """Byte images that are too large to hold: each access reads and decodes one."""

    read: Callable[[int], Image.Image]
    positions: Sequence[int]
    resolution: int

    def __getitem__(self, index: int) -> Tensor:
        with self.read(self.positions[index]) as image:
            return square(image, self.resolution)


class ImageDataset(Dataset[Tensor]):
    """N byte images (C, R, R), held or decoded on demand, as float32 in [-1, 1]; labels are often in their names."""

    def __init__(self, pixels: Tensor | DecodedOnDemand, names: Sequence[str], *, horizontal_flip: bool) -> None:
        self.pixels, self.names, self.horizontal_flip = pixels, tuple(names), horizontal_flip
        self.channels, self.resolution = pixels[0].shape[:2]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].float() / 127.5 - 1

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return [self[index] for index in indices]


def square(image: Image.Image, resolution: int) -> Tensor:
    """Turn any PIL image into uint8 (3, R, R): upright, RGB, over white where transparent, central square, Lanczos.

    A JPEG is decoded at a reduced size of at least 4 R: several times faster, and off by about one grey level.
    """
    image.draft("RGB", (4 * resolution, 4 * resolution))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert() would clip 16-bit greys at 255 instead of rescaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def open_digits(resolution: int = 16) -> ImageDataset:
    """Open scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8: ink is 1, paper -1, names tell the digit."""
    if not 8 <= resolution <= 64:  # below, strokes are lost; above, there is only blur
        raise ValueError(f"digits are 8 x 8 scans and open at 8 to 64 pixels (16 is usual), got {resolution}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = torch.from_numpy(digits.images).float()[:, None] / 16
    ink = torch.nn.functional.interpolate(ink, size=resolution, mode="bicubic").clamp(0, 1)
    names = [f"{i:04d}_digit{label}" for i, label in enumerate(digits.target)]
    return ImageDataset((ink * 255).round().to(torch.uint8), names, horizontal_flip=False)


def check_count(source: str, found: int, expected: int | None) -> None:
    """Refuse a source that does not hold the number of images expected of it, where one is."""
    if expected is not None and found != expected:
        raise ValueError(
            f"{source} holds {found:,} images where {expected:,} are expected: another selection, or an incomplete "
            f"copy; given by itself, {source} opens whatever it holds"
        )


def fits_memory(count: int, resolution: int) -> bool:
    """Return whether the decoded pixels may be held."""
    return 3 * resolution**2 * count <= MEMORY_LIMIT


def gather(
    source: str, names: Sequence[str], read: Callable[[int], Image.Image], resolution: int, order: Iterable[int]
) -> ImageDataset:
    """Decode every image once, in the given order, keeping the bytes if they fit; report those that do not decode."""
    if not names:
        raise ValueError(f"no images in {source}; accepted are JPEG, PNG, WebP and what else Pillow opens")
    fits = fits_memory(len(names), resolution)
    pixels = torch.empty(len(names) if fits else 0, 3, resolution, resolution, dtype=torch.uint8)
    broken = {}
    for position in order:
        try:
            with read(position) as image:
                decoded = square(image, resolution)
        except UNREADABLE as error:
            broken[position] = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            continue
        if fits:
            pixels[position] = decoded
    good = [position for position in range(len(names)) if position not in broken]
    shown = "; ".join(f"{names[position]} ({broken[position]})" for position in sorted(broken)[:3])
    if not good:
        raise ValueError(f"none of the {len(names)} images in {source} can be read: {shown}")
    if broken:
        warnings.warn(f"skipped {len(broken)} of {len(names)} images in {source}: {shown}", stacklevel=4)
        pixels = pixels[good] if fits else pixels
    pixels = pixels if fits else DecodedOnDemand(read, good, resolution)
    return ImageDataset(pixels, [names[position] for position in good], horizontal_flip=True)


def check_images(images: Tensor, rows: int, *, name: str = "generate") -> Tensor:
    """Return images in float32 if they are what a metric can measure: (rows, 1 or 3, H, W), finite, in [−1, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name} must give a floating-point tensor of images; got {got}")
    if images.ndim != 4 or len(images) != rows or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must give images ({rows}, 1 or 3, H, W); got shape {tuple(images.shape)}")
    images = images.detach().float()
    if bad := int((~images.isfinite()).sum()):
        raise ValueError(f"{name} must give finite images; got {bad} NaN or infinite values")
    if images.abs().max() > 1 + 1e-3:  # further than rounding explains
        raise ValueError(
            f"{name} must give images in [−1, 1]; got values from {images.min():.4g} to {images.max():.4g}; "
            "clamp them, or rescale from [0, 1] or [0, 255]"
        )
    return images
