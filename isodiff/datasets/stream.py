r"""Data sets too large to fetch or index before training: read in order, from wherever a run left off.

A stream has no image number i, but it has an image at position k: with N images an epoch, epoch k div N passes all of
them through the buffer shuffle of `datasets`, seeded by (seed, epoch), and position k is what comes out at k mod N. The
same (seed, k) is the same image in every run and every process, so that a run can be interrupted and several processes
can share a batch as with any other data set. Each process reads all of the stream, and decodes only its own images.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.datasets.hub import load_table, open_cell
from isodiff.datasets.images import UNREADABLE, check_count, square

if TYPE_CHECKING:
    import datasets

BUFFER_SIZE = 2_000  # encoded images; about 200 MB of photographs of 256 pixels
_CHUNK = 32  # cells handed over at once by `datasets`; it does not change their order
_END = object()


class StreamDataset(Dataset[Tensor]):
    """Serve the images of a stream by their position in it, over as many epochs as asked for.

    Args:
        table: One column of encoded images, ``datasets.Image(decode=False)``.
        column: Its name.
        count: Number N of images it holds.
        resolution: Side R of the images in pixels.
        source: What errors call it.
        seed: Of the shuffle.
        buffer_size: Images among which the shuffle draws the next one.

    Attributes:
        sequential: True: samplers should ask for positions 0, 1, 2, … instead of permuting them.

    Note:
        Going forward, or starting at a position, costs reading what lies between, without decoding. Going back begins
        the epoch again. In a loader's worker processes each worker reads all of the stream.
    """

    channels = 3
    horizontal_flip = True
    sequential = True

    def __init__(
        self,
        table: datasets.IterableDataset,
        column: str,
        count: int,
        resolution: int,
        *,
        source: str,
        seed: int = 0,
        buffer_size: int = BUFFER_SIZE,
    ) -> None:
        if count < 1:
            raise ValueError(f"a stream must hold at least 1 image; got {count}")
        self.table, self.column, self.count, self.resolution = table, column, count, resolution
        self.source, self.seed, self.buffer_size = source, seed, buffer_size
        self._inherited: Iterator[Any] | None = None
        self._forget()

    def __len__(self) -> int:
        """Return the number of images an epoch; positions go on beyond it."""
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the images of the first epoch."""
        return (self[position] for position in range(self.count))

    def __getitem__(self, position: int) -> Tensor:
        """Return the image at a position of the stream as float32 (3, R, R) in [-1, 1].

        Raises:
            IndexError: If the position is negative.
            ValueError: If the image there does not decode, or the stream does not hold `count` images.
        """
        if position < 0:
            raise IndexError(f"positions of a stream begin at 0; got {position}")
        cell = self._cell(position)
        try:
            with open_cell(cell) as image:
                return square(image, self.resolution).float() / 127.5 - 1
        except UNREADABLE as error:
            raise ValueError(
                f"the image at position {position:,} of {self.source} cannot be read ({error}); hub: instead of "
                "stream: leaves such images out"
            ) from error

    def __getitems__(self, positions: Sequence[int]) -> list[Tensor]:
        """Return several images at once, in the order asked for, read in the order of the stream."""
        images = {position: self[position] for position in sorted(set(positions))}
        return [images[position] for position in positions]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open stream behind: a copy opens its own."""
        return {**vars(self), "_cells": None, "_inherited": None, "_last": (-1, None)}

    def _forget(self) -> None:
        self._cells: Iterator[Any] | None = None
        self._next, self._process = 0, os.getpid()
        self._last: tuple[int, Any] = (-1, None)  # asked for twice where a model is checked against its first image

    def _cell(self, position: int) -> Any:  # noqa: ANN401 - a row of the table
        """Read on to a position and return the encoded image there."""
        if self._process != os.getpid():  # two processes that share open files would each miss what the other reads
            self._inherited = self._cells  # and closing them here would wait for threads that only the parent has
            self._forget()
        if position == self._last[0]:
            return self._last[1]
        epoch, offset = divmod(position, self.count)
        if self._cells is not None and 0 < position < self._next:
            warnings.warn(
                f"{self.source} is a stream and was asked to go back from position {self._next - 1:,} to "
                f"{position:,}: it is read again from the beginning of that epoch; open it with hub: for any order",
                stacklevel=3,
            )
        if self._cells is None or position < self._next or epoch != (self._next - 1) // self.count:
            self._cells, self._next = self._epoch(epoch), epoch * self.count
        cell = next(islice(self._cells, position - self._next, None), _END)
        if cell is _END:
            self._forget()
            raise ValueError(f"{self.source} ended before image {offset + 1:,} of {self.count:,}; correct the count")
        if offset == self.count - 1 and next(self._cells, _END) is not _END:
            self._forget()
            raise ValueError(f"{self.source} holds more than {self.count:,} images; correct the count")
        self._next, self._last = position + 1, (position, cell)
        return cell

    def _epoch(self, epoch: int) -> Iterator[Any]:
        # Not set_epoch: its number lies in memory that a loader's workers share. And not iter(table): inside a worker
        # that reads a part of the shards only.
        # One shard at a time: with several, each is read by a thread, which a fork does not survive.
        shuffled = self.table.shuffle(
            generator=np.random.default_rng([self.seed, epoch]), buffer_size=self.buffer_size, max_buffer_input_shards=1
        )
        return (cell for chunk in shuffled.iter(batch_size=_CHUNK) for cell in chunk[self.column])


def open_stream(
    source: str, resolution: int, *, seed: int = 0, count: int | None = None, column: str | None = None
) -> StreamDataset:
    """Open a Hugging Face data set as a stream, without fetching, indexing or decoding it first.

    Args:
        source: ``NAME[@REVISION][#SPLIT[=COUNT]]``, as for `open_hub`; COUNT is the number of images where the data
            set's card does not tell it.
        resolution: Side R of the images in pixels.
        seed: Of the shuffle.
        count: Number of images the split must hold; by default any.
        column: The column of images; by default the first of type ``Image``.

    Returns:
        The images by their position in the stream.

    Raises:
        FileNotFoundError: If there is no such data set, as far as can be seen from here.
        ConnectionError: If the hub cannot be reached, or ``HF_HUB_OFFLINE`` is set and the data set is not cached.
        ValueError: If there is no such split or column, nothing tells the number of images, or two things tell
            different numbers.
    """
    location, marker, split = source.partition("#")
    split, equals, asked = split.partition("=")
    if equals and not (asked.isdecimal() and int(asked) > 0):
        raise ValueError(f"the number of images after '=' must be positive and whole; got {asked!r} in {source!r}")
    table, column = load_table(location + marker + split, column, streaming=True)
    known = [count] if count is not None else []
    known += [int(asked)] if equals else []
    known += _card_count(table, split or "train")
    if not known:
        raise ValueError(
            f"nothing tells how many images stream:{source} holds; give their number, "
            f"as in stream:{location}#{split or 'train'}=1000"
        )
    for number in known[1:]:
        check_count(f"stream:{source}", number, known[0])
    return StreamDataset(table, column, known[0], resolution, source=f"stream:{source}", seed=seed)


def _card_count(table: datasets.IterableDataset, split: str) -> list[int]:
    """Return the number of images that the data set's card states for a split, if it does."""
    splits = table.info.splits or {}
    parts = [part.strip() for part in split.split("+")]
    counts = [splits[part].num_examples for part in parts if part in splits]
    return [sum(counts)] if len(counts) == len(parts) and all(counts) else []
