"""The figures of the traversal notebook: each returns its labelled axes and draws the numbers it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from isodiff.plots import traversal
from isodiff.plots.style import COLOURS

mpl.use("Agg")
from matplotlib import pyplot as plt

RADII = np.linspace(0.5, 1.2, 8)

FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "adjacent_distances": lambda ax: traversal.adjacent_distances(
        {"control": [1.0, 4.0, 1.0, 2.0], "isometric": [2.0, 2.0, 2.0, 2.0]},
        ax,
        intervals={"control": [[0.5, 1.5], [3.0, 5.0], [0.0, 2.0], [1.0, 3.0]]},
    ),
    "against_radius": lambda ax: traversal.against_radius(
        RADII,
        {"control": (RADII - 1) ** 2},
        ax,
        ylabel="distance",
        intervals={"control": np.stack([0 * RADII, 0 * RADII + 1], 1)},
        others=np.ones((8, 3)),
    ),
    "pair_by_pair": lambda ax: traversal.pair_by_pair(
        [1.0, 2.0, 4.0],
        [2.0, 1.0, 2.0],
        ax,
        names=("control", "isometric"),
        quantity="largest step",
        marked={"for": 1, "against": 0},
    ),
}


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_returns_its_labelled_axes_and_can_be_drawn(name: str, ax: Axes) -> None:
    assert FIGURES[name](ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_legend() is not None
    ax.figure.canvas.draw()


def test_every_public_plot_function_is_tested() -> None:
    found = {name for name, value in vars(traversal).items() if getattr(value, "__module__", "") == traversal.__name__}
    assert found == set(FIGURES)


def test_a_distance_stands_midway_between_its_two_frames_and_over_the_mean_of_its_path(ax: Axes) -> None:
    FIGURES["adjacent_distances"](ax)
    curve, mean, other, other_mean = ax.get_lines()
    np.testing.assert_allclose(curve.get_xdata(), [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    np.testing.assert_allclose(curve.get_ydata(), [1, 4, 1, 2])
    np.testing.assert_allclose(mean.get_ydata(), 2)
    np.testing.assert_allclose(other.get_ydata(), other_mean.get_ydata()[0])  # at constant speed, curve and mean agree
    assert [line.get_linestyle() for line in (mean, other_mean)] == [":", ":"]
    assert [line.get_color() for line in (curve, other)] == [COLOURS["control"], COLOURS["isometric"]]
    assert len(ax.collections) == 1  # a band for the one that has intervals
    assert ax.get_ylim()[0] == 0


def test_an_axis_that_is_shared_grows_with_the_second_panel_and_still_begins_at_zero() -> None:
    figure, (left, right) = plt.subplots(1, 2, sharey=True)
    traversal.adjacent_distances({"control": [1.0, 2.0]}, left)
    traversal.adjacent_distances({"control": [3.0, 9.0]}, right)
    low, high = left.get_ylim()
    assert low == 0
    assert high > 9
    plt.close(figure)


def test_the_shell_is_dashed_and_the_middle_of_lerp_dotted(ax: Axes) -> None:
    FIGURES["against_radius"](ax)
    black = {line.get_linestyle(): line.get_xdata()[0] for line in ax.get_lines() if line.get_color() == "#000000"}
    assert black == {"--": 1, ":": pytest.approx(np.sqrt(0.5))}
    named = [line for line in ax.get_lines() if line.get_label() == "control"]
    np.testing.assert_allclose(named[0].get_ydata(), (RADII - 1) ** 2)
    grey = [line for line in ax.get_lines() if line.get_color() == "#b8b8b8"]
    assert len(grey) == 3
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["control", "shell of noise", "midway on lerp"]


def test_pairs_are_sorted_by_who_is_smaller_and_counted(ax: Axes) -> None:
    FIGURES["pair_by_pair"](ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["control smaller, 1 of 3", "isometric smaller, 2 of 3", "equal"]
    control, isometric, diagonal, *rings = ax.get_lines()
    assert (list(control.get_xdata()), list(control.get_ydata())) == ([1], [2])
    assert (list(isometric.get_xdata()), list(isometric.get_ydata())) == ([2, 4], [1, 2])
    assert to_hex(isometric.get_color()) == COLOURS["isometric"]
    np.testing.assert_allclose(*diagonal.get_data())
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [(2, 1), (1, 2)]
    assert [text.get_text() for text in ax.texts] == ["for", "against"]
    assert ax.get_xlim() == ax.get_ylim()
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    ticks = {text.get_text() for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high}
    assert ticks == {"1", "2"}


def test_a_pair_at_zero_is_drawn_on_linear_axes(ax: Axes) -> None:
    traversal.pair_by_pair(
        [0.0, 2.0], [0.0, 1.0], ax, names=("control", "isometric"), quantity="excess", logarithmic=False
    )
    assert ax.get_xscale() == ax.get_yscale() == "linear"
    assert ax.get_xlim() == ax.get_ylim() == (0, 2.4)
    assert (0, 0) in zip(*ax.get_lines()[0].get_data(), strict=True)
