"""What a data point is, however the images are stored, and scikit-learn's digits.

A photograph becomes one by its EXIF orientation, in RGB or grey, the largest central part of the shape (C, H, W),
antialiased Lanczos resize, bytes u in 0...255, x = u / 127.5 - 1. One that does not decode completely is left out.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

MEMORY_LIMIT = 4 * 2**30  # bytes that decoded pixels may take; above it, each image is decoded at every access
Shape = tuple[int, int, int]  # (C, H, W) of an image
Read = Callable[[int], Image.Image]  # opens the image at a position


@dataclass(frozen=True)
class DecodedOnDemand:
    """Byte images that are too large to hold: each access decodes one."""

    read: Read
    positions: Sequence[int]
    shape: Shape

    def __getitem__(self, index: int) -> Tensor:
        with self.read(self.positions[index]) as image:
            return fit(image, self.shape)


class ImageDataset(Dataset[Tensor]):
    """N byte images (C, H, W), held or decoded on demand, as float32 in [-1, 1]; labels are often in their names."""

    def __init__(self, pixels: Tensor | DecodedOnDemand, names: Sequence[str], *, horizontal_flip: bool) -> None:
        self.pixels, self.names, self.horizontal_flip = pixels, tuple(names), horizontal_flip
        self.channels, self.resolution = pixels[0].shape[:2]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].float() / 127.5 - 1

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        return [self[index] for index in indices]


def fit(image: Image.Image, shape: Shape | None) -> Tensor:
    """Turn any PIL image into uint8 of a shape, by default its own size in colour: upright, over white, Lanczos."""
    if shape is not None:
        side = 4 * max(shape[1:])
        image.draft("RGB", (side, side))  # a JPEG: several times faster, off by about one grey level
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = Image.fromarray(_bytes_of(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    channels, height, width = shape or (3, image.height, image.width)
    image = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = np.array(image if channels == 3 else image.convert("L"))
    return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1).contiguous()


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """Scale greys of 16 or 32 bits to bytes by their range, where Pillow would clip them at 255."""
    low, high = values.min(), values.max()
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if values.dtype.kind == "i" and low >= 0 and high < 2**16:
        return (values if high < 2**8 else values >> 8).astype(np.uint8)
    if values.dtype.kind == "f" and low >= 0 and high < 2**8:  # also false of NaN
        return np.round(values * 255 if high <= 1 else values).astype(np.uint8)
    greys = f"its greys are {values.dtype} from {low:g} to {high:g}"
    raise ValueError(f"{greys}; accepted are integers 0 to 65535, or floats 0 to 1 or to 255")


def open_digits(shape: Shape) -> ImageDataset:
    """Open scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8: ink is 1, paper -1, names tell the digit."""
    resolution = shape[1]
    if shape != (1, resolution, resolution):
        raise ValueError(f"digits are grey squares (1, R, R); got the shape {shape}")
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
        wrong = f"{source} holds {found:,} images where {expected:,} are expected: another selection, or incomplete"
        raise ValueError(f"{wrong}; given by itself, {source} opens whatever it holds")


def fits_memory(count: int, shape: Shape) -> bool:
    """Return whether the decoded pixels may be held."""
    return math.prod(shape) * count <= MEMORY_LIMIT


def gather(
    source: str, names: Sequence[str], read: Read, shape: Shape, order: Iterable[int], *, left_out: str = ""
) -> ImageDataset:
    """Decode every image once, in the given order, keeping the bytes if they fit; warn of those that do not decode."""
    if not names:
        accepted = "; ".join(["accepted are JPEG, PNG, WebP and what else Pillow opens", *filter(None, [left_out])])
        raise ValueError(f"no images in {source}; {accepted}")
    fits = fits_memory(len(names), shape)
    pixels = torch.empty(len(names) if fits else 0, *shape, dtype=torch.uint8)
    broken = {}
    for position in order:
        try:
            with read(position) as image:
                decoded = fit(image, shape)
            if fits:
                pixels[position] = decoded
        except Exception as error:  # whatever a decoder raises
            unknown = isinstance(error, UnidentifiedImageError)
            broken[position] = "not an image" if unknown else str(error) or type(error).__name__
    good = [position for position in range(len(names)) if position not in broken]
    shown = "; ".join(f"{names[position]} ({broken[position]})" for position in sorted(broken)[:3])
    if not good:
        raise ValueError(f"none of the {len(names)} images in {source} can be read: {shown}")
    if broken or left_out:
        told = [f"{len(broken)} that cannot be read: {shown}" if broken else "", left_out]
        warnings.warn(f"{source}: {len(good):,} images; left out: {'; '.join(filter(None, told))}", stacklevel=4)
    pixels = (pixels[good] if broken else pixels) if fits else DecodedOnDemand(read, good, shape)
    return ImageDataset(pixels, [names[position] for position in good], horizontal_flip=True)


def check_images(images: Tensor, rows: int, *, name: str = "generate") -> Tensor:
    """Return images in float32 if they are what a metric can measure: (rows, 1 or 3, H, W), finite, in [−1, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = getattr(images, "dtype", type(images).__name__)
        raise TypeError(f"{name} must give a floating-point tensor of images; got {got}")
    if images.ndim != 4 or len(images) != rows or images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must give images ({rows}, 1 or 3, H, W); got shape {tuple(images.shape)}")
    images = images.detach().float()
    if bad := int((~images.isfinite()).sum()):
        raise ValueError(f"{name} must give finite images; got {bad} NaN or infinite values")
    if images.abs().max() > 1 + 1e-3:  # further than rounding explains
        got = f"{images.min():.4g} to {images.max():.4g}"
        raise ValueError(f"{name} must give images in [−1, 1]; got values from {got}; clamp or rescale them")
    return images
