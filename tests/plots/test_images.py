"""Images as figures: pixels where they belong, labels under the images, bad input refused; figures stored small."""

import io
import re

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from isodiff.plots import globe, image_grid, image_strip, palette_png


def test_image_grid_puts_pixels_where_they_belong(ax: Axes) -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 3.0)])
    shown = image_grid(images, ax, columns=2, title="four").images[0].get_array()
    np.testing.assert_allclose(shown[[0, 0, 3, 3], [0, 3, 0, 3], 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(shown[[0, 2], [0, 2], 3], [1, 0])
    assert ax.get_title(loc="left") + ax.get_title() == "four"


def test_image_strip_labels_the_centres_and_span_widens_the_range(ax: Axes) -> None:
    image_strip(torch.full((3, 3, 4, 4), 2.0), ax, labels=["a", "b", "c"], ylabel="row", span=4.0)
    np.testing.assert_allclose(ax.get_xticks(), [1.5, 6.5, 11.5])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c"]
    assert ax.get_ylabel() == "row"
    np.testing.assert_allclose(ax.images[0].get_array()[0, 0, :3], 0.75)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 4, 4), (0, 1, 4, 4), (2, 1, 4, 4)])
def test_bad_images_are_refused(shape: tuple[int, ...], ax: Axes) -> None:
    message = "32 NaN" if shape == (2, 1, 4, 4) else re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        image_strip(torch.full(shape, torch.nan), ax)


def test_palette_png_is_the_figure_to_the_eye_and_smaller(ax: Axes) -> None:
    globe(ax)
    plain, compact = io.BytesIO(), palette_png(ax.figure)
    ax.figure.savefig(plain, format="png", facecolor="white")
    before, after = (np.asarray(Image.open(png).convert("RGB"), dtype=float) for png in (plain, io.BytesIO(compact)))
    assert np.abs(before - after).mean() < 1  # of 255
    assert len(compact) < 0.6 * len(plain.getvalue())


def test_several_figures_are_a_film_that_shows_each_in_turn() -> None:
    frames = [Figure(figsize=(2, 1)) for _ in range(3)]
    for number, fig in enumerate(frames):
        fig.text(0.1 + 0.3 * number, 0.5, str(number), color=f"C{number}")
    film = Image.open(io.BytesIO(palette_png(*frames, milliseconds=70)))
    assert (film.n_frames, film.info["loop"], film.info["duration"]) == (3, 0, 70)
    for number, fig in enumerate(frames):
        film.seek(number)
        still = Image.open(io.BytesIO(palette_png(fig)))
        difference = np.abs(np.asarray(film.convert("RGB"), float) - np.asarray(still.convert("RGB"), float))
        assert difference.mean() < 1
    with pytest.raises(ValueError, match="one size in pixels"):
        palette_png(frames[0], Figure(figsize=(1, 1)))
