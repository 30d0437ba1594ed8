"""Tar archives without unpacking: the same images as unpacked, at any offset, from any process, and damage named."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from isodiff.datasets import open_dataset
from isodiff.datasets.folders import open_folder
from isodiff.datasets.images import DecodedOnDemand, ImageDataset

ON_DEMAND = 10  # bytes of memory: nothing fits


def photograph(seed: int) -> bytes:
    """Encode random pixels as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], *, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    """Write an archive, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def stacked(dataset: ImageDataset) -> torch.Tensor:
    """Return all images."""
    return torch.stack(list(dataset))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("memory_limit", [10**6, ON_DEMAND])
def test_a_plain_tar_is_the_folder_it_was_made_from(tmp_path: Path, form: int, memory_limit: int) -> None:
    """Whatever the dialect, with long names, other files between the images, and in memory or not."""
    long = "/".join(["a directory with quite a long name"] * 4) + "/z.png"  # beyond the 100 bytes of a plain header
    contents = {name: photograph(i) for i, name in enumerate(["b.png", long, "a.png", "sub/c.png"])}
    for name, content in contents.items():
        (tmp_path / "loose" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / name).write_bytes(content)
    others = {"notes.txt": b"x" * 700, "._a.png": b"a resource fork"}
    archive = write_tar(tmp_path / "images.tar", others | contents, form=form)
    loose = open_folder(tmp_path / "loose", 8)
    packed = open_folder(archive, 8, memory_limit=memory_limit)
    assert isinstance(packed.pixels, DecodedOnDemand) == (memory_limit == ON_DEMAND)
    assert packed.names == loose.names == tuple(sorted(contents))
    assert torch.equal(stacked(packed), stacked(loose))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageDataset, ImageDataset]:
    """Open one archive in memory and on demand."""
    archive = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", {f"{i}.png": photograph(i) for i in range(6)})
    return open_folder(archive, 8), open_folder(archive, 8, memory_limit=ON_DEMAND)


@given(positions=st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_any_order_of_access(both: tuple[ImageDataset, ImageDataset], positions: list[int]) -> None:
    """Random access gives what reading in order gives."""
    held, lazy = (torch.stack(dataset.__getitems__(positions)) for dataset in both)
    assert torch.equal(held, lazy)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write a directory of two shards, one in a sub-directory, and two loose images."""
    write_tar(tmp_path / "b.tar", {"2.png": photograph(2), "1.png": photograph(1)})
    write_tar(tmp_path / "sub" / "a.tar", {"x/3.png": photograph(3)})
    (tmp_path / "a.png").write_bytes(photograph(0))
    (tmp_path / "sub" / "z.png").write_bytes(photograph(4))
    (tmp_path / "._b.tar").write_bytes(b"a resource fork")
    return tmp_path


@pytest.mark.parametrize("memory_limit", [10**6, ON_DEMAND])
def test_a_directory_of_shards_is_one_data_set(shards: Path, memory_limit: int) -> None:
    """Shards and loose images together, in the order of their names."""
    dataset = open_dataset(f"folder:{shards}", 12, memory_limit=memory_limit)
    assert dataset.names == ("a.png", "b.tar/1.png", "b.tar/2.png", "sub/a.tar/x/3.png", "sub/z.png")
    expected = [np.array(Image.open(io.BytesIO(photograph(i)))) for i in range(5)]
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(stacked(dataset), expected)


def test_workers_and_forks_read_what_the_parent_reads(shards: Path) -> None:
    """Several processes at one archive, one of them forked after it was read, all see the same."""
    dataset = open_dataset(f"folder:{shards}", 8, memory_limit=ON_DEMAND)
    here = stacked(dataset)
    there = torch.cat(list(DataLoader(dataset, batch_size=1, num_workers=2)))
    assert torch.equal(here, there)
    assert torch.equal(stacked(pickle.loads(pickle.dumps(dataset))), here)  # as workers that are spawned get it
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # both processes read at once
        os.write(writer, b"same" if all(torch.equal(stacked(dataset), here) for _ in range(20)) else b"else")
        os._exit(0)
    assert all(torch.equal(stacked(dataset), here) for _ in range(20))
    os.waitpid(child, 0)
    assert os.read(reader, 4) == b"same"


def test_headers_are_not_kept(tmp_path: Path) -> None:
    """Hundreds of headers pass through, and what stays is names and three numbers an image."""
    content = photograph(0)
    archive = write_tar(tmp_path / "many.tar", {f"{i:05d}.png": content for i in range(500)})
    reader = open_folder(archive, 4, memory_limit=ON_DEMAND).pixels.read
    assert len(reader.names) == 500
    assert reader.offset.nbytes + reader.size.nbytes + reader.archive.nbytes == 20 * 500
    assert np.array_equal(np.diff(reader.offset), np.full(499, np.diff(reader.offset)[0]))  # one record after another


def test_broken_images_inside_are_skipped_and_reported(tmp_path: Path) -> None:
    """As with loose files."""
    files = {"a.png": photograph(0), "b.png": photograph(1)[:60], "c.png": b"", "d.png": photograph(3)}
    archive = write_tar(tmp_path / "images.tar", files)
    with pytest.warns(UserWarning, match=r"skipped 2 of 4 images in .*: b\.png .*; c\.png"):
        dataset = open_folder(archive, 8, memory_limit=ON_DEMAND)
    assert dataset.names == ("a.png", "d.png")
    assert len(stacked(dataset)) == 2


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.1, 0.99])
def test_a_shard_cut_short_is_an_error(shards: Path, fraction: float) -> None:
    """A download that broke off never becomes a smaller data set."""
    with tarfile.open(shards / "b.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + int(last.size * fraction) if fraction >= 0 else last.offset + 100  # within its header
    (shards / "b.tar").write_bytes((shards / "b.tar").read_bytes()[:end])
    with pytest.raises(ValueError, match=r"b\.tar is damaged or cut short"):
        open_dataset(f"folder:{shards}", 8)


def test_a_header_that_is_overwritten_is_an_error(tmp_path: Path) -> None:
    """Tarfile takes it for the end; the images behind it would be lost without a word."""
    archive = write_tar(tmp_path / "images.tar", {f"{i}.png": photograph(i) for i in range(4)})
    content = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        at = tar.getmembers()[2].offset
    content[at : at + 200] = b"?" * 200
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged or cut short.*no header at byte {at:,}"):
        open_folder(archive, 8)


def test_compressed_shards_are_named(shards: Path) -> None:
    """In a directory they cannot be read in any order: a warning, or an error if they pose as plain ones."""
    write_tar(shards / "c.tar.gz", {"5.png": photograph(5)}, mode="w:gz")
    with pytest.warns(UserWarning, match=r"ignored 1 compressed archives in .*: c\.tar\.gz; decompress them"):
        assert len(open_dataset(f"folder:{shards}", 8)) == 5
    (shards / "c.tar.gz").rename(shards / "c.tar")
    with pytest.raises(ValueError, match=r"c\.tar is damaged or cut short, or not a plain tar archive"):
        open_dataset(f"folder:{shards}", 8)


def test_the_number_of_images_is_checked_before_any_is_decoded(tmp_path: Path) -> None:
    """Nothing here decodes, so that an error about the number can only come first."""
    for archive in (
        write_tar(tmp_path / "plain.tar", {"a.png": b"broken"}),
        write_tar(tmp_path / "compressed.tar.xz", {"a.png": b"broken"}, mode="w:xz"),
    ):
        with pytest.raises(ValueError, match="holds 1 images where 2 are expected"):
            open_folder(archive, 8, count=2)
