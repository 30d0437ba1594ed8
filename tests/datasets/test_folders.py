"""Folders and archives: the same images however they are packed, from any process, and damage named."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from isodiff.datasets import ImageDataset, images, open_dataset
from isodiff.datasets.folders import open_folder

from .pictures import encoded, noise, write_tar


@pytest.fixture(params=["held", "on demand"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "on demand":
        monkeypatch.setattr(images, "MEMORY_LIMIT", 10)
    return request.param


def photograph(seed: int, size: int = 12) -> bytes:
    return encoded(noise(seed, size))


def stacked(dataset: ImageDataset) -> torch.Tensor:
    return torch.stack(list(dataset))


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_holds_its_colours_in_the_order_of_the_names(tmp_path: Path, memory: str) -> None:
    red, green, blue = (Image.new("RGB", (20, 20), colour) for colour in ("#f00", "#0f0", "#00f"))
    files = {"inner/c.webp": encoded(blue, "WEBP", lossless=True), "b.png": encoded(green)}
    files |= {"a_age3.jpg": encoded(red, "JPEG", quality=100), "notes.txt": b"words", "._a.jpg": b"a resource fork"}
    write_folder(tmp_path, files)
    dataset = open_dataset(f"folder:{tmp_path}", 16)
    assert isinstance(dataset.pixels, torch.Tensor) == (memory == "held")
    assert dataset.names == ("a_age3.jpg", "b.png", "inner/c.webp")
    assert (dataset.channels, dataset.resolution, dataset.horizontal_flip) == (3, 16, True)
    (batch,) = DataLoader(dataset, batch_size=3)
    colours = (torch.eye(3) * 2 - 1)[:, :, None, None].expand(3, 3, 16, 16)
    torch.testing.assert_close(batch, colours, atol=0.02, rtol=0)
    assert torch.equal(torch.stack(dataset.__getitems__([2, 0, 2, -1])), batch[[2, 0, 2, 2]])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_plain_tar_is_the_folder_it_was_made_from(tmp_path: Path, form: int, memory: str) -> None:
    long = "/".join(["a directory with quite a long name"] * 4) + "/z.png"  # beyond the 100 bytes of a plain header
    contents = {name: photograph(i) for i, name in enumerate(["b.png", long, "a.png", "sub/c.png"])}
    others = {"notes.txt": b"x" * 700, "._a.png": b"a resource fork"}
    loose = open_folder(write_folder(tmp_path / "loose", contents), (3, 8, 8))
    packed = open_folder(write_tar(tmp_path / "images.tar", others | contents, form=form), (3, 8, 8))
    assert packed.names == loose.names == tuple(sorted(contents))
    assert torch.equal(stacked(packed), stacked(loose))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_tar(tmp_path / "b.tar", {"2.png": photograph(2), "1.png": photograph(1)})
    write_tar(tmp_path / "sub" / "a.tar", {"x/3.png": photograph(3)})
    loose = {"a.png": photograph(0), "sub/z.png": photograph(4), "._b.tar": b"a resource fork"}
    return write_folder(tmp_path, loose)


@pytest.mark.usefixtures("memory")
def test_a_directory_of_shards_is_one_data_set(shards: Path) -> None:
    dataset = open_dataset(f"folder:{shards}", 12)
    assert dataset.names == ("a.png", "b.tar/1.png", "b.tar/2.png", "sub/a.tar/x/3.png", "sub/z.png")
    expected = torch.from_numpy(np.stack([np.array(noise(i)) for i in range(5)]))
    assert torch.equal(stacked(dataset), expected.permute(0, 3, 1, 2).float() / 127.5 - 1)


def test_links_are_followed_once_and_hidden_places_left_out(tmp_path: Path) -> None:
    elsewhere = write_folder(tmp_path / "elsewhere", {"deep/a.png": photograph(0)})
    names = ("own.png", ".thumbnails/own.png", ".ipynb_checkpoints/own-checkpoint.png", ".hidden.png")
    place = write_folder(tmp_path / "place", dict.fromkeys(names, photograph(1)))
    (place / "cats").symlink_to(elsewhere)
    (place / "dogs").symlink_to(elsewhere)
    (elsewhere / "deep" / "round").symlink_to(place)
    (place / "self").symlink_to(place)
    assert open_dataset(f"folder:{place}", 8).names == ("cats/deep/a.png", "dogs/deep/a.png", "own.png")


def test_content_tells_a_picture_without_an_extension(tmp_path: Path) -> None:
    write_folder(tmp_path, {"0a1b2c": photograph(0), "README": b"no picture"})
    assert open_dataset(f"folder:{tmp_path}", 8).names == ("0a1b2c",)


def test_what_pillow_does_not_open_is_counted_with_the_remedy(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic"
    write_folder(tmp_path, {f"IMG_{number}.HEIC": heic for number in range(3)})
    with pytest.raises(ValueError, match=r"no images in .*3 HEIC.*pillow-heif"):
        open_dataset(f"folder:{tmp_path}", 8)
    write_folder(tmp_path, {"a.png": photograph(0)})
    packed = write_tar(tmp_path / "packed.tar", {"b.png": photograph(1), "more/IMG_0.HEIC": heic})
    for spec, number in ((tmp_path, 4), (packed, 1)):
        with pytest.warns(UserWarning, match=rf"left out: {number} HEIC, which Pillow does not open"):
            open_dataset(f"folder:{spec}", 8)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"2 images; left out: 1 that cannot be read: gone.*4 HEIC.*pillow-heif"):
        assert open_dataset(f"folder:{tmp_path}", 8).names == ("a.png", "packed.tar/b.png")


def test_workers_and_forks_read_what_the_parent_reads(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MEMORY_LIMIT", 10)
    dataset = open_dataset(f"folder:{shards}", 8)
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


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("packed", [True, False])
def test_broken_images_are_skipped_counted_and_named(tmp_path: Path, packed: bool) -> None:
    whole = encoded(noise(0, 64), "JPEG")
    files = {"a.png": photograph(0), "b1.jpg": whole[: len(whole) // 2], "b2.png": photograph(1)[:60], "b3.gif": b""}
    files |= {"b4.webp": b"no image at all", "c.png": photograph(2)}
    path = write_tar(tmp_path / "images.tar", files) if packed else write_folder(tmp_path, files)
    left_out = r"2 images; left out: 4 that cannot be read: .*b1\.jpg .*; .*b2\.png .*; .*b3\.gif"
    with pytest.warns(UserWarning, match=left_out):
        dataset = open_dataset(f"folder:{path}", 12)
    assert dataset.names == ("a.png", "c.png")
    expected = [np.array(noise(i)).transpose(2, 0, 1) for i in (0, 2)]
    assert torch.equal(stacked(dataset), torch.from_numpy(np.stack(expected)).float() / 127.5 - 1)


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
def test_a_compressed_archive_is_a_plain_one_that_has_to_be_whole_and_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    files = {f"{i:02d}.png": photograph(i, 64) for i in reversed(range(20))}
    plain = open_folder(write_tar(tmp_path / "a.tar", files), (3, 8, 8))
    archive = write_tar(tmp_path / f"a.tar.{compression}", files, f"w:{compression}")
    assert open_folder(archive, (3, 8, 8)).names == plain.names
    assert torch.equal(stacked(open_folder(archive, (3, 8, 8))), stacked(plain))
    (tmp_path / "cut.tar").write_bytes(archive.read_bytes()[: 9 * archive.stat().st_size // 10])
    with pytest.raises(ValueError, match="cut short"):
        open_folder(tmp_path / "cut.tar", (3, 8, 8))
    monkeypatch.setattr(images, "MEMORY_LIMIT", 20 * 64 * 3 - 1)
    with pytest.raises(ValueError, match=r"20 images of 8 x 8 pixels exceed .* decompress it to a plain \.tar"):
        open_folder(archive, (3, 8, 8))


@pytest.mark.parametrize("fraction", [-1.0, 0.0, 0.1, 0.99])
def test_a_shard_cut_short_is_an_error(shards: Path, fraction: float) -> None:
    with tarfile.open(shards / "b.tar") as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + int(last.size * fraction) if fraction >= 0 else last.offset + 100  # within its header
    (shards / "b.tar").write_bytes((shards / "b.tar").read_bytes()[:end])
    with pytest.raises(ValueError, match=r"b\.tar is damaged or cut short"):
        open_dataset(f"folder:{shards}", 8)


def test_a_header_that_is_overwritten_is_an_error(shards: Path) -> None:
    """Tarfile takes it for the end; the images behind it would be lost without a word."""
    content = bytearray((shards / "b.tar").read_bytes())
    with tarfile.open(shards / "b.tar") as tar:
        at = tar.getmembers()[1].offset
    content[at : at + 200] = b"?" * 200
    (shards / "b.tar").write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged or cut short.*no header at byte {at:,}"):
        open_dataset(f"folder:{shards}", 8)


def test_compressed_shards_are_left_out_by_name_and_refused_if_they_pose_as_plain_ones(shards: Path) -> None:
    write_tar(shards / "c.tar.gz", {"5.png": photograph(5)}, "w:gz")
    with pytest.warns(UserWarning, match=r"left out: 1 compressed archives, such as c\.tar\.gz \(decompress them"):
        assert len(open_dataset(f"folder:{shards}", 8)) == 5
    (shards / "c.tar.gz").rename(shards / "c.tar")
    with pytest.raises(ValueError, match=r"c\.tar is damaged or cut short, or not a plain tar archive"):
        open_dataset(f"folder:{shards}", 8)


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("nowhere", None, r"no such folder or archive: .*nowhere"),
        ("file.tar", b"hello", r"is a file but no tar archive.* give a directory"),
        ("folder", {"readme.txt": b"words"}, "no images in"),
        ("a.tar", {"a.png": b"x", "b.jpg": b"x"}, r"none of the 2 images in .* can be read: a\.png \(not an image\)"),
        ("fewer.tar", {"a.png": b"x"}, "holds 1 images where 2 are expected"),  # counted before any is decoded
    ],
)
def test_what_is_no_data_set_is_named(name: str, files: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(files, bytes):
        path.write_bytes(files)
    elif files:
        write_tar(path, files) if path.suffix else write_folder(path, files)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_folder(path, (3, 8, 8), count=2 if name == "fewer.tar" else None)


FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "DDS")


@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_a_picture_or_counted(tmp_path: Path) -> None:
    """2,004 files of 12 formats, each changed in a few bytes, of its header or anywhere, and one in three cut."""
    draw, number = np.random.default_rng(0), 0
    pixels = np.add.outer(5 * np.arange(24), 5 * np.arange(24))[..., None] + np.array([0, 10, 20])
    for form in FORMATS:
        whole = np.frombuffer(encoded(Image.fromarray(pixels.astype(np.uint8)), form), np.uint8)
        for kind in np.arange(167) % 3:
            data = whole.copy()
            where = draw.integers(0, min(len(whole), 200) if kind == 0 else len(whole), draw.integers(1, 8))
            data[where] = draw.integers(0, 256, len(where))
            end = draw.integers(len(whole)) if kind == 1 else None
            (tmp_path / f"{number:04d}.{'jpg' if form == 'JPEG' else form.lower()}").write_bytes(data[:end].tobytes())
            number += 1
    with pytest.warns(UserWarning, match="left out: ") as told:
        images = open_dataset(f"folder:{tmp_path}", 8)
    (line,) = [str(w.message) for w in told if "left out" in str(w.message)]
    skipped = int(line.partition("left out: ")[2].partition(" ")[0])
    assert torch.stack(images.__getitems__(range(len(images)))).isfinite().all()
    assert 200 < skipped < number - 200
    named = sum(Path(name).suffix != ".jpeg2000" for name in images.names)
    assert named + skipped == len([f for f in tmp_path.iterdir() if f.suffix in Image.registered_extensions()])
