r"""Real images: what a data point is, however the images are stored, and scikit-learn's digits.

A photograph becomes a data point in one fixed way: EXIF orientation applied, RGB, largest central square,
antialiased Lanczos resize to R x R, bytes u in 0...255, and x = u / 127.5 - 1 in [-1, 1]. Files come in the
order of their sorted names, so that an index means the same image on every machine. An image that does not
decode completely is skipped, counted and reported, never replaced.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

MEMORY_LIMIT = 4 * 2**30
UNREADABLE = (
    OSError,
    EOFError,
    zlib.error,
    SyntaxError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class DecodedOnDemand:
    """Pixels that are too large to hold: each access reads and decodes one image."""

    read: Callable[[int], Image.Image]
    positions: Sequence[int]
    resolution: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        """Decode image ``index`` to uint8 (3, R, R)."""
        with self.read(self.positions[index]) as image:
            return square(image, self.resolution)


class ImageDataset(Dataset[Tensor]):
    """Serve byte images as float32 tensors in [-1, 1].

    Args:
        pixels: N images in bytes, uint8 (N, C, R, R), or their decoder.
        names: N names, one for each image; labels are often written in them.
        horizontal_flip: Whether training may mirror the images.
        skipped: Names of the images that could not be read and are not part of the data set.
    """

    def __init__(
        self,
        pixels: Tensor | DecodedOnDemand,
        names: Sequence[str],
        *,
        horizontal_flip: bool,
        skipped: Sequence[str] = (),
    ) -> None:
        self.pixels = pixels
        self.names = tuple(names)
        self.skipped = tuple(skipped)
        self.horizontal_flip = horizontal_flip
        self.channels, self.resolution = pixels[0].shape[:2]

    def __len__(self) -> int:
        """Return the number of readable images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Return image ``index`` as float32 (C, R, R) in [-1, 1]."""
        return self.pixels[index].float() / 127.5 - 1

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Return several images at once, in the order asked for."""
        if isinstance(self.pixels, Tensor):
            return list(self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1)
        return [self[index] for index in indices]


def square(image: Image.Image, resolution: int) -> Tensor:
    """Turn any PIL image into uint8 (3, R, R): upright, RGB, central square, Lanczos.

    Note:
        Transparency is composed over white. A JPEG is decoded at a reduced size while that is at least 4 R,
        which makes large photographs several times faster and changes a pixel by about one grey level.
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
    """Open scikit-learn's 1,797 handwritten digits, bicubically enlarged from 8 x 8, one channel.

    Args:
        resolution: Side of the images in pixels, 8 to 64; the course uses 16.

    Returns:
        Images with ink at 1 and paper at -1, named ``<position>_digit<label>``.

    Raises:
        ValueError: If the resolution is outside 8 to 64: below, strokes are lost; above, there is only blur.
    """
    if not 8 <= resolution <= 64:
        raise ValueError(f"digits are 8 x 8 scans and open at 8 to 64 pixels (16 is usual), got {resolution}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = torch.from_numpy(digits.images).float()[:, None] / 16
    ink = torch.nn.functional.interpolate(ink, size=resolution, mode="bicubic").clamp(0, 1)
    names = [f"{i:04d}_digit{label}" for i, label in enumerate(digits.target)]
    return ImageDataset((ink * 255).round().to(torch.uint8), names, horizontal_flip=False)


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image that Pillow reads; hidden files are not."""
    return not name.startswith(".") and Path(name).suffix.lower() in Image.registered_extensions()


def check_count(source: str, found: int, expected: int | None) -> None:
    """Refuse a source that does not hold the number of images expected of it, where one is."""
    if expected is not None and found != expected:
        raise ValueError(
            f"{source} holds {found:,} images where {expected:,} are expected: another selection, or an incomplete "
            f"copy; given by itself, {source} opens whatever it holds"
        )


def gather(
    source: str,
    names: Sequence[str],
    read: Callable[[int], Image.Image],
    resolution: int,
    memory_limit: int,
    order: Iterable[int] | None = None,
) -> ImageDataset:
    """Decode every image once, keeping the bytes if they fit; report those that do not decode."""
    if not names:
        raise ValueError(f"no images in {source}; accepted are JPEG, PNG, WebP and what else Pillow opens")
    fits = 3 * resolution**2 * len(names) <= memory_limit
    held = torch.empty(len(names) if fits else 0, 3, resolution, resolution, dtype=torch.uint8)
    broken = {}
    for position in range(len(names)) if order is None else order:
        try:
            with read(position) as image:
                pixels = square(image, resolution)
        except UNREADABLE as error:
            broken[position] = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            continue
        if fits:
            held[position] = pixels
    good = [position for position in range(len(names)) if position not in broken]
    skipped = [names[position] for position in sorted(broken)]
    shown = "; ".join(f"{names[position]} ({broken[position]})" for position in sorted(broken)[:3])
    if not good:
        raise ValueError(f"none of the {len(names)} images in {source} can be read: {shown}")
    if broken:
        warnings.warn(f"skipped {len(broken)} of {len(names)} images in {source}: {shown}", stacklevel=4)
        held = held[good] if fits else held
    pixels = held if fits else DecodedOnDemand(read, good, resolution)
    return ImageDataset(pixels, [names[position] for position in good], horizontal_flip=True, skipped=skipped)
