"""What a data point is: upright, central, antialiased, RGB; and the digits as scikit-learn has them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from isodiff.datasets import open_dataset
from isodiff.datasets.images import fit

from .pictures import encoded

RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)


@given(width=st.integers(9, 60), height=st.integers(9, 60))
def test_the_crop_is_central(width: int, height: int) -> None:
    """A picture with point symmetry stays point-symmetric, which no off-centre crop does."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width), dtype=np.uint8)
    image = fit(Image.fromarray(np.maximum(noise, noise[::-1, ::-1])), (3, 8, 8)).int()
    assert (image - image.flip(1, 2)).abs().max() <= 2


def test_the_crop_is_the_largest_square() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, :10], wide[:, 20:] = 255, 255
    assert fit(Image.fromarray(wide), (3, 5, 5))[..., 1:-1].max() < 5  # the filter rings a little at the cut
    wide[0] = 255
    assert fit(Image.fromarray(wide), (3, 10, 10))[:, 0].min() > 200


def test_the_resize_is_antialiased() -> None:
    """A chequerboard of single pixels averages to grey; picking pixels would give black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert (fit(Image.fromarray(board), (3, 8, 8)).float() - 127.5).abs().max() < 8


def test_exif_orientation_is_applied() -> None:
    """Tag 6 says that the camera was held on its side: what is stored bottom left is the top left of the scene."""
    stored = np.zeros((16, 16, 3), dtype=np.uint8)
    stored[8:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = fit(Image.open(io.BytesIO(encoded(Image.fromarray(stored), exif=exif))), (3, 4, 4))
    assert image[:, 0, 0].min() > 250
    assert image[:, 0, 3].max() < 5


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (9, 9), 100), (100, 100, 100)),
        (Image.fromarray(np.full((9, 9), 25_700, dtype=np.uint16)), (100, 100, 100)),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert fit(image, (3, 3, 3))[:, 1, 1].tolist() == list(expected)


def test_a_large_jpeg_is_reduced_faithfully() -> None:
    ramp = np.add.outer(np.linspace(0, 127, 512), np.linspace(0, 127, 512)).astype(np.uint8)
    stored = encoded(Image.fromarray(np.stack([ramp] * 3, -1)), "JPEG", quality=95)
    full = Image.open(io.BytesIO(stored))
    full.load()
    reduced = fit(Image.open(io.BytesIO(stored)), (3, 16, 16)).int()
    assert (reduced - fit(full, (3, 16, 16)).int()).abs().max() <= 2


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


def test_digits_are_the_scans() -> None:
    """Averaging 2 × 2 pixels gives back the 8 × 8 scan nearly, and the labels sit in the names."""
    scans, digits = load_digits(), open_dataset("digits", 16)
    assert (len(digits), digits.channels, digits.resolution, digits.horizontal_flip) == (1797, 1, 16, False)
    assert [int(name[-1]) for name in digits.names] == scans.target.tolist()
    images, expected = torch.stack(list(digits)), torch.from_numpy(scans.images / 8 - 1).float()
    assert images.min() == -1
    assert images.max() == pytest.approx(1, abs=0.1)
    pooled = torch.nn.functional.avg_pool2d(images, 2)[:, 0].flatten(1)
    assert torch.nn.functional.cosine_similarity(pooled + 1, expected.flatten(1) + 1).min() > 0.98
    plain = torch.stack(list(open_dataset("digits", 8)))[:, 0]
    torch.testing.assert_close(plain, expected, atol=0.5 / 127, rtol=0)
