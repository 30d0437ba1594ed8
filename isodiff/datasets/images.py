r"""Real images: scikit-learn's digits, folders and tar archives, and data sets of the Hugging Face hub.

A photograph becomes a data point in one fixed way: EXIF orientation applied, RGB, largest central square,
antialiased Lanczos resize to R x R, bytes u in 0...255, and x = u / 127.5 - 1 in [-1, 1]. Files come in the
order of their sorted names, so that an index means the same image on every machine. An image that does not
decode completely is skipped, counted and reported, never replaced.
"""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

MEMORY_LIMIT = 4 * 2**30
DAMAGED_ARCHIVE = (OSError, EOFError, zlib.error, tarfile.TarError, LZMAError)
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


def open_folder(path: str | Path, resolution: int, *, memory_limit: int = MEMORY_LIMIT) -> ImageDataset:
    """Open a directory (searched recursively) or a tar archive (plain, .gz, .bz2, .xz) of images.

    Args:
        path: Directory or archive; every format that Pillow reads, hidden files apart.
        resolution: Side R of the images in pixels.
        memory_limit: Bytes the N * 3 * R * R decoded pixels may take. Above it a directory is decoded at
            every access (after one pass that finds the unreadable files); an archive is refused.

    Returns:
        Images in the order of their names, which are paths relative to ``path``.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is neither directory nor archive, holds no image or no readable one, is a damaged
            archive, or an archive whose pixels exceed the memory limit.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder or archive: {path}")
    if path.is_file():
        return _open_archive(path, resolution, memory_limit)
    files = (file for file in path.rglob("*") if _is_image(file.name) and file.is_file())
    names = sorted(file.relative_to(path).as_posix() for file in files)
    return _gather(str(path), names, lambda i: Image.open(path / names[i]), resolution, memory_limit)


def _open_archive(path: Path, resolution: int, memory_limit: int) -> ImageDataset:
    try:
        archive = tarfile.open(path)  # noqa: SIM115
    except DAMAGED_ARCHIVE as error:
        raise ValueError(
            f"{path} is a file but no tar archive, or one cut short before its first entry; "
            "give a directory, or a .tar, .tar.gz, .tar.bz2 or .tar.xz"
        ) from error
    with archive:
        try:
            members = [m for m in archive.getmembers() if m.isfile() and _is_image(Path(m.name).name)]
        except DAMAGED_ARCHIVE as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error
        members.sort(key=lambda member: member.name)
        names = [member.name for member in members]
        if 3 * resolution**2 * len(names) > memory_limit:
            raise ValueError(
                f"{len(names)} images of {resolution} x {resolution} pixels exceed "
                f"memory_limit={memory_limit} bytes; extract {path} to a directory, or raise the limit"
            )

        def read(position: int) -> Image.Image:
            return Image.open(io.BytesIO(archive.extractfile(members[position]).read()))

        # A compressed archive is a stream: reading it in its own order decompresses it once, not N times.
        stream = sorted(range(len(members)), key=lambda position: members[position].offset)
        return _gather(str(path), names, read, resolution, memory_limit, order=stream)


def open_hub(source: str, resolution: int, *, memory_limit: int = MEMORY_LIMIT) -> ImageDataset:
    """Open a Hugging Face data set: its first column of type ``Image``.

    Args:
        source: ``NAME[@REVISION][#SPLIT]``, for example ``"cifar10"`` or ``"user/name@main#test"``; NAME
            may also be a local directory that ``datasets.load_dataset`` opens. The split is ``train`` unless
            told.
        resolution: Side R of the images in pixels.
        memory_limit: Bytes the decoded pixels may take; above it each image is decoded at every access.

    Returns:
        Images in the data set's own order, named by their zero-padded position.

    Raises:
        FileNotFoundError: If there is no such data set, as far as can be seen from here.
        ConnectionError: If the hub cannot be reached.
        ValueError: If there is no such split, no image column, or no readable image.
    """
    import datasets

    location, _, split = source.partition("#")
    name, _, revision = location.partition("@")
    accepted = "accepted are NAME[@REVISION][#SPLIT] of a data set on the hub, or a local directory of one"
    try:
        table = datasets.load_dataset(name, revision=revision or None, split=split or "train")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no data set {name!r} was found ({error}); {accepted}") from error
    except OSError as error:
        raise ConnectionError(f"the hub could not be asked for {name!r} ({error}); {accepted}") from error
    except ValueError as error:
        raise ValueError(f"data set {source!r} does not open ({error}); {accepted}") from error
    columns = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"data set {source!r} has no column of type Image, only {dict(table.features)}")
    encoded = table.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))

    def read(position: int) -> Image.Image:
        cell = encoded[position][columns[0]]
        if cell is None:
            raise ValueError("the cell is empty")
        return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))

    names = [f"{i:08d}" for i in range(len(encoded))]
    return _gather(f"hub:{source}", names, read, resolution, memory_limit)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in Image.registered_extensions()


def _gather(
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
