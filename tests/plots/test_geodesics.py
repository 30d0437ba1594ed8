"""The figures of geodesics and of the score's Jacobian: labelled axes, and the numbers they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from isodiff.plots import geodesics, score_jacobian
from isodiff.plots.style import COLOURS, THEORY

mpl.use("Agg")
from matplotlib import pyplot as plt

rng = np.random.default_rng(0)
turn = np.linspace(0, 1, 9)
arc = np.stack([np.cos(turn), np.sin(turn)], 1)
grid = np.linspace(-1.5, 1.5, 21), np.linspace(-1.2, 1.2, 17)
log_density = (*grid, -((np.hypot(*np.meshgrid(*grid)) - 1) ** 2) / 0.02)
distances = {
    "circle": {"slerp": np.zeros(5), "density ½": np.full(5, 0.02), "tangential": np.linspace(0.001, 0.003, 5)},
    "helix": {"slerp": np.full(5, 0.3), "density ½": np.full(5, 0.03), "tangential": np.full(5, 0.004)},
}
intervals = {
    name: {kind: (0.9 * values.mean(), 1.1 * values.mean()) for kind, values in group.items()}
    for name, group in distances.items()
}

FIGURES: dict[str, Callable[[Axes], Axes]] = {
    "projector_field": lambda ax: score_jacobian.projector_field(
        arc, np.tile([0.1, 0.9], (9, 1)), np.tile(np.eye(2), (9, 1, 1)), ax, scale=0.5
    ),
    "eigenvalues_by_radius": lambda ax: score_jacobian.eigenvalues_by_radius(
        turn, {"radius": turn, "tangent": 1 - turn}, {"radius": turn, "tangent": 1 - turn}, ax, ridge=0.9
    ),
    "dimension_by_noise": lambda ax: score_jacobian.dimension_by_noise(
        turn + 0.1, {"subspace": 5 - turn, "circle": np.ones(9)}, {"subspace": np.full(9, 5.0)}, ax
    ),
    "spectra_by_noise": lambda ax: score_jacobian.spectra_by_noise(
        {"t = 20": rng.random((2, 20)), "t = 50": rng.random((2, 20))},
        ax,
        ylabel="singular values",
        dimension=10,
        theory={"t = 50": np.arange(10.0)},
    ),
    "paths_in_plane": lambda ax: geodesics.paths_in_plane(
        {"lerp": arc[[0, -1]], "tangential": arc, "closed form": arc},
        ax,
        manifold=[arc, -arc],
        log_density=log_density,
        nodes=True,
    ),
    "paths_by_noise": lambda ax: geodesics.paths_by_noise(
        {"σ = 0.5": arc, "σ = 0.1": 2 * arc}, ax, log_density=log_density
    ),
    "nodes_on_profile": lambda ax: geodesics.nodes_on_profile(
        turn, turn**2, {"nodes with K = 1": turn[::4], "nodes with K = 4": turn}, ax, xlabel="x", ylabel="s"
    ),
    "quadrature_errors": lambda ax: geodesics.quadrature_errors(
        np.array([5, 10, 20]),
        {"midpoint": 1 / np.array([25, 100, 400]), "left": 1 / np.array([5, 10, 20])},
        ax,
        orders={"midpoint": 2, "left": 1},
    ),
    "distances_by_method": lambda ax: geodesics.distances_by_method(distances, intervals, ax),
}


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def line_of(ax: Axes, label: str) -> mpl.lines.Line2D:
    return next(line for line in ax.lines if line.get_label() == label)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_returns_its_labelled_axes_and_can_be_drawn(name: str, ax: Axes) -> None:
    assert FIGURES[name](ax) is ax
    assert ax.get_ylabel()
    assert ax.get_xlabel()
    assert ax.get_legend_handles_labels()[1]
    ax.figure.canvas.draw()


def test_every_public_plot_function_is_tested() -> None:
    for module in (geodesics, score_jacobian):
        found = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert {name for name in found if not name.startswith("_")} <= {
            *FIGURES,
            "path_style",
            "noise_colours",
            "plane",
        }


def test_sticks_lie_along_eigenvectors_and_are_as_long_as_eigenvalues(ax: Axes) -> None:
    points, angle = np.array([[1.0, 2.0]]), 0.3
    vectors = np.array([[[-np.sin(angle), np.cos(angle)], [np.cos(angle), np.sin(angle)]]])
    score_jacobian.projector_field(points, np.array([[0.2, 0.8]]), vectors, ax, scale=0.5)
    stick = line_of(ax, "larger eigenvalue").get_xydata()[:2]
    np.testing.assert_allclose(stick.mean(0), points[0])
    np.testing.assert_allclose(stick[1] - stick[0], 0.8 * 0.5 * np.array([np.cos(angle), np.sin(angle)]))
    assert np.linalg.norm(np.diff(line_of(ax, "smaller eigenvalue").get_xydata()[:2], axis=0)) == pytest.approx(0.1)


def test_theory_is_dashed_and_black(ax: Axes) -> None:
    for name, label in (
        ("eigenvalues_by_radius", "closed form"),
        ("dimension_by_noise", "theory"),
        ("quadrature_errors", "1/N, 1/N²"),
        ("paths_in_plane", "closed form"),
    ):
        ax.clear()
        line = line_of(FIGURES[name](ax), label)
        assert (line.get_linestyle(), to_hex(line.get_color())) == ("--", THEORY["color"])


def test_paths_have_the_colour_of_their_method_and_black_ends(ax: Axes) -> None:
    FIGURES["paths_in_plane"](ax)
    assert to_hex(line_of(ax, "lerp").get_color()) == COLOURS["lerp"]
    assert to_hex(line_of(ax, "tangential").get_color()) == COLOURS["tangential"]
    np.testing.assert_array_equal(line_of(ax, "tangential").get_xydata(), arc)
    ends = next(line for line in ax.lines if to_hex(line.get_color()) == "#000000" and line.get_marker() == "o")
    np.testing.assert_array_equal(ends.get_xydata(), arc[[0, -1]])
    with pytest.raises(ValueError, match=r"a path must be called one of lerp, slerp, .*; got 'straight'"):
        geodesics.paths_in_plane({"straight": arc}, ax)


def test_variants_of_a_method_differ_in_the_line_only() -> None:
    styles = [geodesics.path_style(name) for name in ("from lerp", "from slerp", "from a graph")]
    assert {style["color"] for style in styles} == {COLOURS["tangential"]}
    assert len({style.get("linestyle", "-") for style in styles}) == 3
    drawn = {(style["color"], style.get("linestyle", "-")) for style in geodesics.PATH_STYLES.values()}
    assert len(drawn) == len(geodesics.PATH_STYLES) - 1  # "from a graph" is how "tangential" is drawn


def test_laws_pass_through_the_last_point(ax: Axes) -> None:
    FIGURES["quadrature_errors"](ax)
    laws = [line for line in ax.lines if line.get_linestyle() == "--"]
    for law, name in zip(laws, ("midpoint", "left"), strict=True):
        np.testing.assert_allclose(law.get_ydata(), line_of(ax, name).get_ydata())  # the data obey it


def test_distances_show_means_and_every_pair_and_none_below_the_floor(ax: Axes) -> None:
    FIGURES["distances_by_method"](ax)
    assert line_of(ax, "tangential").get_ydata() == pytest.approx([0.002])
    assert line_of(ax, "slerp").get_ydata() == pytest.approx([1e-4])
    assert sum(line.get_marker() == "_" for line in ax.lines) == 6
    assert min(np.min(line.get_ydata()) for line in ax.lines) >= 1e-4
    assert to_hex(line_of(ax, "density ½").get_markerfacecolor()) == "#ffffff"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["circle", "helix"]


def test_nodes_sit_on_the_profile(ax: Axes) -> None:
    FIGURES["nodes_on_profile"](ax)
    nodes = [line for line in ax.lines if line.get_marker() == "s" and np.ptp(line.get_ydata()) > 0]
    np.testing.assert_allclose(nodes[0].get_ydata(), turn**2)


def test_noise_levels_run_from_light_to_dark() -> None:
    light = score_jacobian.noise_colours(5)[:, :3].sum(1)
    assert (np.diff(light) < 0).all()
