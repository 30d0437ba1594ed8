"""Folders of images: loose files, tar archives without unpacking, and directories that hold both.

One pass over the headers of a plain tar archive notes where every image begins; from there it is read in any order, by
any process. A compressed archive is decompressed once from its beginning, and has to fit into memory as pixels.
"""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isodiff.datasets.images import ImageDataset, check_count, fits_memory, gather

_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, LZMAError)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass(frozen=True)
class StoredImages:
    """Where the images of a folder lie; called with a position, it opens that image.

    It holds no open file, so that any number of processes can share it, forked or not.
    """

    folder: Path
    archives: tuple[Path, ...]
    names: tuple[str, ...]  # sorted
    where: NDArray[np.int64]  # (N, 3): number of the archive or −1 for a loose file, first byte, number of bytes

    def __call__(self, position: int) -> Image.Image:  # noqa: D102 - the class says it
        archive, offset, size = self.where[position].tolist()
        if archive < 0:
            return Image.open(self.folder / self.names[position])
        with self.archives[archive].open("rb") as file:
            return _read(file, offset, size)


def open_folder(path: str | Path, resolution: int, *, count: int | None = None) -> ImageDataset:
    """Open a directory (searched recursively) or a tar archive (plain, .gz, .bz2, .xz) of images.

    A directory holds images, plain tar archives of images, or both; hidden files do not count. Images come in the order
    of their names, which are relative paths, `archive.tar/member` inside an archive: the same on every machine. `count`
    is the number of images that it must hold, checked before any is decoded.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder or archive: {path}")
    compressed = path.is_file() and not _opens(path, "r:")
    if compressed and not _opens(path, "r:*"):
        raise ValueError(
            f"{path} is a file but no tar archive, or one cut short before its first entry; "
            "give a directory, or a .tar, .tar.gz, .tar.bz2 or .tar.xz"
        )
    stored = _index(path, "r:*" if compressed else "r:")
    check_count(f"folder:{path}", len(stored.names), count)
    order = np.lexsort((stored.where[:, 1], stored.where[:, 0])).tolist()  # one sweep over each archive
    if not compressed:
        return gather(str(path), stored.names, stored, resolution, order)
    if not fits_memory(len(stored.names), resolution):
        raise ValueError(
            f"{len(stored.names)} images of {resolution} x {resolution} pixels exceed the memory that pixels may take, "
            f"and {path} is compressed; decompress it to a plain .tar (no unpacking needed)"
        )
    with tarfile.open(path) as tar:  # decompressed once, in its own order

        def read(position: int) -> Image.Image:
            return _read(tar.fileobj, *stored.where[position, 1:].tolist())

        return gather(str(path), stored.names, read, resolution, order)


def _index(path: Path, mode: str) -> StoredImages:
    archives, loose = [path], []
    if path.is_dir():
        files = [file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file()]
        archives = sorted(file for file in files if file.suffix.lower() == ".tar")
        loose = [file.relative_to(path).as_posix() for file in files if _is_image(file.name)]
        ignored = sorted(file.name for file in files if file.name.lower().endswith(_COMPRESSED))
        if ignored:
            warnings.warn(
                f"ignored {len(ignored)} compressed archives in {path}: {', '.join(ignored[:3])}; "
                "decompress them to plain .tar, or open one by itself",
                stacklevel=5,
            )
    found = [(name, -1, 0, 0) for name in loose]
    for number, archive in enumerate(archives):
        prefix = "" if archive == path else archive.relative_to(path).as_posix() + "/"
        found += [(prefix + name, number, offset, size) for name, offset, size in _members(archive, mode)]
    found.sort(key=lambda row: row[0])
    where = np.array([row[1:] for row in found], dtype=np.int64).reshape(-1, 3)
    return StoredImages(path, tuple(archives), tuple(row[0] for row in found), where)


def _members(archive: Path, mode: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each image of an archive, in the archive's order."""
    try:
        with tarfile.open(archive, mode) as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse() and _is_image(Path(member.name).name):
                    yield member.name, member.offset_data, member.size
                tar.members.clear()  # tarfile would keep all headers, a kilobyte each
            tar.fileobj.seek(tar.offset)  # tarfile also ends, silently, at a header that it cannot read
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    except _DAMAGED as error:
        raise ValueError(
            f"{archive} is damaged or cut short, or not a plain tar archive ({error}); fetch it again, or decompress it"
        ) from error


def _opens(path: Path, mode: str) -> bool:
    try:
        with tarfile.open(path, mode):
            return True
    except _DAMAGED:
        return False


def _read(file: io.BufferedIOBase, offset: int, size: int) -> Image.Image:
    file.seek(offset)
    return Image.open(io.BytesIO(file.read(size)))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in Image.registered_extensions()
