"""Arrays that are computed once: on disk, by what they depend on, so that a killed measurement goes on.

A metric cuts its work into chunks; each chunk is a function of its key alone (model, protocol, seed, first and last
unit), so what is on disk never has to be made again, and what is made again is the same. For the same reason several
processes can share the work: each makes its chunks, all wait, and each reads the others' from the folder.
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import PartialState

Arrays = dict[str, np.ndarray]
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


class Store:
    """A folder of named arrays, one file a key; without a folder, nothing is kept.

    Args:
        directory: The folder, made when first needed, or None.
        progress: Whether to show a progress bar for work in chunks.
        processes: Those that share the work, from accelerate; this one alone by default. All must ask for the same
            keys in the same order, and see the same folder.
        **scope: Entries that every key of this store shares, plain JSON values.

    Raises:
        ValueError: If several processes would share the work and there is no folder.

    Note:
        With N processes, piece i of the work is made by process i mod N; what is not asked of the store is made by
        every process. A process that fails leaves the others waiting at the end of the piece of work: with gloo they
        fail as soon as it is gone, with NCCL they wait until the launcher ends them, which `accelerate launch` and
        `torchrun` do when the first one exits with an error.

        Files are written under another name and then renamed, so that a killed process leaves either a whole file or
        none that counts. A file that does not read back is computed again, with a warning.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        progress: bool = False,
        processes: PartialState | None = None,
        **scope: Any,  # noqa: ANN401 - plain JSON values
    ) -> None:
        if directory is None and processes is not None and processes.num_processes > 1:
            raise ValueError(
                f"{processes.num_processes} processes share their work through a folder and got none; give a cache "
                "directory that all of them see"
            )
        self.directory = None if directory is None else Path(directory)
        self.progress = progress
        self.processes = processes
        self.scope = scope

    def scoped(self, **scope: Any) -> Store:  # noqa: ANN401 - plain JSON values
        """Return the same store with more entries in every key."""
        return Store(self.directory, progress=self.progress, processes=self.processes, **self.scope, **scope)

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
        return self.get_all([(compute, key)])[0]

    def get_all(self, work: Sequence[tuple[Callable[[], Arrays], Mapping[str, Any]]]) -> list[Arrays]:
        """Return the arrays of several keys, in order; of N processes each computes every N-th.

        Args:
            work: Pairs of what `get` takes; ``"what"`` of the first key names the progress bar.

        Returns:
            The arrays of each key, by name.

        Raises:
            OSError: As `get`; or what another process has written is not to be read here.
        """
        first, step = (self.processes.process_index, self.processes.num_processes) if self.processes else (0, 1)
        name = str(work[0][1].get("what", "chunks")) if work else ""
        bar = tqdm(work[first::step], desc=name, disable=not self.progress or len(work) < 2, leave=False)
        made = [self._get(compute, key) for compute, key in bar]
        if step == 1:
            return made
        del made
        self.processes.wait_for_everyone()
        return [self._read(key) for _, key in work]

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
            raise ValueError(
                f"count and size (batch_size, the rows at a time) must be at least 1; got {count} and {size}"
            )
        bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
        pieces = self.get_all([(partial(compute, a, b), {**key, "start": a, "stop": b}) for a, b in bounds])
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _get(self, compute: Callable[[], Arrays], key: Mapping[str, Any]) -> Arrays:
        if self.directory is None:
            return compute()
        path = self._path(key)
        if path.is_file():
            try:
                return _load(path)
            except _DAMAGE as error:
                warnings.warn(f"{path} is damaged ({error}); it is computed again", stacklevel=4)
        arrays = compute()
        self._write(path, arrays)
        return arrays

    def _read(self, key: Mapping[str, Any]) -> Arrays:
        path = self._path(key)
        try:
            return _load(path)
        except _DAMAGE as error:
            raise OSError(
                f"process {self.processes.process_index} cannot read {path}, which another process has made ({error}); "
                "give a cache directory that all processes see"
            ) from error

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


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


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
