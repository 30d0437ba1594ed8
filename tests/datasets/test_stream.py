"""Streams: the same image at the same position whatever the batch, the process or the interruption.

`accelerate launch` runs this very file on two processes; what they trained is compared here with one process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from isodiff.datasets import CATALOGUE, catalogue, open_dataset
from isodiff.datasets.hub import load_table
from isodiff.datasets.stream import StreamDataset, open_stream
from isodiff.diffusion.config import FinetuneConfig
from isodiff.diffusion.finetune import TrainingInterrupted, TrainingState, finetune
from isodiff.diffusion.global_batch import GlobalBatches

NUMBER = 21  # images, in three shards of seven
CONFIG = FinetuneConfig(num_steps=12, batch_size=4, lambda_iso=0.1, normalize=True, p=0.3, checkpoint_every=5, seed=1)


def _cell(value: int) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (10 * value, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _write(folder: Path, cells: list[dict[str, object] | None], *, card: int | None = None) -> Path:
    folder.mkdir(parents=True)
    features = datasets.Features({"drawing": datasets.Image()})
    for shard in range(0, len(cells), 7):
        rows = datasets.Dataset.from_dict({"drawing": cells[shard : shard + 7]}, features=features)
        rows.to_parquet(folder / f"train-{shard:05d}.parquet")
    if card is not None:
        split = f"  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: {card}\n"
        (folder / "README.md").write_text(
            f"---\ndataset_info:\n  features:\n  - name: drawing\n    dtype: image\n{split}---\n"
        )
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set as the hub holds it: shards of parquet and a card."""
    datasets.disable_progress_bars()
    return _write(tmp_path_factory.mktemp("hub") / "set", [_cell(i) for i in range(NUMBER)], card=NUMBER)


def _stream(shards: Path, *, buffer_size: int = 8, seed: int = 1, count: int = NUMBER) -> StreamDataset:
    table, column = load_table(str(shards), None, streaming=True)
    return StreamDataset(table, column, count, 8, source="here", seed=seed, buffer_size=buffer_size)


def _values(images: torch.Tensor | list[torch.Tensor]) -> list[int]:
    """Return which image each is."""
    images = images if isinstance(images, torch.Tensor) else torch.stack(images)
    return ((images[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


# Positions


def test_it_is_the_hubs_own_shuffle(shards: Path) -> None:
    """Position k of epoch e is what `datasets` yields as number k of a buffer shuffle seeded by (seed, e)."""
    rows = datasets.load_dataset(str(shards), split="train", streaming=True)
    stream = _stream(shards, seed=5)
    for epoch in range(2):
        order = np.random.default_rng([5, epoch])
        shuffled = rows.shuffle(generator=order, buffer_size=8, max_buffer_input_shards=1)
        expected = [row["drawing"].getpixel((0, 0))[0] // 10 for row in shuffled]
        assert _values(stream.__getitems__(range(epoch * NUMBER, (epoch + 1) * NUMBER))) == expected


@pytest.mark.parametrize("buffer_size", [4, 100])
def test_epochs_hold_the_same_images_in_another_order(shards: Path, buffer_size: int) -> None:
    """Every image once an epoch; seeds and epochs differ in order only."""
    orders = []
    for seed in (0, 1):
        rows = _values(_stream(shards, buffer_size=buffer_size, seed=seed).__getitems__(range(2 * NUMBER)))
        orders += [rows[:NUMBER], rows[NUMBER:]]
    assert all(sorted(order) == list(range(NUMBER)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@settings(max_examples=10)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=10), st.integers(0, 2 * NUMBER))
def test_the_same_image_at_a_position_whatever_the_batches(shards: Path, sizes: list[int], start: int) -> None:
    """Batches of any sizes from any start are slices of one sequence."""
    whole = _values(_stream(shards).__getitems__(range(start, start + sum(sizes))))
    stream, position, seen = _stream(shards), start, []
    for size in sizes:
        seen += _values(stream.__getitems__(range(position, position + size)))
        position += size
    assert seen == whole


@settings(max_examples=10)
@given(st.lists(st.integers(0, 3 * NUMBER), min_size=1, max_size=8))
def test_any_order_of_positions_gives_the_same_images(shards: Path, positions: list[int]) -> None:
    """Going back is slow, not wrong; a batch comes in the order asked for."""
    whole = _values(_stream(shards).__getitems__(range(3 * NUMBER + 1)))
    stream = _stream(shards)
    assert _values(stream.__getitems__(positions)) == [whole[position] for position in positions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert _values([stream[position] for position in positions]) == [whole[position] for position in positions]


def test_going_back_warns_and_starting_again_does_not(shards: Path) -> None:
    """Neither does asking twice for the last image, as a check of the first image before training does."""
    stream = _stream(shards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(stream[0], stream[0])
        first = torch.stack(list(stream))
        assert torch.equal(torch.stack(list(stream)), first)
    with pytest.warns(UserWarning, match=r"here is a stream and was asked to go back from position 20 to 3"):
        assert torch.equal(stream[3], first[3])
    with pytest.raises(IndexError, match="begin at 0; got -1"):
        stream[-1]


def test_it_is_the_data_set_that_hub_opens(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same images, bit for bit, in another order; and what `open_dataset` promises of each."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    whole, stream = open_dataset(f"hub:{shards}", 6), open_dataset(f"stream:{shards}", 6, seed=3)
    assert (len(stream), stream.channels, stream.resolution, stream.horizontal_flip) == (NUMBER, 3, 6, True)
    assert stream.sequential
    assert not getattr(whole, "sequential", False)
    images = torch.stack(list(stream))
    assert torch.equal(images[np.argsort(_values(images))], torch.stack(list(whole)))


# Processes and workers


def test_workers_and_forks_read_what_the_parent_reads(shards: Path) -> None:
    """Workers split batches, not shards; a stream already open survives the fork and the pickle."""
    stream = _stream(shards)
    sampler = list(GlobalBatches(NUMBER, CONFIG, 3, Accelerator(cpu=True), sequential=True))
    expected = [_values(_stream(shards).__getitems__(batch)) for batch in sampler]
    assert stream[0].shape == (3, 8, 8)
    for num_workers in (0, 2):
        loader = DataLoader(stream, batch_sampler=sampler, num_workers=num_workers)
        assert [_values(batch) for batch in loader] == expected
    assert _values(pickle.loads(pickle.dumps(stream)).__getitems__(range(5))) == _values(
        _stream(shards).__getitems__(range(5))
    )


# Training


def _tiny() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


def _train(shards: str, file: Path, **options: object) -> tuple[torch.Tensor, list[TrainingState]]:
    pipeline, images = _tiny(), open_dataset(f"stream:{shards}", 8, seed=CONFIG.seed)
    states = []
    with contextlib.suppress(TrainingInterrupted):
        states.extend(state for state in finetune(pipeline, images, CONFIG, checkpoint=file, **options))
    return torch.cat([p.detach().flatten() for p in pipeline.unet.parameters()]), states


def _two_processes(shards: str, folder: Path) -> None:
    """Train on each process, and write down what it saw."""
    accelerator = Accelerator(cpu=True)
    weights, states = _train(shards, folder / "two", accelerator=accelerator)
    torch.save(weights, folder / f"weights-{accelerator.process_index}.pt")
    (folder / f"seen-{accelerator.process_index}.json").write_text(
        json.dumps({"processes": accelerator.num_processes, "dsm": [state.dsm for state in states]})
    )


def test_an_interrupted_run_resumes_to_the_same_bits(shards: Path, tmp_path: Path) -> None:
    """In the second epoch; over the twelve steps the run passes through more than two."""
    accelerator = Accelerator(cpu=True)
    whole, expected = _train(str(shards), tmp_path / "whole", accelerator=accelerator)
    asked = iter([0] * 6 + [signal.SIGTERM])
    _, states = _train(str(shards), tmp_path / "cut", accelerator=accelerator, stop=lambda: next(asked))
    resumed, rest = _train(str(shards), tmp_path / "cut", accelerator=accelerator)
    assert (len(states), len(rest)) == (7, 5)
    assert states + rest == expected
    assert torch.equal(resumed, whole)


def test_two_processes_train_as_one(shards: Path, tmp_path: Path) -> None:
    """Each reads all of the stream and keeps its rows; losses and weights are those of one process, to rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On a machine without GPU, --multi_gpu means several processes.
    launch = [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        str(port),
        __file__,
        str(shards),
        str(tmp_path),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-5000:]
    one, states = _train(str(shards), tmp_path / "one", accelerator=Accelerator(cpu=True))
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"seen-{rank}.json").read_text())
        assert seen["processes"] == 2
        assert seen["dsm"] == pytest.approx([state.dsm for state in states], rel=1e-4)
    weights = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*weights)
    # Adam divides by the gradient's own size: where that is rounding, so is the step. Hence all weights at once.
    start = torch.cat([p.detach().flatten() for p in _tiny().unet.parameters()])
    assert (weights[0] - one).norm() < 0.05 * (one - start).norm()


# How many images there are


@pytest.mark.parametrize(
    ("count", "message"), [(NUMBER + 2, "ended before image 22 of 23"), (NUMBER - 2, "more than 19")]
)
def test_a_wrong_number_of_images_ends_the_first_epoch(shards: Path, count: int, message: str) -> None:
    """Otherwise epochs would repeat or leave out images without a word."""
    stream = _stream(shards, count=count)
    with pytest.raises(ValueError, match=rf"here (holds )?{message}.*correct the count"):
        stream.__getitems__(range(count))


def test_the_number_of_images_comes_from_the_card_or_the_reader(shards: Path, tmp_path: Path) -> None:
    """With neither, or with two that differ, it is an error before anything is read."""
    bare = _write(tmp_path / "bare", [_cell(i) for i in range(3)])
    with pytest.raises(ValueError, match=r"nothing tells how many images .* holds; .*#train=1000"):
        open_dataset(f"stream:{bare}", 8)
    assert len(open_dataset(f"stream:{bare}#train=3", 8)) == 3
    assert len(open_stream(str(bare), 8, count=3)) == 3
    assert len(open_dataset(f"stream:{shards}#train={NUMBER}", 8)) == NUMBER
    with pytest.raises(ValueError, match="holds 21 images where 20 are expected"):
        open_dataset(f"stream:{shards}#train=20", 8)
    for asked in ("0", "many", "-3", ""):
        with pytest.raises(ValueError, match=rf"positive and whole; got '{asked}'"):
            open_dataset(f"stream:{bare}#train={asked}", 8)
    with pytest.raises(ValueError, match="at least 1 image; got 0"):
        _stream(shards, count=0)


def test_splits_join(tmp_path: Path) -> None:
    """As LSUN's do in the table, whose entry is streamed and checked against the card."""
    folder = _write(tmp_path / "set", [_cell(i) for i in range(3)])
    (folder / "train-00000.parquet").rename(folder / "test-00000.parquet")
    features = datasets.Features({"drawing": datasets.Image()})
    datasets.Dataset.from_dict({"drawing": [_cell(5)]}, features=features).to_parquet(folder / "train-00000.parquet")
    stream = open_dataset(f"stream:{folder}#train+test=4", 8)
    assert sorted(_values(list(stream))) == [0, 1, 2, 5]
    with pytest.raises(ValueError, match=r"does not open \(Bad split: nowhere"):
        open_dataset(f"stream:{folder}#nowhere=4", 8)


def test_a_streamed_entry_of_the_table(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is checked against the card."""
    for count, opens in ((NUMBER, True), (NUMBER + 1, False)):
        source = catalogue.Source(str(shards), "train", "drawing", count, None, count, 256, True, "-")
        monkeypatch.setitem(CATALOGUE, "imagenet", source)
        if opens:
            assert len(open_dataset("imagenet", 8)) == NUMBER
        else:
            with pytest.raises(ValueError, match="holds 21 images where 22 are expected"):
                open_dataset("imagenet", 8)


@pytest.mark.parametrize("cell", [None, {"bytes": b"bad", "path": None}], ids=["empty", "broken"])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, cell: dict[str, object] | None) -> None:
    """It cannot be skipped without moving all that follow, so it is an error, and images beside it still come."""
    stream = _stream(_write(tmp_path / "set", [_cell(0), cell, _cell(2)]), count=3, buffer_size=1)
    assert _values([stream[0]]) == [0]
    with pytest.raises(ValueError, match=r"the image at position 1 of here cannot be read \(.*hub: instead of stream:"):
        stream[1]
    assert _values([stream[2]]) == [2]


if __name__ == "__main__":
    _two_processes(sys.argv[1], Path(sys.argv[2]))
