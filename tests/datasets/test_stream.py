"""Streams: the same image at the same position whatever the batch, the process or the interruption."""

import contextlib
import itertools
import pickle
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from isodiff.datasets import CATALOGUE, open_dataset
from isodiff.datasets.stream import StreamDataset
from isodiff.diffusion import FinetuneConfig, TrainingInterrupted, TrainingState
from isodiff.diffusion.finetune import finetune
from isodiff.diffusion.training import global_batches

from ..diffusion.tiny import tiny_ddpm, weights
from .pictures import flat, write_table

NUMBER = 21  # images, in three shards of seven
CONFIG = FinetuneConfig(num_steps=12, batch_size=4, lambda_iso=0.1, normalize=True, p=0.3, checkpoint_every=5, seed=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("hub") / "set", [flat(10 * i, 0, 0) for i in range(NUMBER)], card=NUMBER)


def _stream(source: Path | str, *, seed: int = 1, buffer_size: int = 8) -> StreamDataset:
    return StreamDataset(str(source), (3, 8, 8), seed=seed, buffer_size=buffer_size)


def _values(images: torch.Tensor | list[torch.Tensor]) -> list[int]:
    images = images if isinstance(images, torch.Tensor) else torch.stack(images)
    return ((images[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def test_it_is_the_hubs_own_shuffle(shards: Path) -> None:
    """Position k of epoch e is what `datasets` yields as number k of a buffer shuffle seeded by (seed, e)."""
    rows, orders = datasets.load_dataset(str(shards), split="train", streaming=True), set()
    for seed, epoch, buffer_size in itertools.product((0, 5), (0, 1), (4, 100)):
        generator, stream = np.random.default_rng([seed, epoch]), _stream(shards, seed=seed, buffer_size=buffer_size)
        shuffled = rows.shuffle(generator=generator, buffer_size=buffer_size, max_buffer_input_shards=1)
        expected = [row["drawing"].getpixel((0, 0))[0] // 10 for row in shuffled]
        assert _values(stream.__getitems__(range(epoch * NUMBER, (epoch + 1) * NUMBER))) == expected
        assert sorted(expected) == list(range(NUMBER))
        orders.add(tuple(expected))
    assert len(orders) == 8  # each seed and epoch in an order of its own


@settings(max_examples=10)
@given(st.lists(st.lists(st.integers(0, 3 * NUMBER), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_same_image_at_a_position_whatever_the_batches(shards: Path, batches: list[list[int]]) -> None:
    """Going back is slow, not wrong; a batch comes in the order asked for, a position as often as asked."""
    whole, stream = _values(_stream(shards).__getitems__(range(3 * NUMBER + 1))), _stream(shards)
    for batch in batches:
        assert _values(stream.__getitems__(batch)) == [whole[position] for position in batch]
        assert _values(_stream(shards).__getitems__(batch)) == [whole[position] for position in batch]


def test_it_is_the_data_set_that_hub_opens(shards: Path) -> None:
    """Same images, bit for bit, in another order; and what `open_dataset` promises of each."""
    whole, stream = open_dataset(f"hub:{shards}", 6), open_dataset(f"stream:{shards}", 6, seed=3)
    assert (len(stream), stream.channels, stream.resolution, stream.horizontal_flip) == (NUMBER, 3, 6, True)
    assert stream.sequential
    assert not getattr(whole, "sequential", False)
    with pytest.raises(IndexError, match="begin at 0; got -1"):
        stream[-1]
    images = torch.stack(list(stream))
    assert torch.equal(images[np.argsort(_values(images))], torch.stack(list(whole)))


def test_workers_and_forks_read_what_the_parent_reads(shards: Path) -> None:
    """Workers split batches, not shards; a stream already open survives the fork and the pickle."""
    stream = _stream(shards)
    sampler = list(global_batches(NUMBER, CONFIG, 3, Accelerator(cpu=True), sequential=True))
    expected = [_values(_stream(shards).__getitems__(batch)) for batch in sampler]
    assert stream[0].shape == (3, 8, 8)
    for num_workers in (0, 2):
        loader = DataLoader(stream, batch_sampler=sampler, num_workers=num_workers)
        assert [_values(batch) for batch in loader] == expected
    copy = pickle.loads(pickle.dumps(stream))
    assert _values(copy.__getitems__(range(5))) == _values(_stream(shards).__getitems__(range(5)))


def test_an_interrupted_run_resumes_to_the_same_bits(shards: Path, tmp_path: Path) -> None:
    """In the second epoch; over the twelve steps the run passes through more than two."""

    def trained(name: str, **options: object) -> tuple[torch.Tensor, list[TrainingState]]:
        pipeline, states = tiny_ddpm(), []
        images = open_dataset(f"stream:{shards}", 8, seed=CONFIG.seed)
        with contextlib.suppress(TrainingInterrupted):
            states.extend(finetune(pipeline, images, CONFIG, checkpoint=tmp_path / name, **options))
        return weights(pipeline.unet), states

    whole, expected = trained("whole")
    asked = iter([0] * 6 + [signal.SIGTERM])
    _, states = trained("cut", stop=lambda: next(asked))
    resumed, rest = trained("cut")
    assert (len(states), len(rest)) == (7, 5)
    assert states + rest == expected
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize(
    ("count", "message"), [(NUMBER + 2, "ended before image 22 of 23"), (NUMBER - 2, "holds more than 19")]
)
def test_a_wrong_number_of_images_ends_the_first_epoch(tmp_path: Path, count: int, message: str) -> None:
    bare = write_table(tmp_path / "bare", [flat(i, 0, 0) for i in range(NUMBER)])
    with pytest.raises(ValueError, match=rf"{message}.*correct the count"):
        _stream(f"{bare}#train={count}").__getitems__(range(count))


@pytest.mark.parametrize("cell", [None, b"bad"], ids=["empty", "broken"])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, cell: bytes | None) -> None:
    """It cannot be skipped without moving all that follow, so it is an error, and images beside it still come."""
    folder = write_table(tmp_path / "set", [flat(0, 0, 0), cell, flat(20, 0, 0)])
    stream = _stream(f"{folder}#train=3", buffer_size=1)
    assert _values([stream[0]]) == [0]
    with pytest.raises(ValueError, match=r"the image at position 1 of .* cannot be read \(.*hub: instead of stream:"):
        stream[1]
    assert _values([stream[2]]) == [2]


def test_splits_join(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "set", [flat(10 * i, 0, 0) for i in range(3)], split="test")
    write_table(folder, [flat(50, 0, 0)])
    assert sorted(_values(list(open_dataset(f"stream:{folder}#train+test=4", 8)))) == [0, 1, 2, 5]


def test_the_number_of_images_comes_from_the_card_or_the_reader(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = write_table(tmp_path / "bare", [flat(0, 0, 0)] * 3)
    assert len(StreamDataset(str(bare), (3, 8, 8), count=3)) == 3
    assert len(open_dataset(f"stream:{shards}#train={NUMBER}", 8)) == NUMBER
    entry = CATALOGUE["imagenet"]._replace(spec=f"stream:{shards}#train", count=NUMBER)
    monkeypatch.setitem(CATALOGUE, "imagenet", entry)
    assert len(open_dataset("imagenet", 8)) == NUMBER
    monkeypatch.setitem(CATALOGUE, "imagenet", entry._replace(count=NUMBER + 1))
    with pytest.raises(ValueError, match="holds 21 images where 22 are expected"):
        open_dataset("imagenet", 8)


@pytest.mark.parametrize(
    ("card", "split", "message"),
    [
        (None, "", r"nothing tells how many images .* holds; .*#train=1000"),
        (3, "#train=2", "holds 3 images where 2 are expected"),
        (3, "#train=0", r"positive and whole; got '0'"),
        (3, "#nowhere=4", r"does not open \(Bad split: nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_read(
    card: int | None, split: str, message: str, tmp_path: Path
) -> None:
    folder = write_table(tmp_path / "set", [b"bad"] * 3, card=card)
    with pytest.raises(ValueError, match=message):
        open_dataset(f"stream:{folder}{split}", 8)
