"""Figures of the stereographic chart: how it is built, what it does to circles, which metric it carries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from isodiff.plots.globe import globe, orthographic
from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]

CHART_COLOURS = {"Eq. 2": COLOURS["euclidean"], "with the factor r": COLOURS["stereographic"]}
_SCALE = Normalize(0, 2)  # √G runs from 0 at the pole to 2 opposite it


def scale_colour(root_g: float) -> tuple[float, float, float, float]:
    """Return the colour of a length scale √G between 0 and 2."""
    return colormaps["cividis"](_SCALE(root_g))


def scale_bar(ax: Axes) -> Axes:
    """Add the colour bar of √G to a panel."""
    bar = ax.figure.colorbar(ScalarMappable(_SCALE, "cividis"), ax=ax, shrink=0.8, pad=0.02, ticks=[0, 1, 2])
    bar.set_label(r"$\sqrt{G}$, sphere per chart")
    bar.outline.set_visible(False)
    return ax


def projection_section(angles: FloatArray, ax: Axes) -> Axes:
    """Draw the construction of the chart in a cross-section: rays from the pole through x to z.

    Args:
        angles: Latitudes of some points x of the unit circle, in radians, (N,).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    turn = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(turn), np.sin(turn), color="#6b7485", linewidth=1.5)
    ax.axhline(0, color="#6b7485", linewidth=1)
    for angle in angles:
        x, height = np.cos(angle), np.sin(angle)
        z = x / (1 - height)
        colour = scale_colour(1 - height)
        end = (x, height) if abs(x) > abs(z) else (z, 0.0)
        ax.plot([0, end[0]], [1, end[1]], color=colour, linewidth=1.2)
        ax.plot(x, height, "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
        ax.plot(z, 0, "s", color=colour, markersize=6, markeredgecolor="white", zorder=3)
    ax.plot(0, 1, "o", color="black", markersize=6, zorder=4)
    ax.annotate("pole", (0, 1), (0, 7), textcoords="offset points", ha="center")
    handles = [ax.plot([], [], m, color="#777777", label=text)[0] for m, text in (("o", "x"), ("s", "z"))]
    ax.legend(handles=handles, loc="lower right", ncols=2)
    ax.set(aspect="equal", xlim=(-1.2, 2.85), ylim=(-1.75, 1.5))
    ax.set(xlabel=r"$x'/r$ and $z/r$", ylabel=r"$x_n/r$", title="how it is built")
    return ax


def circles_on_sphere(circles: FloatArray, scales: FloatArray, ax: Axes) -> Axes:
    """Draw equal circles on the unit sphere, coloured by the chart's length scale √G at their centres.

    Args:
        circles: (N, K, 3).
        scales: √G at each centre, (N,).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    globe(ax)
    for circle, scale in zip(circles, scales, strict=True):
        u, v, depth = orthographic(circle)
        front = depth.mean() >= 0
        ax.fill(
            u, v, facecolor=scale_colour(scale), edgecolor="white", linewidth=0.6, alpha=1 if front else 0.13,
            zorder=3 if front else 1,
        )  # fmt: skip
    pole = orthographic(np.array([[0.0, 0.0, 1.0]]))
    ax.plot(pole[0], pole[1], "o", color="black", markersize=5, zorder=5)
    ax.set_title("equal circles on the sphere")
    return ax


def circles_in_chart(images: FloatArray, scales: FloatArray, ax: Axes, *, limit: float = 3.8) -> Axes:
    """Draw what the chart makes of those circles.

    Args:
        images: Chart coordinates in units of r, (N, K, 2).
        scales: √G at each centre, (N,).
        ax: Where to draw.
        limit: Half the width of the panel.

    Returns:
        ``ax``.
    """
    turn = np.linspace(0, 2 * np.pi, 361)
    for latitude in np.deg2rad([-60, -30, 0, 25, 50]):
        radius = np.cos(latitude) / (1 - np.sin(latitude))
        width = 1.2 if latitude == 0 else 0.6
        ax.plot(radius * np.cos(turn), radius * np.sin(turn), color="#9aa3b2", linewidth=width, zorder=1)
    for angle in np.deg2rad(np.arange(0, 180, 30)):
        far = 2 * limit * np.array([np.cos(angle), np.sin(angle)])
        ax.plot([-far[0], far[0]], [-far[1], far[1]], color="#9aa3b2", linewidth=0.6, zorder=1)
    for image, scale in zip(images, scales, strict=True):
        ax.fill(
            image[:, 0],
            image[:, 1],
            facecolor=scale_colour(scale),
            edgecolor="white",
            linewidth=0.6,
            zorder=2,
        )
    ax.grid(False)
    ax.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit), title="the same circles in the chart")
    ax.set(xlabel=r"$z_1/r$", ylabel=r"$z_2/r$")
    return ax


def metric_of_charts(
    norms: Mapping[str, FloatArray],
    measured: Mapping[str, FloatArray],
    grid: FloatArray,
    formulas: Mapping[str, FloatArray],
    ax: Axes,
) -> Axes:
    """Draw the metric of each chart by automatic differentiation, over the formulas.

    Args:
        norms: By chart, a key of ``CHART_COLOURS``, ‖z‖ of the points, (N,).
        measured: By chart, the diagonal of JᵀJ there, (N,).
        grid: ‖z‖ of the curves, (K,).
        formulas: By name, the formula on the grid, (K,).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    for (name, values), style in zip(formulas.items(), ("--", ":"), strict=True):
        ax.plot(grid, values, **{**THEORY, "linestyle": style}, label=name)
    for chart, values in measured.items():
        ax.plot(
            norms[chart],
            values,
            "o",
            color=CHART_COLOURS[chart],
            markersize=5,
            label=f"autodiff, chart {chart}",
        )
    ax.set(yscale="log", xlim=(grid[0], grid[-1]), xlabel=r"$\|z\|$", ylabel=r"$G$, the diagonal of $J^\top J$")
    ax.legend()
    return ax
