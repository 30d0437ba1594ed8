"""Figures of paths between images show the numbers they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from isodiff.plots.geodesic_images import by_level, length_and_detail
from isodiff.plots.style import COLOURS


def test_means_and_pairs_have_the_colour_of_their_method() -> None:
    detail, length = np.array([0.8, 1.0]), np.array([2.0, 4.0])
    _, ax = plt.subplots()
    assert length_and_detail({"norm_aware": (detail, length), "lerp": (detail, length)}, ax) is ax
    means = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(means) == ["norm aware", "lerp"]
    assert means["norm aware"].get_color() == COLOURS["norm_aware"]
    np.testing.assert_allclose(means["lerp"].get_xydata(), [[0.9, 3.0]])
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("log", [False, True])
def test_curves_over_levels(log: bool) -> None:
    rows = [(0.2, 1.0, (0.5, 2.0)), (0.6, 2.0, (1.0, 3.0))]
    _, ax = plt.subplots()
    by_level({"slerp": rows}, ax, ylabel="excess", log=log)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.2, 1.0], [0.6, 2.0]])
    assert ax.get_yscale() == ("log" if log else "linear")
    assert list(ax.get_xticks()) == [0.2, 0.6]


@pytest.fixture(autouse=True)
def _close() -> None:
    yield
    plt.close("all")
