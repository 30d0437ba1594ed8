"""Figures of the autoencoders of the two-sphere: the map's grid, distances kept or not, weights of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from isodiff.plots.globe import curve, globe
from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]

NAMES = {
    "base": "reconstruction only",
    "euclidean": "Euclidean in ℝ³",
    "chart_identity": "chart, G = I",
    "stereographic": "stereographic",
}
_LATITUDE = Normalize(-100, 60)


def latitude_colour(latitude: float) -> tuple[float, float, float, float]:
    """Return the colour of a parallel, dark in the south, light in the north."""
    return colormaps["viridis"](_LATITUDE(latitude))


def latitude_bar(axes: Axes | list[Axes], latitudes: FloatArray) -> None:
    """Add the colour bar of the latitudes to one panel or several."""
    first = axes if isinstance(axes, Axes) else axes[0]
    bar = first.figure.colorbar(ScalarMappable(_LATITUDE, "viridis"), ax=axes, shrink=0.6, pad=0.01)
    bar.ax.set_ylim(-90, float(latitudes.max()))
    bar.set_label("latitude, degrees")
    bar.outline.set_visible(False)


def domain_on_sphere(latitudes: FloatArray, parallels: FloatArray, meridians: FloatArray, ax: Axes) -> Axes:
    """Draw the sphere with the parallels and meridians that will be mapped; the cap stays bare.

    Args:
        latitudes: Of the parallels, degrees, (K,).
        parallels: Points, (K, P, 3).
        meridians: Points, (M, P, 3).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    globe(ax, graticule=180)
    for line in meridians:
        curve(line, ax, color="#777777", linewidth=0.7)
    for latitude, line in zip(latitudes, parallels, strict=True):
        curve(line, ax, color=latitude_colour(latitude), linewidth=2)
    ax.text(0, 0.80, "left out", ha="center", va="center", fontsize=8, color="#555555")
    return ax


def latent_map(latitudes: FloatArray, parallels: FloatArray, meridians: FloatArray, ax: Axes) -> Axes:
    """Draw the images of parallels and meridians in the plane.

    Args:
        latitudes: Of the parallels, degrees, (K,).
        parallels: Images of their points, (K, P, 2).
        meridians: Images of theirs, (M, P, 2).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    for line in meridians:
        ax.plot(*line.T, color="#999999", linewidth=0.7, zorder=1)
    for latitude, line in zip(latitudes, parallels, strict=True):
        ax.plot(*line.T, color=latitude_colour(latitude), linewidth=1.8, zorder=2)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def values_by_method(
    values: Mapping[str, FloatArray],
    intervals: Mapping[str, tuple[float, float]],
    ax: Axes,
    *,
    xlabel: str,
    theory: Mapping[str, float],
) -> Axes:
    """Draw one dot a seed and method, the mean with its interval, and theoretical values as dashed lines.

    Args:
        values: Per method, one value a seed, (n,).
        intervals: Per method, the ends of the interval of the mean.
        ax: Where to draw.
        xlabel: Quantity and unit.
        theory: Lines to draw, by name.

    Returns:
        ``ax``.
    """
    for row, (method, dots) in enumerate(values.items()):
        colour, low, high = COLOURS[method], *intervals[method]
        spread = row + np.linspace(-0.22, 0.22, len(dots))
        ax.plot(dots, spread, "o", color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0)
        ax.plot([low, high], [row, row], color=colour, linewidth=3.5, solid_capstyle="butt")
        ax.plot(dots.mean(), row, "o", color=colour, markersize=8, markeredgecolor="white")
    top = len(values) - 0.45
    for name, value in theory.items():
        ax.axvline(value, **THEORY)
        ax.annotate(name, (value, -0.55), (3, 0), textcoords="offset points", rotation=90, fontsize=8, va="top")
    ax.set(yticks=range(len(values)), yticklabels=[NAMES[m] for m in values], ylim=(top, -0.55), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    return ax


def distance_errors(geodesic: FloatArray, latent: Mapping[str, FloatArray], ax: Axes, *, num_bins: int = 10) -> Axes:
    """Draw how far latent distances are from geodesic ones, against the latter: the root mean square in each bin.

    Args:
        geodesic: Great-circle distances, radians, (P,).
        latent: Per method, latent distances in the scale that fits best, one row a network, (N, P).
        ax: Where to draw.
        num_bins: Bins of the geodesic distance; those with fewer than ten pairs are left out.

    Returns:
        ``ax``.
    """
    edges = np.linspace(0, np.pi, num_bins + 1)
    bins = np.digitize(geodesic, edges[1:-1])
    kept = [b for b in range(num_bins) if np.count_nonzero(bins == b) >= 10]
    middle = ((edges[1:] + edges[:-1]) / 2)[kept]
    for method, d in latent.items():
        squares = (d - geodesic) ** 2
        networks = np.sqrt(np.stack([squares[:, bins == b].mean(axis=1) for b in kept], axis=1))
        low, high = networks.min(axis=0), networks.max(axis=0)
        ax.fill_between(middle, low, high, color=COLOURS[method], alpha=0.18, linewidth=0)
        ax.plot(middle, networks.mean(axis=0), ".-", color=COLOURS[method], label=NAMES[method])
    ax.set(xlabel="great-circle distance, radians", ylabel="error of latent distance, radians", ylim=(0, None))
    ax.legend()
    return ax


def trade_off(
    lambdas: FloatArray,
    values: Mapping[str, FloatArray],
    ax: Axes,
    *,
    ylabel: str,
    chosen: Mapping[str, float],
    limit: tuple[str, float] | None = None,
    unregularised: float | None = None,
) -> Axes:
    """Draw a quantity against the weight of the isometry loss, with a ring around the weight chosen.

    Args:
        lambdas: Weights, (L,).
        values: Per metric, one value a seed and weight, (n, L).
        ax: Where to draw.
        ylabel: Quantity and unit.
        chosen: Per metric, one of the weights.
        limit: Name and value of a dashed line.
        unregularised: Value at weight zero, drawn as a grey line.

    Returns:
        ``ax``.
    """
    if unregularised is not None:
        ax.axhline(unregularised, color=COLOURS["base"], linewidth=1.2, label=r"$\lambda = 0$")
    for method, table in values.items():
        median = np.median(table, axis=0)
        ax.plot(lambdas, table.T, "o", color=COLOURS[method], alpha=0.35, markersize=4, markeredgewidth=0)
        ax.plot(lambdas, median, color=COLOURS[method], label=NAMES[method])
        at = int(np.flatnonzero(lambdas == chosen[method])[0])
        ax.plot(lambdas[at], median[at], "o", markersize=11, markerfacecolor="none", markeredgecolor=COLOURS[method])
    if limit is not None:
        ax.axhline(limit[1], **THEORY, label=limit[0])
    ax.set(xscale="log", xlabel=r"weight of the isometry loss $\lambda$", ylabel=ylabel)
    return ax


def convergence(
    steps: FloatArray, exact: FloatArray, estimated: FloatArray, ax: Axes, *, ylabel: str, log: bool = False
) -> Axes:
    """Draw a quantity while training with exact traces and, repeated, with estimated ones.

    Args:
        steps: Steps, (T,).
        exact: With exact traces, (T,).
        estimated: With estimated traces, one column a repeat, (T, R).
        ax: Where to draw.
        ylabel: Quantity and unit.
        log: Draw the quantity on a logarithmic axis.

    Returns:
        ``ax``.
    """
    lines = ax.plot(steps, estimated, color=COLOURS["stereographic"], linewidth=1, alpha=0.7)
    lines[0].set_label(f"estimated, {estimated.shape[1]} repeats")
    ax.plot(steps, exact, **THEORY, label="exact traces")
    ax.set(xlabel="training step", ylabel=ylabel, yscale="log" if log else "linear")
    ax.legend()
    return ax
