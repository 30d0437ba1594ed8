"""Figures of geodesics in noise space: where paths run, how solvers are misled, how far from the data paths stray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from isodiff.plots.score_jacobian import MARKERS, SERIES, noise_colours, plane
from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]

# a method has one colour; variants of it differ in the line
_TANGENTIAL, _DENSITY = COLOURS["tangential"], COLOURS["density"]
PATH_STYLES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lerp": {"color": COLOURS["lerp"]},
        "slerp": {"color": COLOURS["slerp"]},
        "density ½": {"color": _DENSITY, "linestyle": ":"},
        "density 1": {"color": _DENSITY},
        "tangential": {"color": _TANGENTIAL},
        "from lerp": {"color": _TANGENTIAL, "linestyle": "-."},
        "from slerp": {"color": _TANGENTIAL, "linestyle": ":"},
        "from a graph": {"color": _TANGENTIAL},
        "graph": {"color": "#8a8a8a"},
        "level set": {"color": COLOURS["control"]},
        "closed form": dict(THEORY),
    }
)
_MANIFOLD = "#b5b5b5"


def path_style(name: str) -> dict[str, object]:
    """Return how a path is drawn: its method's colour, and a line of its own for a variant.

    Raises:
        ValueError: If no style has that name.
    """
    if name not in PATH_STYLES:
        raise ValueError(f"a path must be called one of {', '.join(PATH_STYLES)}; got {name!r}")
    return {"linewidth": 2.0, **PATH_STYLES[name]}


def paths_in_plane(
    paths: Mapping[str, FloatArray],
    ax: Axes,
    *,
    manifold: Sequence[FloatArray] = (),
    log_density: tuple[FloatArray, FloatArray, FloatArray] | None = None,
    nodes: bool = False,
) -> Axes:
    """Draw paths in the plane, over the density they run through and the clean manifold.

    Args:
        paths: By name, a key of ``PATH_STYLES``, points, (K, 2).
        ax: Where to draw.
        manifold: Curves of clean data, (K, 2) each.
        log_density: Coordinates (X,) and (Y,) and log p on their grid, (Y, X).
        nodes: Mark the points of every path but closed forms.

    Returns:
        ``ax``.
    """
    if log_density is not None:
        _density(ax, *log_density)
    for index, line in enumerate(manifold):
        ax.plot(*line.T, color=_MANIFOLD, linewidth=3.5, zorder=1, label="clean data" if index == 0 else None)
    for name, path in paths.items():
        marker = "." if nodes and name != "closed form" else None
        order = 4 if name == "closed form" else 3
        ax.plot(*path.T, **path_style(name), marker=marker, markersize=6, zorder=order, label=name)
    ends = next(iter(paths.values()))[[0, -1]]
    ax.plot(*ends.T, "o", color="black", markersize=5, zorder=5)
    return plane(ax)


def paths_by_noise(
    paths: Mapping[str, FloatArray], ax: Axes, *, log_density: tuple[FloatArray, FloatArray, FloatArray]
) -> Axes:
    """Draw the paths of a continuation over the density at its end, from light at high to dark at low noise.

    Args:
        paths: By noise level, from high to low, points, (K, 2).
        ax: Where to draw.
        log_density: As in `paths_in_plane`.

    Returns:
        ``ax``.
    """
    _density(ax, *log_density)
    for colour, (name, path) in zip(noise_colours(len(paths)), paths.items(), strict=True):
        ax.plot(*path.T, color=colour, linewidth=2, zorder=3, label=name)
    ends = next(iter(paths.values()))[[0, -1]]
    ax.plot(*ends.T, "o", color="black", markersize=5, zorder=5)
    return plane(ax)


def nodes_on_profile(
    x: FloatArray, profile: FloatArray, nodes: Mapping[str, FloatArray], ax: Axes, *, xlabel: str, ylabel: str
) -> Axes:
    """Draw a quantity along a line, and where the nodes of paths on that line sit.

    Args:
        x: Positions, ascending, (K,).
        profile: The quantity there, (K,).
        nodes: By name, positions of a path's nodes, (N + 1,).
        ax: Where to draw.
        xlabel: What the positions are.
        ylabel: The quantity.

    Returns:
        ``ax``.
    """
    ax.plot(x, profile, color="#555555", linewidth=1.5, zorder=1)
    low, high = profile.min(), profile.max()
    for index, (name, positions) in enumerate(nodes.items()):
        level = low - (0.14 + 0.12 * index) * (high - low)
        colour = SERIES[index]
        ax.plot(
            positions, np.interp(positions, x, profile), MARKERS[index], color=colour, markersize=5, zorder=3 - index
        )
        ax.plot(
            positions,
            np.full_like(positions, level),
            MARKERS[index],
            color=colour,
            markersize=4,
            alpha=0.7,
            label=name,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="upper right")
    return ax


def quadrature_errors(
    segments: FloatArray, errors: Mapping[str, FloatArray], ax: Axes, *, orders: Mapping[str, int]
) -> Axes:
    """Draw the relative error of the energy over the number of segments, on powers of it.

    Args:
        segments: N, ascending, (K,).
        errors: By quadrature, the absolute value of the relative error, (K,).
        ax: Where to draw.
        orders: By quadrature, the exponent of 1/N in its law, drawn through the last point.

    Returns:
        ``ax``.
    """
    for index, (name, values) in enumerate(errors.items()):
        if name in orders:
            law = values[-1] * (segments[-1] / segments) ** orders[name]
            label = "1/N, 1/N²" if name == next(iter(orders)) else None
            ax.plot(segments, 100 * law, **THEORY, zorder=1, label=label)
        ax.plot(segments, 100 * values, MARKERS[index], color=SERIES[index], markersize=6, label=name)
    ax.set(xscale="log", yscale="log", xlabel="segments N", ylabel="error of the energy, %")
    ax.set_xticks(segments, [f"{n:g}" for n in segments])
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def distances_by_method(
    distances: Mapping[str, Mapping[str, FloatArray]],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]],
    ax: Axes,
    *,
    floor: float = 1e-4,
) -> Axes:
    """Draw distances to the manifold side by side, a group a manifold, a dot a pair, means with intervals.

    Args:
        distances: By manifold, by method, one value a pair, (n,).
        intervals: By manifold, by method, the ends of the interval of the mean.
        ax: Where to draw.
        floor: Smaller values are drawn here.

    Returns:
        ``ax``.
    """
    methods = list(dict.fromkeys(method for group in distances.values() for method in group))
    for index, method in enumerate(methods):
        style = path_style(method)
        face = "white" if style.get("linestyle") == ":" else style["color"]
        for position, (manifold, group) in enumerate(distances.items()):
            x = position + 0.15 * (index - (len(methods) - 1) / 2)
            values, (low, high) = np.maximum(group[method], floor), np.maximum(intervals[manifold][method], floor)
            ax.plot(np.full(len(values), x), values, "_", color=style["color"], alpha=0.35, markersize=8)
            ax.plot([x, x], [low, high], color=style["color"], linewidth=4, alpha=0.45, solid_capstyle="butt")
            mean = max(float(np.mean(group[method])), floor)
            label = method if position == 0 else None
            ax.plot(x, mean, "o", color=style["color"], markerfacecolor=face, markersize=7, zorder=3, label=label)
    ax.set_xticks(range(len(distances)), list(distances))
    ax.set(yscale="log", xlabel="manifold", ylabel="mean distance to it", xlim=(-0.6, len(distances) - 0.4))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _density(ax: Axes, x: FloatArray, y: FloatArray, values: FloatArray) -> None:
    ax.grid(False)  # else the lightest shade would hide some of it
    shares = np.exp(values - np.max(values))
    ax.contourf(x, y, shares, levels=np.linspace(0.02, 1, 9), cmap="Greys", vmin=0, vmax=2.6)
