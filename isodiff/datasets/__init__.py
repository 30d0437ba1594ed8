"""Sources of images behind one door: map-style collections of (C, R, R) tensors in [-1, 1]."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from isodiff.datasets.images import MEMORY_LIMIT, open_digits, open_folder, open_hub

__all__ = ["MEMORY_LIMIT", "open_dataset"]

ACCEPTED = "'faces', 'digits', 'folder:PATH' or 'hub:NAME[@REVISION][#SPLIT]'"


def open_dataset(spec: str, resolution: int, *, seed: int = 0, memory_limit: int = MEMORY_LIMIT) -> Dataset[Tensor]:
    """Open a data set by name.

    Args:
        spec: ``"faces"`` (rendered, factors known), ``"digits"`` (scikit-learn's handwriting),
            ``"folder:PATH"`` (directory or tar archive of images) or ``"hub:NAME[@REVISION][#SPLIT]"``
            (Hugging Face data set, on the hub or in a local directory; split ``train`` unless told).
        resolution: Side R of the square images, in pixels.
        seed: Seed of the factors of ``"faces"``; the others are fixed collections and do not use it.
        memory_limit: Bytes that the decoded pixels of a folder or hub data set may take in memory. Above it,
            directories and hub data sets decode each image at every access; an archive is refused.

    Returns:
        A map-style data set of float32 tensors (C, R, R) in [-1, 1] with ``channels``, ``resolution``,
        ``horizontal_flip`` (whether training may mirror images) and ``__getitems__``.

    Raises:
        ValueError: If the spec or the resolution is none of the above, or the source holds no readable image.
        FileNotFoundError: If the path, or the data set on the hub, does not exist.
        ConnectionError: If the hub cannot be reached.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise ValueError(f"resolution must be a positive whole number of pixels, got {resolution!r}")
    kind, _, source = spec.partition(":")
    if spec == "faces":
        from isodiff.datasets.faces import FacesDataset

        return FacesDataset(resolution, seed=seed)
    if spec == "digits":
        return open_digits(resolution)
    if kind == "folder" and source:
        return open_folder(source, resolution, memory_limit=memory_limit)
    if kind == "hub" and source:
        return open_hub(source, resolution, memory_limit=memory_limit)
    missing = f": {kind!r} needs a value after the colon" if kind in ("folder", "hub") else ""
    raise ValueError(f"unknown dataset {spec!r}{missing}; accepted are {ACCEPTED}")
