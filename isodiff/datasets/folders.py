"""Folders of images: loose files, tar archives without unpacking, and directories that hold both.

One pass over the headers of a plain tar archive notes where every image begins; from there it is read in any order, by
any process. A compressed archive is decompressed once from its beginning, and has to fit into memory as pixels.
"""

import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isodiff.datasets.images import ImageDataset, Shape, check_count, fits_memory, gather

_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, LZMAError)
# pictures that Pillow opens only with a plugin, or never
_FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".svg")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


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

    Links to folders are followed, hidden files and folders left out; a file without an extension counts if Pillow knows
    its content, and pictures that Pillow cannot open are counted and named. Images come in the order of their names,
    relative paths or `archive.tar/member`. `count` is the number it must hold, checked before any is decoded.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder or archive: {path}")
    mode = next((mode for mode in ("r:", "r:*") if path.is_dir() or _opens(path, mode)), None)
    if mode is None:
        accepted = "give a directory, or a .tar, .tar.gz, .tar.bz2 or .tar.xz"
        raise ValueError(f"{path} is a file but no tar archive, or one cut short before its first entry; {accepted}")
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
        read = lambda i: _read(tar.fileobj, *spans[i])  # noqa: E731
        return gather(str(path), stored.names, read, shape, order, left_out=stored.left_out)


def _index(path: Path, mode: str) -> StoredImages:
    archives, found, files = [path], [], []
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    if path.is_dir():
        files = list(_files(path))
        archives = sorted(file for file in files if file.suffix.lower() == ".tar")
        found = [(file.relative_to(path).as_posix(), -1, 0, 0) for file in files if is_image(file.name, file.open)]
    for number, archive in enumerate(archives):
        prefix = "" if archive == path else archive.relative_to(path).as_posix() + "/"
        found += [(prefix + name, number, offset, size) for name, offset, size in _members(archive, mode, files)]
    found.sort(key=lambda row: row[0])
    where = np.array([row[1:] for row in found], dtype=np.int64).reshape(-1, 3)
    return StoredImages(path, tuple(archives), tuple(row[0] for row in found), where, _left_out(files))


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
    opened, told = _endings(), []
    foreign = Counter(e for file in files if (e := file.suffix.lower()) in _FOREIGN and e not in opened)
    if foreign:
        kinds = ", ".join(f"{number} {ending[1:].upper()}" for ending, number in foreign.most_common())
        heif = "install pillow-heif, or " if foreign.keys() & {".heic", ".heif"} else ""
        told.append(f"{kinds}, which Pillow does not open ({heif}convert them to PNG or JPEG)")
    if packed := sorted(file.name for file in files if file.name.lower().endswith(_COMPRESSED)):
        advice = "decompress them to plain .tar, or open one by itself"
        told.append(f"{len(packed)} compressed archives, such as {packed[0]} ({advice})")
    return "; ".join(told)


def _members(archive: Path, mode: str, others: list[Path]) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each image of an archive, in the archive's order; list its other files."""
    try:
        with tarfile.open(archive, mode) as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                    content = lambda _, file=tar.fileobj, at=member: _content(file, at.offset_data, at.size)  # noqa: E731
                    if is_image(Path(member.name).name, content):
                        yield member.name, member.offset_data, member.size
                    else:
                        others.append(Path(member.name))
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


def _content(file: io.BufferedIOBase, offset: int, size: int) -> io.BytesIO:
    file.seek(offset)
    return io.BytesIO(file.read(size))


def _read(file: io.BufferedIOBase, offset: int, size: int) -> Image.Image:
    return Image.open(_content(file, offset, size))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in Path(name).parts)


def _endings() -> set[str]:
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def is_image(name: str, open_it: Callable[[str], BinaryIO]) -> bool:
    """Tell an image by its extension, or without one by its content, which `open_it` gives."""
    ending = Path(name).suffix.lower()
    if name.startswith(".") or ending:
        return not name.startswith(".") and ending in _endings()
    try:
        with open_it("rb") as file, Image.open(file):
            return True
    except Exception:  # whatever a decoder raises
        return False
