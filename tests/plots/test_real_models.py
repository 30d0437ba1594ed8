"""Figures of real models: what is drawn is what was given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from isodiff.plots.real_models import room_for_isometry, shell_over_time


@pytest.fixture
def ax() -> Axes:
    return plt.figure().add_subplot()


def test_dimensions_and_the_share_of_the_sphere(ax: Axes) -> None:
    room_for_isometry({"small": (3072, 4096), "large": (196_608, 32_768)}, ax)
    spheres, bottlenecks = (line.get_xdata() for line in ax.lines)
    np.testing.assert_array_equal(spheres, [3071, 196_607])
    np.testing.assert_array_equal(bottlenecks, [4096, 32_768])
    assert [text.get_text() for text in ax.texts] == ["100%", "17%"]


@pytest.mark.parametrize(("quantity", "expected"), [("ratio", [0.5, 0.0]), ("variation", [1.0, 0.0])])
def test_shells_are_drawn_relative_to_the_papers(ax: Axes, quantity: str, expected: list[float]) -> None:
    common = {"noise_variation": 0.1, "ratio_interval": (1.0, 2.0), "variation_interval": (0.1, 0.3)}
    points = [{"t": 0, "ratio": 1.5, "variation": 0.2} | common, {"t": 999, "ratio": 1.0, "variation": 0.1} | common]
    shell_over_time({"faces": points}, ax, quantity=quantity)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, atol=1e-12)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 999])


def test_an_unknown_quantity_is_refused(ax: Axes) -> None:
    with pytest.raises(ValueError, match="quantity must be one of ratio, variation; got 'radius'"):
        shell_over_time({}, ax, quantity="radius")
