"""Batches of one run over several processes: every image once an epoch, streams in order, rows disjoint."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.global_batch import GlobalBatches, generator_of


def _batches(num_images: int, config: FinetuneConfig, start: int = 0, **options: bool) -> list[list[int]]:
    return list(GlobalBatches(num_images, config, start, Accelerator(cpu=True), **options))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_a_run_that_starts_later_goes_on_as_the_whole(images: int, size: int, steps: int, sequential: bool) -> None:
    """From any step, in either order; an epoch holds every image once, and a stream's positions go on beyond it."""
    config = FinetuneConfig(num_steps=steps, batch_size=size, seed=3)
    whole = _batches(images, config, sequential=sequential)
    assert [len(batch) for batch in whole] == [size] * steps
    for start in range(steps + 1):
        assert _batches(images, config, start, sequential=sequential) == whole[start:]
    rows = [position for batch in whole for position in batch]
    if sequential:
        assert rows == list(range(size * steps))
    for epoch in range(len(rows) // images):
        part = rows[epoch * images : (epoch + 1) * images]
        assert sorted(position % images for position in part) == list(range(images))


def test_the_order_of_an_epoch_is_the_permutation_of_its_seed() -> None:
    """As it was for every run so far, so that their checkpoints resume."""
    config = FinetuneConfig(num_steps=5, batch_size=4, seed=7)
    expected = [torch.randperm(10, generator=generator_of(7, epoch, "epoch")) for epoch in range(2)]
    assert [row for batch in _batches(10, config) for row in batch] == torch.cat(expected).tolist()


@given(st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_processes_share_the_rows(processes: int, per_process: int, sequential: bool) -> None:
    """Each row of the global batch goes to one process, in the order in which `own_rows` cuts what is drawn."""
    config = FinetuneConfig(num_steps=3, batch_size=processes * per_process)
    parts = [
        list(
            GlobalBatches(
                50, config, 0, SimpleNamespace(process_index=i, num_processes=processes), sequential=sequential
            )
        )
        for i in range(processes)
    ]
    merged = [[row for rows in zip(*step, strict=True) for row in rows] for step in zip(*parts, strict=True)]
    assert merged == _batches(50, config, sequential=sequential)
