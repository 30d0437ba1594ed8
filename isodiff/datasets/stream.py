"""Data sets too large to fetch or index before training: read in order, from wherever a run left off.

With N images, the image at position k is number k mod N of the buffer shuffle of `datasets` seeded by (seed, k div N):
the same in every run and process.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from isodiff.datasets.hub import load_table, open_cell
from isodiff.datasets.images import Shape, check_count, fit

_END = object()


class StreamDataset(Dataset[Tensor]):
    """Serve `NAME[@REVISION][#SPLIT[=COUNT]]` by position, over epochs; `count`, COUNT and its card must agree."""

    horizontal_flip, sequential = True, True  # samplers ask a sequential one for positions 0, 1, 2, …

    def __init__(
        self, source: str, shape: Shape, *, seed: int = 0, count: int | None = None, buffer_size: int = 2_000
    ) -> None:
        location, _, split = source.partition("#")
        split, equals, asked = split.partition("=")
        if equals and not (asked.isdecimal() and int(asked) > 0):
            raise ValueError(f"the number of images after '=' must be positive and whole; got {asked!r} in {source!r}")
        split = split or "train"
        self.source, self.shape, self.seed, self.buffer_size = f"stream:{source}", shape, seed, buffer_size
        self.channels, self.resolution, _ = shape
        self.table, self.column = load_table(f"{location}#{split}", streaming=True)
        known = [number for number in (count, int(asked or 0)) if number]
        stated, parts = self.table.info.splits or {}, [part.strip() for part in split.split("+")]
        if all(part in stated and stated[part].num_examples for part in parts):
            known.append(sum(stated[part].num_examples for part in parts))
        if not known:
            example = f"stream:{location}#{split}=1000"
            raise ValueError(f"nothing tells how many images {self.source} holds; give their number, as in {example}")
        for number in known:
            check_count(self.source, number, known[0])
        self.count = known[0]
        self._forget()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(self.count))

    def __getitem__(self, position: int) -> Tensor:
        if position < 0:
            raise IndexError(f"positions of a stream begin at 0; got {position}")
        cell = self._cell(position)
        try:
            with open_cell(cell) as image:
                return fit(image, self.shape).float() / 127.5 - 1
        except Exception as error:  # whatever a decoder raises
            what = f"the image at position {position:,} of {self.source} cannot be read ({error})"
            raise ValueError(f"{what}; hub: instead of stream: leaves such images out") from error

    def __getitems__(self, positions: Sequence[int]) -> list[Tensor]:
        images = {position: self[position] for position in sorted(set(positions))}  # read in the order of the stream
        return [images[position] for position in positions]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cells": None, "_last": (-1, None)}  # a copy opens its own stream

    def _forget(self) -> None:
        self._cells: Iterator[Any] | None = None
        self._next, self._process = 0, os.getpid()
        self._last: tuple[int, Any] = (-1, None)  # asked for twice where a model is checked against its first image

    def _cell(self, position: int) -> Any:  # noqa: ANN401 - a row of the table
        """Read on to a position and return the encoded image there."""
        if self._process != os.getpid():  # two processes that share open files would each miss what the other reads
            self._forget()
        if position == self._last[0]:
            return self._last[1]
        epoch, offset = divmod(position, self.count)
        if self._cells is None or position < self._next or epoch != (self._next - 1) // self.count:
            self._cells, self._next = self._epoch(epoch), epoch * self.count
        cell = next(islice(self._cells, position - self._next, None), _END)
        wrong = f" ended before image {offset + 1:,} of {self.count:,}" if cell is _END else ""
        if offset == self.count - 1 and next(self._cells, _END) is not _END:
            wrong = f" holds more than {self.count:,} images"
        if wrong:
            self._forget()
            raise ValueError(f"{self.source}{wrong}; correct the count")
        self._next, self._last = position + 1, (position, cell)
        return cell

    def _epoch(self, epoch: int) -> Iterator[Any]:
        # Not set_epoch: its number lies in memory that a loader's workers share. And not iter(table): inside a worker
        # that reads a part of the shards only. One shard at a time: with several, each is read by a thread, which a
        # fork does not survive. The size of chunks does not change their order.
        order = np.random.default_rng([self.seed, epoch])
        shuffled = self.table.shuffle(generator=order, buffer_size=self.buffer_size, max_buffer_input_shards=1)
        return (cell for chunk in shuffled.iter(batch_size=32) for cell in chunk[self.column])
