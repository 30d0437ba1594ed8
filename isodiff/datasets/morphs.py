"""Morphs: paths between two images as folders of frames, in order, complete and of one size.

A frame left out makes two steps one, one out of place adds steps: what does not decode, or has no order, is refused.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from isodiff.datasets.folders import is_image
from isodiff.datasets.images import Shape, fit

_WITH_PLUGIN = {".heic", ".heif", ".avif", ".jxl"}  # images too, whether or not they open here


@dataclass(frozen=True)
class Morph:
    """One path of N + 1 frames between two images, and these where they are known; opened and checked."""

    name: str
    frames: tuple[Path, ...]
    originals: tuple[Path, ...]  # none, or two
    shape: Shape | None  # as asked for, None is the frames' own
    size: tuple[int, int] = (0, 0)  # width, height

    @property
    def facts(self) -> dict[str, str | int | list[str]]:
        """What a record tells of it, the size as width x height."""
        size, first, last = "{} x {}".format(*self.size), self.frames[0].name, self.frames[-1].name
        originals = {"originals": [path.name for path in self.originals]} if self.originals else {}
        return {"pair": self.name, "frames": len(self.frames), "size": size, "first": first, "last": last} | originals

    def load(self) -> Tensor:
        """Return the frames (N + 1, 3, H, W) in uint8."""
        return torch.stack(list(self._decoded(self.frames, self.shape)))

    def load_originals(self) -> Tensor:
        """Return the originals (2, 3, H, W) in uint8, of another size or shape cut centrally and resized to H x W."""
        return torch.stack(list(self._decoded(self.originals, (3, *self.size[::-1]))))

    def checked(self) -> Self:
        """Return the morph with its size, or refuse it: each image decodes, all frames have one size, some differ."""
        frames = list(self._decoded(self.frames, self.shape))
        _, height, width = frames[0].shape
        for path, (_, h, w) in zip(self.frames, (frame.shape for frame in frames), strict=True):
            if (h, w) != (height, width):
                sizes = f"{path} has {w} x {h} pixels and {self.frames[0].name} {width} x {height}"
                raise ValueError(f"{sizes}; give frames of one size, or one to resize all to with --resolution")
        if all(torch.equal(frame, frames[0]) for frame in frames):
            raise ValueError(f"all {len(frames)} frames of {self.frames[0].parent} are one image; give a path")
        found = replace(self, size=(width, height))
        list(found._decoded(self.originals, (3, *found.size[::-1])))
        return found

    @staticmethod
    def _decoded(paths: Sequence[Path], shape: Shape | None) -> Iterator[Tensor]:
        for path in paths:
            try:
                with Image.open(path) as image:
                    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # cameras add previews
                    decoded = fit(image, shape)
            except Exception as error:  # whatever a decoder raises
                raise ValueError(f"{path} cannot be read as an image ({error}); give it anew, as PNG") from error
            if count > 1:
                raise ValueError(f"{path} holds {count} pictures; give a file for each frame, and films elsewhere")
            yield decoded


def open_morphs(
    folders: Sequence[str | Path], *, originals: str | Path | None = None, resolution: int | None = None
) -> list[Morph]:
    """Open folders of frames, one a pair, or one folder with a sub-folder a pair, and check every image.

    `originals` holds the two images that each path joins, in order, in sub-folders of the pairs' names, or of a single
    pair itself. `resolution` asks for central squares of that side.
    """
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution must be at least 1 pixel, or left out for the frames' own; got {resolution}")
    pairs = _pairs([_folder(folder, "frames") for folder in folders])
    paths = {name: in_order(_images(folder)) for name, folder in pairs.items()}
    for name, frames in paths.items():
        if len(frames) < 2:
            raise ValueError(f"{pairs[name]} holds {len(frames)} images; expected at least 2 frames, such as PNG")
    ends = {name: () for name in pairs} if originals is None else _originals(_folder(originals, "originals"), pairs)
    shape = None if resolution is None else (3, resolution, resolution)
    morphs = [Morph(name, tuple(frames), ends[name], shape).checked() for name, frames in paths.items()]
    if others := [path for name, folder in pairs.items() for path in _files(folder) if path not in paths[name]]:
        shown = ", ".join(map(str, others[:3]))
        warnings.warn(f"{len(others)} files among the frames are no images and are left out: {shown}", stacklevel=3)
    if gaps := [gap for frames in paths.values() if (gap := _gap(frames))]:
        warnings.warn(f"a missing frame makes two steps one; numbers jump after {', '.join(gaps[:3])}", stacklevel=3)
    return morphs


def natural(text: str, number: str = r"\d+") -> list[str | Fraction]:
    """Return a key that sorts texts by the numbers in them: frame2 before frame10."""
    parts: list[str | Fraction] = re.split(f"({number})", text.casefold())
    parts[1::2] = map(Fraction, parts[1::2])
    return parts


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Return frames in the natural order of their names, or refuse names that leave it open."""
    ordered = sorted(paths, key=lambda path: natural(path.stem))
    ask = "name the frames by one word and whole numbers, such as frame0.png, frame1.png"
    for one, other in pairwise(ordered):
        first, second = natural(one.stem), natural(other.stem)
        if first == second:
            raise ValueError(f"{one} and {other.name} have one place in the order; keep one of them, or {ask}")
        if first[0] != second[0] and len(first) + len(second) > 2:
            raise ValueError(f"{one} and {other.name} are named differently, which leaves their order open; {ask}")
    decimal = sorted(ordered, key=lambda path: natural(path.stem, r"\d+(?:\.\d+)?"))
    if wrong := [(one, other) for one, other in zip(ordered, decimal, strict=True) if one != other]:
        one, other = wrong[0]
        raise ValueError(f"{one} and {other.name} change places if a point is read as decimal or not; {ask}")
    return ordered


def _gap(frames: Sequence[Path]) -> str:
    """Return the frame after which the one number that counts them leaves its stride, if there is one."""
    numbers = zip(*(natural(path.stem)[1::2] for path in frames), strict=False)
    counts = [column for column in numbers if len(set(column)) > 1]
    strides = [b - a for a, b in pairwise(counts[0])] if len(counts) == 1 else []
    return next((str(frames[i]) for i, stride in enumerate(strides) if stride > min(strides)), "")


def _folder(place: str | Path, what: str) -> Path:
    place = Path(place).expanduser()
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is {'a file' if place.exists() else 'not there'}; give a folder of {what}")
    return place


def _pairs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each pair by its name."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"a folder of frames is given twice; give each once, got {', '.join(map(str, folders))}")
    for folder in folders:
        inner = [place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
        images = _images(folder)
        if inner and images:
            held = f"{len(images)} images and {len(inner)} folders"
            raise ValueError(f"{folder} holds {held}; expected frames, or a folder a pair")
        if inner and len(folders) == 1:
            return {place.name: place for place in sorted(inner, key=lambda place: (natural(place.name), place.name))}
        if not images:
            raise ValueError(f"{folder} holds no image; expected frames, and of several folders each is one pair")
    names = [folder.resolve().name for folder in folders]
    return dict(zip(names if len(set(names)) == len(names) else map(str, folders), folders, strict=True))


def _originals(place: Path, pairs: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    found = {}
    for name in pairs:
        inside = place / Path(name).name
        folder = place if len(pairs) == 1 and not inside.is_dir() else _folder(inside, f"the originals of {name}")
        images = sorted(_images(folder), key=lambda path: (natural(path.stem), path.name))
        if len(images) != 2:
            raise ValueError(f"{folder} holds {len(images)} images; expected two originals of {name}, first and last")
        found[name] = tuple(images)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return [p for p in _files(folder) if p.suffix.lower() in _WITH_PLUGIN or is_image(p.name, p.open)]
