"""Sources of images behind one door: map-style collections of (C, R, R) tensors in [-1, 1]."""

from __future__ import annotations

import warnings

from torch import Tensor
from torch.utils.data import Dataset

from isodiff.datasets.catalogue import CATALOGUE
from isodiff.datasets.images import MEMORY_LIMIT, open_digits

__all__ = ["CATALOGUE", "MEMORY_LIMIT", "open_dataset"]

ACCEPTED = (
    "'faces', 'digits', 'folder:PATH', 'hub:NAME[@REVISION][#SPLIT]', 'stream:NAME[@REVISION][#SPLIT[=COUNT]]', "
    f"and of the papers {', '.join(map(repr, CATALOGUE))}, each also with a copy of your own, as 'cifar10=folder:PATH'"
)
_STORED = ("folder", "hub", "stream")


def open_dataset(spec: str, resolution: int, *, seed: int = 0, memory_limit: int = MEMORY_LIMIT) -> Dataset[Tensor]:
    """Open a data set by name.

    Args:
        spec: ``"faces"`` (rendered, factors known), ``"digits"`` (scikit-learn's handwriting),
            ``"folder:PATH"`` (images, plain tar archives of images, or one tar archive),
            ``"hub:NAME[@REVISION][#SPLIT]"`` (Hugging Face data set, on the hub or in a local directory; split
            ``train`` unless told), ``"stream:NAME[@REVISION][#SPLIT[=COUNT]]"`` (the same, read in order as training
            goes on), or a name of the table `CATALOGUE`, such as ``"cifar10"``: the data sets of the papers, with the
            number of images checked. ``"lsun-bedroom=folder:PATH"`` opens a copy of your own and checks that it
            holds as many images as the paper's.
        resolution: Side R of the square images, in pixels.
        seed: Seed of the factors of ``"faces"`` and of the order of a stream; the others are fixed collections and do
            not use it.
        memory_limit: Bytes that the decoded pixels of a folder or hub data set may take in memory. Above it, each
            image is decoded at every access; a compressed archive is refused.

    Returns:
        A map-style data set of float32 tensors (C, R, R) in [-1, 1] with ``channels``, ``resolution``,
        ``horizontal_flip`` (whether training may mirror images) and ``__getitems__``. A stream also has
        ``sequential = True``: its indices are positions, best asked for in order.

    Raises:
        ValueError: If the spec or the resolution is none of the above, the source holds no readable image, or another
            number of images than the table states.
        FileNotFoundError: If the path, or the data set on the hub, does not exist.
        ConnectionError: If the hub cannot be reached; the message names the command that fetches the data set.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution must be a positive whole number of pixels, got {resolution!r}")
    if spec == "faces":
        from isodiff.datasets.faces import FacesDataset

        return FacesDataset(resolution, seed=seed)
    if spec == "digits":
        return open_digits(resolution)
    name, own, copy = spec.partition("=")
    if name not in CATALOGUE:
        return _open_stored(spec, spec, resolution, seed, memory_limit)
    source = CATALOGUE[name]
    try:
        if own:
            count = source.paper_count or source.count
            return _open_stored(spec, copy, resolution, seed, memory_limit, count)
        images = _open_stored(spec, source.spec, resolution, seed, memory_limit, source.count, source.column)
    except (FileNotFoundError, ConnectionError) as error:
        raise type(error)(f"{name}: {error}") from error
    if source.paper_count not in (None, source.count):
        warnings.warn(
            f"{name} is {source.spec} with {source.count:,} images, where the paper has {source.paper_count:,}: "
            f"{source.note}; {name}=folder:PATH opens a copy of your own and checks it against the paper's number",
            stacklevel=2,
        )
    return images


def _open_stored(
    spec: str,
    stored: str,
    resolution: int,
    seed: int,
    memory_limit: int,
    count: int | None = None,
    column: str | None = None,
) -> Dataset[Tensor]:
    kind, _, source = stored.partition(":")
    if kind == "folder" and source:
        from isodiff.datasets.folders import open_folder

        return open_folder(source, resolution, memory_limit=memory_limit, count=count)
    if kind == "hub" and source:
        from isodiff.datasets.hub import open_hub

        return open_hub(source, resolution, memory_limit=memory_limit, count=count, column=column)
    if kind == "stream" and source:
        from isodiff.datasets.stream import open_stream

        return open_stream(source, resolution, seed=seed, count=count, column=column)
    missing = f": {kind!r} needs a value after the colon" if kind in _STORED else ""
    raise ValueError(f"unknown dataset {spec!r}{missing}; accepted are {ACCEPTED}")
