"""Arrays that are computed once: on disk, by what they depend on, so that a killed measurement goes on.

A metric cuts its work into chunks; each chunk is a function of its key alone (model, protocol, seed, first and last
unit), so what is on disk never has to be made again, and what is made again is the same.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

Arrays = dict[str, np.ndarray]


class Store:
    """A folder of named arrays, one file a key; without a folder, nothing is kept.

    Args:
        directory: The folder, made when first needed, or None.
        progress: Whether to show a progress bar for work in chunks.
        **scope: Entries that every key of this store shares, plain JSON values.

    Note:
        Files are written under another name and then renamed, so that a killed process leaves either a whole file or
        none that counts. A file that does not read back is computed again, with a warning.
    """

    def __init__(self, directory: str | Path | None = None, *, progress: bool = False, **scope: Any) -> None:  # noqa: ANN401
        self.directory = None if directory is None else Path(directory)
        self.progress = progress
        self.scope = scope

    def scoped(self, **scope: Any) -> Store:  # noqa: ANN401 - plain JSON values
        """Return the same store with more entries in every key."""
        return Store(self.directory, progress=self.progress, **self.scope, **scope)

    def get(self, compute: Callable[[], Arrays], **key: Any) -> Arrays:  # noqa: ANN401 - plain JSON values
        """Return the arrays of a key, computed if they are not on disk.

        Args:
            compute: Makes the arrays, by name; it must depend on nothing but the key and the store's scope.
            **key: Plain JSON values.

        Returns:
            The arrays, by name.

        Raises:
            OSError: If the folder cannot be written, with what to do about it.
        """
        if self.directory is None:
            return compute()
        path = self._path(key)
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=2)
        arrays = compute()
        self._write(path, arrays)
        return arrays

    def chunks(
        self,
        compute: Callable[[int, int], Arrays],
        count: int,
        *,
        size: int,
        **key: Any,  # noqa: ANN401 - plain JSON values
    ) -> Arrays:
        """Return arrays of `count` rows made in chunks, each kept as soon as it is made.

        Args:
            compute: Given ``start`` and ``stop``, makes the rows ``start … stop − 1`` of every array, which must not
                depend on other chunks.
            count: Number of rows, at least 1.
            size: Rows a chunk.
            **key: Plain JSON values; ``"what"`` names the progress bar.

        Returns:
            The arrays, by name, (count, …) each.

        Raises:
            ValueError: If count or size is below 1.
            OSError: As `get`.
        """
        if count < 1 or size < 1:
            raise ValueError(f"count and size must be at least 1; got {count} and {size}")
        starts = range(0, count, size)
        bar = tqdm(starts, desc=str(key.get("what", "chunks")), disable=not self.progress, leave=False)
        pieces = []
        for start in bar:
            stop = min(start + size, count)
            pieces.append(self.get(lambda a=start, b=stop: compute(a, b), **key, start=start, stop=stop))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _path(self, key: Mapping[str, Any]) -> Path:
        if both := self.scope.keys() & key.keys():
            raise ValueError(f"{', '.join(sorted(both))} is already in the scope of this store")
        text = json.dumps({**self.scope, **key}, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.directory / digest[:2] / f"{digest[2:]}.npz"

    def _write(self, path: Path, arrays: Arrays) -> None:
        partial = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
                partial = Path(file.name)
                np.savez(file, **arrays)
            os.replace(partial, path)
        except OSError as error:
            if partial is not None:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise OSError(
                error.errno,
                f"{'no space left for' if full else 'cannot write'} {megabytes:.1f} MB in the cache {self.directory} "
                f"({error.strerror}); make room there or choose another folder with --cache; "
                "what was finished is kept",
            ) from error


def content_digest(*parts: np.ndarray | str) -> str:
    """Return the SHA-256 of arrays (type, shape and bytes) and texts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
            continue
        array = np.ascontiguousarray(part)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
