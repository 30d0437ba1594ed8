"""Folders, archives, digits and hub data sets: the right pixels in, and every wrong input named."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from isodiff.datasets import open_dataset
from isodiff.datasets.images import DecodedOnDemand, square

PHOTOGRAPHS = Path(
    os.environ.get("ISODIFF_PHOTOGRAPHS", Path(__file__).parents[3] / "shared/data/faces64_train.tar.xz")
)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> Image.Image:
    """Make a flat picture."""
    return Image.new("RGB", size, colour)


def as_bytes(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Encode a picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(seed: int, size: int = 64) -> Image.Image:
    """Make a picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three flat colours in three formats, one of them in a sub-folder, written out of order."""
    (tmp_path / "inner").mkdir()
    picture((0, 0, 255)).save(tmp_path / "inner" / "c.webp", lossless=True)
    picture((0, 255, 0)).save(tmp_path / "b.png")
    picture((255, 0, 0)).save(tmp_path / "a_age3.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.jpg").write_bytes(b"a resource fork, not an image")
    return tmp_path


def pack(folder: Path, archive: Path, mode: str) -> Path:
    """Write a folder to an archive, last name first."""
    with tarfile.open(archive, mode) as tar:
        for file in sorted(folder.rglob("*"), reverse=True):
            tar.add(file, file.relative_to(folder).as_posix(), recursive=False)
    return archive


# What a data point is


@pytest.mark.parametrize("resolution", [4, 16, 33])
def test_folder_holds_the_colours_in_the_order_of_the_names(folder: Path, resolution: int) -> None:
    """Three known pictures come out, sorted, recursive, in their colours."""
    dataset = open_dataset(f"folder:{folder}", resolution)
    assert dataset.names == ("a_age3.jpg", "b.png", "inner/c.webp")
    assert (dataset.channels, dataset.resolution, dataset.horizontal_flip) == (3, resolution, True)
    assert dataset.skipped == ()
    for image, colour in zip(dataset, torch.eye(3) * 2 - 1, strict=True):
        assert image.shape == (3, resolution, resolution)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, colour[:, None, None].expand_as(image), atol=0.02, rtol=0)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_archive_equals_its_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory, suffix: str) -> None:
    """Whatever the compression and the order inside, an archive is the same data set."""
    _, _, compression = suffix.partition(".")
    archive = pack(folder, tmp_path_factory.mktemp("archive") / f"images.{suffix}", f"w:{compression}")
    from_archive, from_folder = open_dataset(f"folder:{archive}", 8), open_dataset(f"folder:{folder}", 8)
    assert from_archive.names == from_folder.names
    assert torch.equal(torch.stack(list(from_archive)), torch.stack(list(from_folder)))


@given(width=st.integers(9, 60), height=st.integers(9, 60))
@settings(max_examples=25, deadline=None)
def test_crop_is_central(width: int, height: int) -> None:
    """A picture with point symmetry stays point-symmetric, which no off-centre crop does."""
    quarter = np.random.default_rng(width * height).integers(0, 256, (height, width), dtype=np.uint8)
    symmetric = np.maximum(quarter, quarter[::-1, ::-1])
    image = square(Image.fromarray(symmetric), 8).int()
    assert (image - image.flip(1, 2)).abs().max() <= 2


def test_crop_takes_the_largest_square() -> None:
    """The ends of a long picture are cut away, and nothing of the short side."""
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, :10], wide[:, 20:] = 255, 255
    assert square(Image.fromarray(wide), 5)[..., 1:-1].max() < 5  # the filter rings a little at the cut
    wide[0] = 255
    assert square(Image.fromarray(wide), 10)[:, 0].min() > 200


def test_resize_is_antialiased() -> None:
    """A chequerboard of single pixels averages to grey; picking pixels would give black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = square(Image.fromarray(board), 8).float()
    assert (small - 127.5).abs().max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """However the camera was held, the bright corner of the scene ends top left."""
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    undo = {  # the stored picture of each tag, from the EXIF definition of row 0 and column 0
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = as_bytes(Image.fromarray(np.ascontiguousarray(undo)), exif=exif)
    image = square(Image.open(io.BytesIO(stored)), 4)
    assert image[:, 0, 0].min() > 250
    assert image[:, 3, 3].max() < 5


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (9, 9), 100), (100, 100, 100)),
        (Image.fromarray(np.full((9, 9), 25_700, dtype=np.uint16)), (100, 100, 100)),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
    ],
    ids=["grey", "16-bit", "transparent", "cmyk", "bilevel"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    """Grey, deep, transparent, print and black-and-white pictures all become RGB."""
    assert square(image, 3)[:, 1, 1].tolist() == list(expected)


def test_large_jpeg_is_reduced_faithfully() -> None:
    """The reduced-size decoding of large photographs stays within a few grey levels of the full decoding."""
    ramp = np.add.outer(np.linspace(0, 127, 512), np.linspace(0, 127, 512)).astype(np.uint8)
    stored = as_bytes(Image.fromarray(np.stack([ramp] * 3, -1)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(stored))
    full.load()
    reduced = square(Image.open(io.BytesIO(stored)), 16).int()
    assert (reduced - square(full, 16).int()).abs().max() <= 2


# Access


def test_on_demand_equals_in_memory(folder: Path) -> None:
    """Above the memory limit the same images come, decoded at each access."""
    held, lazy = (open_dataset(f"folder:{folder}", 8, memory_limit=limit) for limit in (10**6, 10))
    assert isinstance(held.pixels, torch.Tensor)
    assert isinstance(lazy.pixels, DecodedOnDemand)
    assert lazy.names == held.names
    for a, b in zip(lazy.__getitems__([2, 0, 2]), held.__getitems__([2, 0, 2]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(held[1], held.__getitems__([1])[0])
    assert torch.equal(held[-1], lazy[-1])


def test_loader_batches(folder: Path) -> None:
    """PyTorch's loader collates the images through batched access."""
    batch = next(iter(DataLoader(open_dataset(f"folder:{folder}", 8), batch_size=3)))
    assert batch.shape == (3, 3, 8, 8)


def test_index_past_the_end(folder: Path) -> None:
    """Both ways of holding pixels end where the names end, so that iteration stops."""
    for limit in (10**6, 10):
        with pytest.raises(IndexError):
            open_dataset(f"folder:{folder}", 8, memory_limit=limit)[3]


# Digits


def test_digits_are_the_scans() -> None:
    """Averaging 2 x 2 pixels gives back the 8 x 8 scan nearly, and the labels sit in the names."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    digits = open_dataset("digits", 16)
    assert len(digits) == 1797
    assert (digits.channels, digits.resolution, digits.horizontal_flip) == (1, 16, False)
    assert [int(name[-1]) for name in digits.names] == scans.target.tolist()
    images = torch.stack(digits.__getitems__(range(1797)))
    assert images.min() == -1
    assert images.max() == pytest.approx(1, abs=0.1)
    pooled = torch.nn.functional.avg_pool2d(images, 2)[:, 0].flatten(1)
    expected = torch.from_numpy(scans.images / 8 - 1).float().flatten(1)
    assert torch.nn.functional.cosine_similarity(pooled + 1, expected + 1).min() > 0.98
    plain = torch.stack(open_dataset("digits", 8).__getitems__(range(1797)))[:, 0]
    torch.testing.assert_close(plain, torch.from_numpy(scans.images / 8 - 1).float(), atol=0.5 / 127, rtol=0)


@pytest.mark.parametrize("resolution", [4, 7, 65, 256])
def test_digits_refuse_other_resolutions(resolution: int) -> None:
    """Sizes that lose strokes or only add blur are refused."""
    with pytest.raises(ValueError, match=f"8 to 64 pixels.*got {resolution}"):
        open_dataset("digits", resolution)


# Bad input


@pytest.mark.parametrize("memory_limit", [10**6, 10])
def test_broken_images_are_skipped_counted_and_reported(folder: Path, memory_limit: int) -> None:
    """Truncated, empty and foreign files leave, with a warning that counts and names them."""
    whole = as_bytes(noise(0), "JPEG")
    (folder / "b1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b2.png").write_bytes(as_bytes(noise(1))[:200])
    (folder / "b3.gif").write_bytes(b"")
    (folder / "b4.webp").write_bytes(b"no image at all")
    with pytest.warns(UserWarning, match=r"skipped 4 of 7 images in .*: b1\.jpg .*; b2\.png .*; b3\.gif"):
        dataset = open_dataset(f"folder:{folder}", 8, memory_limit=memory_limit)
    assert dataset.skipped == ("b1.jpg", "b2.png", "b3.gif", "b4.webp")
    assert dataset.names == ("a_age3.jpg", "b.png", "inner/c.webp")
    assert [int(image.mean((1, 2)).argmax()) for image in dataset] == [0, 1, 2]


def test_missing_folder(tmp_path: Path) -> None:
    """Nothing at the path."""
    with pytest.raises(FileNotFoundError, match=r"no such folder or archive: .*nowhere"):
        open_dataset(f"folder:{tmp_path / 'nowhere'}", 8)


def test_folder_without_images(tmp_path: Path) -> None:
    """A folder of other files."""
    (tmp_path / "readme.txt").write_text("words")
    with pytest.raises(ValueError, match="no images in"):
        open_dataset(f"folder:{tmp_path}", 8)


def test_archive_without_images(tmp_path: Path) -> None:
    """An archive of other files."""
    (tmp_path / "readme.txt").write_text("words")
    with pytest.raises(ValueError, match="no images in"):
        open_dataset(f"folder:{pack(tmp_path, tmp_path.with_suffix('.tar'), 'w')}", 8)


def test_folder_of_nothing_but_broken_images(tmp_path: Path) -> None:
    """No image survives: an error, not an empty data set."""
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of the 2 images in .* can be read: a\.png \(not an image\)"):
        open_dataset(f"folder:{tmp_path}", 8)


@pytest.mark.parametrize("content", [b"", b"hello", as_bytes(picture((1, 2, 3)))], ids=["empty", "text", "image"])
def test_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    """A file of another kind at the path."""
    (tmp_path / "file.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"is a file but no tar archive.* give a directory"):
        open_dataset(f"folder:{tmp_path / 'file.tar'}", 8)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_archive_cut_short(tmp_path: Path, compression: str, fraction: float) -> None:
    """A download that broke off is an error, not a smaller data set."""
    (tmp_path / "images").mkdir()
    for i in range(20):
        noise(i).save(tmp_path / "images" / f"{i:02d}.png")
    whole = pack(tmp_path / "images", tmp_path / "whole.tar", f"w:{compression}").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ValueError, match="cut short"):
        open_dataset(f"folder:{tmp_path / 'cut.tar'}", 8)


def test_compressed_archive_beyond_the_memory_limit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A compressed archive is a stream and cannot be decoded on demand; the message says what can."""
    archive = pack(folder, tmp_path_factory.mktemp("archive") / "images.tar.gz", "w:gz")
    expected = r"3 images of 8 x 8 pixels exceed memory_limit=100 bytes, .* decompress it to a plain \.tar"
    with pytest.raises(ValueError, match=expected):
        open_dataset(f"folder:{archive}", 8, memory_limit=100)


@pytest.mark.parametrize("spec", ["", "mnist", "folder", "folder:", "hub:", "faces:3", "digits:", "Digits"])
def test_unknown_spec(spec: str) -> None:
    """The error lists what is accepted."""
    with pytest.raises(ValueError, match=f"unknown dataset '{spec}'.*accepted are 'faces', 'digits'"):
        open_dataset(spec, 8)


@pytest.mark.parametrize("resolution", [0, -4, 8.0, True, "16"])
def test_resolution_must_be_a_positive_whole_number(resolution: object) -> None:
    """No rounding, no guessing."""
    with pytest.raises(ValueError, match="resolution must be a positive whole number"):
        open_dataset("digits", resolution)


# Hugging Face data sets, made here in the hub's own format


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a data set: labels, then images under another name; two splits; one bad image."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    features = datasets.Features({"label": datasets.Value("int64"), "drawing": datasets.Image()})
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawings = [{"bytes": as_bytes(picture(c)), "path": None} for c in colours]
    (tmp_path / "set").mkdir()
    for split, cells in {"train": [*drawings, {"bytes": b"bad", "path": None}], "test": drawings[:1]}.items():
        table = datasets.Dataset.from_dict({"label": list(range(len(cells))), "drawing": cells}, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.mark.parametrize("memory_limit", [10**6, 10])
def test_hub_finds_the_image_column_by_its_type(hub: Path, memory_limit: int) -> None:
    """The image column is found whatever its name; a bad cell is skipped."""
    with pytest.warns(UserWarning, match=r"skipped 1 of 4 images in hub:.*: 00000003 \(not an image\)"):
        dataset = open_dataset(f"hub:{hub}", 8, memory_limit=memory_limit)
    assert len(dataset) == 3
    assert dataset.horizontal_flip
    for image, colour in zip(dataset, torch.eye(3) * 2 - 1, strict=True):
        assert torch.equal(image, colour[:, None, None].expand(3, 8, 8))


def test_hub_split(hub: Path) -> None:
    """A split is chosen after '#'; an unknown one is an error."""
    assert len(open_dataset(f"hub:{hub}#test", 8)) == 1
    with pytest.raises(ValueError, match=r"does not open \(.*Unknown split .?validation.*accepted are NAME"):
        open_dataset(f"hub:{hub}#validation", 8)


def test_hub_without_images(hub: Path, tmp_path: Path) -> None:
    """A table of words is refused with its columns named."""
    import datasets

    (tmp_path / "words").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "words" / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of type Image, only .*text"):
        open_dataset(f"hub:{tmp_path / 'words'}", 8)


@pytest.mark.usefixtures("hub")
def test_hub_out_of_reach() -> None:
    """Without a connection the error says so, and what would work."""
    with pytest.raises(ConnectionError, match=r"could not be asked for 'someone/some-photographs'.*accepted are NAME"):
        open_dataset("hub:someone/some-photographs@main", 8)


def test_hub_missing_directory(hub: Path) -> None:
    """A local data set that is not there."""
    with pytest.raises(FileNotFoundError, match=r"no data set .* was found .*accepted are NAME"):
        open_dataset(f"hub:{hub / 'nowhere'}", 8)


# Real photographs, where they are at hand


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no photographs at {PHOTOGRAPHS}")
def test_real_photographs(tmp_path: Path) -> None:
    """A few hundred real portraits all open, labels in their names, brighter in the middle."""
    with tarfile.open(PHOTOGRAPHS) as whole, tarfile.open(tmp_path / "few.tar", "w") as few:
        for _, member in zip(range(300), whole, strict=False):
            few.addfile(member, whole.extractfile(member))
    faces = open_dataset(f"folder:{tmp_path / 'few.tar'}", 32)
    assert len(faces) == 300
    assert faces.skipped == ()
    assert all("_age" in name and "_gender" in name for name in faces.names)
    mean = torch.stack(faces.__getitems__(range(300))).mean((0, 1))
    assert mean[8:24, 8:24].mean() > mean[[0, -1]].mean() + 0.1
