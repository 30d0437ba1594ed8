"""Figures of walks between two latents: how fast the image changes on the way, off the shell, and pair by pair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import LogLocator

from isodiff.plots.metrics import colour_of
from isodiff.plots.style import COLOURS, THEORY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_QUIET = "#b8b8b8"


def adjacent_distances(
    distances: Mapping[str, ArrayLike],
    ax: Axes,
    *,
    intervals: Mapping[str, ArrayLike] | None = None,
    ylabel: str = "LPIPS to the next frame",
) -> Axes:
    """Draw the distance between adjacent frames along a path (the plot under Fig. 6 of Hahm et al. 2024).

    Args:
        distances: For each model or path, (N,) distances from frame j to frame j + 1, drawn midway between the two.
        ax: Where to draw.
        intervals: For some of them, (N, 2) interval ends.
        ylabel: The distance.

    Returns:
        ``ax``; dotted, the mean of each: the distance at constant speed.
    """
    for index, (name, values) in enumerate(distances.items()):
        values, colour = np.asarray(values, dtype=float), colour_of(name, index)
        middle = (np.arange(len(values)) + 0.5) / len(values)
        if intervals and name in intervals:
            low, high = np.asarray(intervals[name], dtype=float).T
            ax.fill_between(middle, low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(middle, values, "o-", ms=4, color=colour, label=name)
        (mean,) = ax.plot([0, 1], [values.mean()] * 2, ":", lw=1.2, color=colour)
        mean.sticky_edges.y.append(0)  # the axis begins at 0 and may still grow, as axes that share it ask
    ax.update_datalim([(0, 0)])
    ax.autoscale_view()
    ax.set(xlim=(0, 1), xlabel=r"position $\tau$ on the path", ylabel=ylabel)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)
    return ax


def against_radius(
    radii: ArrayLike,
    curves: Mapping[str, ArrayLike],
    ax: Axes,
    *,
    ylabel: str,
    intervals: Mapping[str, ArrayLike] | None = None,
    others: ArrayLike | None = None,
) -> Axes:
    """Draw what becomes of an image when its latent is made shorter or longer than noise is.

    Args:
        radii: ‖x_T‖ / E‖x_T‖, (R,), ascending.
        curves: For each name, (R,) values.
        ax: Where to draw.
        ylabel: The quantity.
        intervals: For some of the names, (R, 2) interval ends.
        others: (R, K) further curves, in grey and without a name.

    Returns:
        ``ax``; dashed, the shell that noise lives on, and dotted, the length of lerp's midpoint, 1/√2 of it.
    """
    if others is not None:
        ax.plot(radii, np.asarray(others), color=_QUIET, lw=0.8, zorder=1)
    for index, (name, values) in enumerate(curves.items()):
        colour = colour_of(name, index)
        if intervals and name in intervals:
            low, high = np.asarray(intervals[name], dtype=float).T
            ax.fill_between(radii, low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(radii, values, "o-", ms=4, color=colour, label=name)
    ax.axvline(1, **THEORY, label="shell of noise")
    ax.axvline(math.sqrt(0.5), **{**THEORY, "linestyle": ":"}, label="midway on lerp")
    ax.set(xlabel=r"$\|x_T\|$ over its mean, $E\|x\|$", ylabel=ylabel)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, columnspacing=1)
    return ax


def pair_by_pair(
    first: ArrayLike,
    second: ArrayLike,
    ax: Axes,
    *,
    names: tuple[str, str],
    quantity: str,
    marked: Mapping[str, int] | None = None,
    logarithmic: bool = True,
) -> Axes:
    """Draw a quantity of two models on the same pairs of latents, one point a pair.

    Args:
        first: Of the first model, (P,); positive, or with linear axes not negative.
        second: Of the second, (P,), likewise.
        ax: Where to draw.
        names: Of the two models.
        quantity: What is drawn, smaller being better.
        marked: By what to call it, the number of a pair to point out.
        logarithmic: Whether the axes are.

    Returns:
        ``ax``; dashed, where the two are equal. Points below it, where the second is smaller, are in its colour.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    below = second < first
    for chosen, name in ((~below, names[0]), (below, names[1])):
        label = f"{name} smaller, {chosen.sum()} of {len(first)}"
        ax.plot(first[chosen], second[chosen], "o", ms=4, alpha=0.7, color=COLOURS[name], label=label)
    low = min(first.min(), second.min()) / 1.2 if logarithmic else 0.0
    ends = (low, 1.2 * max(first.max(), second.max()))
    ax.plot(ends, ends, **THEORY, label="equal")
    for text, pair in (marked or {}).items():
        ax.plot(first[pair], second[pair], "o", ms=10, mfc="none", color="black")
        label = ax.annotate(text, (first[pair], second[pair]), (8, -3), textcoords="offset points", fontsize=9)
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5})
    if logarithmic:
        ax.set(xscale="log", yscale="log")
        for axis in (ax.xaxis, ax.yaxis):  # less than a decade often: powers of ten alone would leave one without ticks
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    ax.set(xlim=ends, ylim=ends, box_aspect=1)
    ax.set(xlabel=f"{quantity}, {names[0]}", ylabel=f"{quantity}, {names[1]}")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=1, fontsize=8)
    return ax
