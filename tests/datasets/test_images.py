"""What a data point is: upright, central, antialiased, RGB; and the digits as scikit-learn has them."""

from __future__ import annotations

import io

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """However the camera was held, the bright corner of the scene ends top left."""
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    turned = upright.transpose(1, 0, 2)
    stored = [  # the picture of each tag, from the EXIF definition of row 0 and column 0
        *(upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]),
        *(turned, turned[::-1], turned[::-1, ::-1], turned[:, ::-1]),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    image = fit(Image.open(io.BytesIO(content)), (3, 4, 4))
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
