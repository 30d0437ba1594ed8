"""Folders of images: loose files, tar archives without unpacking, and directories that hold both.

One pass over the headers of a plain tar archive notes where every image begins, to be read in any order; a compressed
one is decompressed once from its beginning, and has to fit into memory as pixels.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isodiff.datasets.images import ImageDataset, Shape, check_count, fits_memory, gather

_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, LZMAError)
# pictures that Pillow opens only with a plugin, or never
_FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".svg")
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst")


@dataclass(frozen=True)
class StoredImages:
    """Where the images of a folder lie; without an open file, so that any number of processes can share it."""

    folder: Path
    archives: tuple[Path, ...]
    names: tuple[str, ...]  # sorted
    where: NDArray[np.int64]  # (N, 3): number of the archive or −1 for a loose file, first byte, number of bytes
    left_out: str  # what is there besides them

    def __call__(self, position: int) -> Image.Image:
        """Open the image at a position."""
        archive, offset, size = self.where[position].tolist()
        if archive < 0:
            return Image.open(self.folder / self.names[position])
        with self.archives[archive].open("rb") as file:
            return _read(file, offset, size)


def open_folder(path: str | Path, shape: Shape, *, count: int | None = None) -> ImageDataset:
    """Open a directory (of images, plain tar archives, or both; recursively) or a tar archive (plain, .gz, .bz2, .xz).

    Links to folders are followed, hidden files and folders left out; an image is told by its extension. Images come in
    the order of their names, relative paths or `archive.tar/member`. `count` is the number it must hold.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder or archive: {path}")
    mode = next((mode for mode in ("r:", "r:*") if path.is_dir() or _opens(path, mode)), None)
    if mode is None:
        accepted = "give a directory, or a .tar, .tar.gz, .tar.bz2 or .tar.xz"
        raise ValueError(f"{path} is a file but no tar archive, or cut short before its first entry; {accepted}")
    stored = _index(path, mode)
    check_count(f"folder:{path}", len(stored.names), count)
    order = np.lexsort((stored.where[:, 1], stored.where[:, 0])).tolist()  # one sweep over each archive
    if mode == "r:":
        return gather(str(path), stored.names, stored, shape, order, left_out=stored.left_out)
    if not fits_memory(len(stored.names), shape):
        size = f"{len(stored.names)} images of {shape[1]} x {shape[2]} pixels exceed the memory that pixels may take"
        raise ValueError(f"{size}, and {path} is compressed; decompress it to a plain .tar (no unpacking needed)")
    spans = stored.where[:, 1:].tolist()
    with tarfile.open(path) as tar:  # decompressed once, in its own order
        return gather(str(path), stored.names, lambda i: _read(tar.fileobj, *spans[i]), shape, order)


def _index(path: Path, mode: str) -> StoredImages:
    archives, found, left_out = [path], [], ""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if path.is_dir():
        files = list(_files(path))
        archives = sorted(file for file in files if file.suffix.lower() == ".tar")
        found = [(file.relative_to(path).as_posix(), -1, 0, 0) for file in files if _is_image(file)]
        left_out = _left_out(files)
    for number, archive in enumerate(archives):
        prefix = "" if archive == path else archive.relative_to(path).as_posix() + "/"
        found += [(prefix + name, number, offset, size) for name, offset, size in _members(archive, mode)]
    found.sort(key=lambda row: row[0])
    where = np.array([row[1:] for row in found], dtype=np.int64).reshape(-1, 3)
    return StoredImages(path, tuple(archives), tuple(row[0] for row in found), where, left_out)


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a directory that are not hidden, through links, but not around in a circle."""
    if (real := folder.resolve()) in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        elif entry.is_file() or entry.is_symlink():
            yield entry


def _left_out(files: list[Path]) -> str:
    """Say how many pictures and archives are there that cannot be opened, and what would help."""
    odd = Counter(f.suffix.lower() for f in files if f.suffix.lower() in _FOREIGN + _COMPRESSED and not _is_image(f))
    advice = "decompress archives to plain .tar; install pillow-heif, or convert pictures to PNG or JPEG"
    return f"{', '.join(f'{n} {ending[1:].upper()}' for ending, n in odd.most_common())} ({advice})" if odd else ""


def _members(archive: Path, mode: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each image of an archive, in the archive's order."""
    try:
        with tarfile.open(archive, mode) as tar:
            while (member := tar.next()) is not None:
                place = Path(member.name)
                hidden = any(part.startswith(".") and part not in (".", "..") for part in place.parts)
                if member.isreg() and not member.issparse() and not hidden and _is_image(place):
                    yield member.name, member.offset_data, member.size
                tar.members.clear()  # tarfile would keep all headers, a kilobyte each
            tar.fileobj.seek(tar.offset)  # tarfile also ends, silently, at a header that it cannot read
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {tar.offset:,}")
    except _DAMAGED as error:
        what = f"{archive} is damaged or cut short, or not a plain tar archive ({error})"
        raise ValueError(f"{what}; fetch it again, or decompress it") from error


def _opens(path: Path, mode: str) -> bool:
    try:
        with tarfile.open(path, mode):
            return True
    except _DAMAGED:
        return False


def _read(file: io.BufferedIOBase, offset: int, size: int) -> Image.Image:
    file.seek(offset)
    return Image.open(io.BytesIO(file.read(size)))


def _is_image(file: Path) -> bool:
    return Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN
