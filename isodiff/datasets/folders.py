"""Folders of images: loose files, tar archives without unpacking, and directories that hold both.

A plain tar archive is a row of headers, each followed by the bytes of one file. One pass over the headers notes where
every image begins; after that, an image is read straight from its offset, in any order and by any process. Only a
compressed archive has to be decompressed from its beginning, and therefore to fit into memory as pixels.
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

from isodiff.datasets.images import MEMORY_LIMIT, ImageDataset, check_count, gather, is_image

_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, LZMAError)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass(frozen=True)
class StoredImages:
    """Where the images of a folder lie; called with a position, it opens that image.

    It holds no open file, so that any number of processes can share it, forked or not.

    Attributes:
        folder: The directory that names of loose files start from.
        archives: The plain tar archives.
        names: N names, sorted.
        archive: (N,) number of the image's archive, −1 for a loose file.
        offset: (N,) first byte in the archive.
        size: (N,) bytes in the archive.
    """

    folder: Path
    archives: tuple[Path, ...]
    names: tuple[str, ...]
    archive: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def __call__(self, position: int) -> Image.Image:
        """Open image ``position``."""
        number = int(self.archive[position])
        if number < 0:
            return Image.open(self.folder / self.names[position])
        with self.archives[number].open("rb") as file:
            file.seek(int(self.offset[position]))
            return Image.open(io.BytesIO(file.read(int(self.size[position]))))


def open_folder(
    path: str | Path, resolution: int, *, memory_limit: int = MEMORY_LIMIT, count: int | None = None
) -> ImageDataset:
    """Open a directory (searched recursively) or a tar archive (plain, .gz, .bz2, .xz) of images.

    Args:
        path: Archive, or directory of images, of plain tar archives of images, or of both; every format that Pillow
            reads, hidden files apart.
        resolution: Side R of the images in pixels.
        memory_limit: Bytes the N * 3 * R * R decoded pixels may take. Above it images are decoded at every access,
            after one pass that finds the unreadable ones; a compressed archive is refused.
        count: Number of images the folder must hold; by default any.

    Returns:
        Images in the order of their names, which are paths relative to ``path``; inside an archive of a directory,
        ``archive.tar/member``.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is neither directory nor archive, holds no image, no readable one or another number of them,
            holds a damaged archive, or is a compressed archive whose pixels exceed the memory limit.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no such folder or archive: {path}")
    if path.is_file() and not _is_plain(path):
        return _open_compressed(path, resolution, memory_limit, count)
    stored = _index(path)
    check_count(f"folder:{path}", len(stored.names), count)
    order = np.lexsort((stored.offset, stored.archive)).tolist()  # one sweep over each archive
    return gather(str(path), stored.names, stored, resolution, memory_limit, order)


def _index(path: Path) -> StoredImages:
    """Find the images of a directory or of one plain archive."""
    if path.is_file():
        archives, loose = [path], []
    else:
        files = [file for file in path.rglob("*") if not file.name.startswith(".") and file.is_file()]
        archives = sorted(file for file in files if file.suffix.lower() == ".tar")
        loose = [file.relative_to(path).as_posix() for file in files if is_image(file.name)]
        ignored = sorted(file.name for file in files if file.name.lower().endswith(_COMPRESSED))
        if ignored:
            warnings.warn(
                f"ignored {len(ignored)} compressed archives in {path}: {', '.join(ignored[:3])}; "
                "decompress them to plain .tar, or open one by itself",
                stacklevel=5,
            )
    names, rows = list(loose), [(-1, 0, 0)] * len(loose)
    for number, archive in enumerate(archives):
        prefix = "" if archive == path else archive.relative_to(path).as_posix() + "/"
        for name, offset, size in _members(archive):
            names.append(prefix + name)
            rows.append((number, offset, size))
    order = sorted(range(len(names)), key=names.__getitem__)
    table = np.array([rows[i] for i in order], dtype=np.int64).reshape(-1, 3)
    ordered = tuple(names[i] for i in order)
    return StoredImages(path, tuple(archives), ordered, table[:, 0].astype(np.int32), table[:, 1], table[:, 2])


def _members(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each image of a plain archive, in the archive's order."""
    try:
        with tarfile.open(archive, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isreg() and not member.issparse() and is_image(Path(member.name).name):
                    yield member.name, member.offset_data, member.size
                tar.members.clear()  # tarfile would keep all headers, a kilobyte each
            end = tar.offset
        with archive.open("rb") as file:  # tarfile also ends, silently, at a header that it cannot read
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no header at byte {end:,}")
    except _DAMAGED as error:
        raise ValueError(
            f"{archive} is damaged or cut short, or not a plain tar archive ({error}); fetch it again, or decompress it"
        ) from error


def _is_plain(path: Path) -> bool:
    """Return whether a file begins as an uncompressed tar archive does."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except _DAMAGED:
        return False


def _open_compressed(path: Path, resolution: int, memory_limit: int, count: int | None) -> ImageDataset:
    try:
        archive = tarfile.open(path)  # noqa: SIM115
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is a file but no tar archive, or one cut short before its first entry; "
            "give a directory, or a .tar, .tar.gz, .tar.bz2 or .tar.xz"
        ) from error
    with archive:
        try:
            members = [m for m in archive.getmembers() if m.isfile() and is_image(Path(m.name).name)]
        except _DAMAGED as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error
        members.sort(key=lambda member: member.name)
        names = [member.name for member in members]
        check_count(f"folder:{path}", len(names), count)
        if 3 * resolution**2 * len(names) > memory_limit:
            raise ValueError(
                f"{len(names)} images of {resolution} x {resolution} pixels exceed memory_limit={memory_limit} bytes, "
                f"and {path} is compressed; decompress it to a plain .tar (no unpacking needed), or raise the limit"
            )

        def read(position: int) -> Image.Image:
            return Image.open(io.BytesIO(archive.extractfile(members[position]).read()))

        # A compressed archive is a stream: reading it in its own order decompresses it once, not N times.
        stream = sorted(range(len(members)), key=lambda position: members[position].offset)
        return gather(str(path), names, read, resolution, memory_limit, stream)
