"""Folders as cameras and file managers leave them: every picture is right, or counted with the reason."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isodiff.datasets import open_dataset

RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


def picture(place: Path, colour: str = "red", kind: str | None = None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(place, kind)


def test_links_are_followed_once_and_hidden_places_left_out(tmp_path: Path) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "place"
    picture(elsewhere / "deep" / "a.png")
    for name in ("own.png", ".thumbnails/own.png", ".ipynb_checkpoints/own-checkpoint.png", ".hidden.png"):
        picture(place / name)
    (place / "cats").symlink_to(elsewhere)
    (place / "dogs").symlink_to(elsewhere)
    (elsewhere / "deep" / "round").symlink_to(place)
    (place / "self").symlink_to(place)
    assert open_dataset(f"folder:{place}", 8).names == ("cats/deep/a.png", "dogs/deep/a.png", "own.png")


def test_content_tells_a_picture_without_an_extension(tmp_path: Path) -> None:
    picture(tmp_path / "0a1b2c", kind="PNG")
    (tmp_path / "README").write_text("no picture")
    assert open_dataset(f"folder:{tmp_path}", 8).names == ("0a1b2c",)


def test_what_cannot_be_opened_is_counted_with_the_remedy(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(UserWarning, match=r"1 images; left out: 1 that cannot be read: gone.*3 HEIC.*pillow-heif"):
        assert open_dataset(f"folder:{tmp_path}", 8).names == ("a.jpg",)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "gone.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*3 HEIC.*pillow-heif"):
        open_dataset(f"folder:{tmp_path}", 8)
    picture(tmp_path / "b.png")
    with tarfile.open(tmp_path / "packed.tar", "w") as tar:
        tar.add(tmp_path / "b.png", "b.png")
        tar.add(tmp_path / "IMG_0.HEIC", "more/IMG_0.HEIC")
    for spec, number in ((tmp_path, 4), (tmp_path / "packed.tar", 1)):
        with pytest.warns(UserWarning, match=rf"left out: {number} HEIC, which Pillow does not open"):
            open_dataset(f"folder:{spec}", 8)


@pytest.mark.parametrize(
    ("most", "kind"), [(1, "float32"), (255, "float32"), (65535, "int32"), (255, "int32"), (65535, "uint16")]
)
def test_greys_of_more_than_8_bits_are_scaled_by_their_range(most: int, kind: str, tmp_path: Path) -> None:
    Image.fromarray((most * RAMP).astype(kind)).save(tmp_path / "a.tif")
    found = open_dataset(f"folder:{tmp_path}", (1, 16, 16))[0]
    expected = torch.from_numpy(RAMP).view(16, 4, 16, 4).mean((1, 3)) * 2 - 1
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("greys", [RAMP - 2, 1e6 * RAMP, np.full_like(RAMP, np.nan), (RAMP * 2e5).astype(np.int32)])
def test_greys_of_another_range_are_refused_by_name(greys: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(greys).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"its greys are .* accepted are integers 0 to 65535, or floats"):
        open_dataset(f"folder:{tmp_path}", 8)


def test_pictures_take_the_shape_asked_for(tmp_path: Path) -> None:
    colours = np.zeros((32, 64, 3), dtype=np.uint8)
    colours[:, :32], colours[:, 32:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(colours).save(tmp_path / "a.png")
    wide = open_dataset(f"folder:{tmp_path}", (3, 16, 32))[0]
    assert (wide[0, :, :12] == 1).all()
    assert (wide[2, :, 20:] == 1).all()
    grey = open_dataset(f"folder:{tmp_path}", (1, 16, 32))[0]
    assert grey.shape == (1, 16, 32)
    assert (grey[0, 8, 4] + 1).item() / 2 == pytest.approx(0.299, abs=0.01)  # the luminance of red, ITU-R 601
    for spec, shape in (("faces", (1, 16, 16)), ("faces", (3, 16, 32)), ("digits", (3, 16, 16))):
        with pytest.raises(ValueError, match=r"are .*squares.*got the shape"):
            open_dataset(spec, shape)


FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "DDS")


@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_a_picture_or_counted(tmp_path: Path) -> None:
    """2,004 files of 12 formats, each cut, changed in a few bytes, in its header, or with bytes put in."""
    draw = np.random.default_rng(0)
    pixels = np.add.outer(5 * np.arange(24), 5 * np.arange(24))[..., None] + np.array([0, 10, 20])
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text" * 20
    number = 0
    for form in FORMATS:
        file, options = io.BytesIO(), {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
        Image.fromarray(pixels.astype(np.uint8)).save(file, form, **options)
        whole = np.frombuffer(file.getvalue(), np.uint8)
        for kind in np.arange(167) % 4:
            data, place = whole.copy(), draw.integers(len(whole))
            if kind == 0:
                data = data[:place]
            elif kind == 3:
                put_in = draw.integers(0, 256, draw.integers(1, 40)).astype(np.uint8)
                data = np.concatenate([data[:place], put_in, data[place:]])
            else:
                where = draw.integers(0, len(whole) if kind == 1 else min(len(whole), 200), draw.integers(1, 8))
                data[where] = draw.integers(0, 256, len(where))
            (tmp_path / f"{number:04d}.{'jpg' if form == 'JPEG' else form.lower()}").write_bytes(data.tobytes())
            number += 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        images = open_dataset(f"folder:{tmp_path}", 8)
    (line,) = [str(w.message) for w in told if "left out" in str(w.message)]
    skipped = int(line.partition("left out: ")[2].partition(" ")[0])
    found = torch.stack(images.__getitems__(range(len(images))))
    assert found.isfinite().all()
    assert 200 < skipped < number - 200
    named = sum(Path(name).suffix != ".jpeg2000" for name in images.names)
    assert named + skipped == len([f for f in tmp_path.iterdir() if f.suffix in Image.registered_extensions()])
