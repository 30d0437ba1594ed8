"""Figures of paths between images: what is short against what is sharp, and what the noise level decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isodiff.plots.metrics import colour_of
from isodiff.plots.style import THEORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def length_and_detail(points: Mapping[str, tuple[ArrayLike, ArrayLike]], ax: Axes) -> Axes:
    """Draw the perceptual length of paths over the detail of the images in between.

    Args:
        points: By method, detail and length of each pair, (P,) each.
        ax: Where to draw.

    Returns:
        ``ax``; dashed, the detail of the ends.
    """
    for index, (name, (detail, length)) in enumerate(points.items()):
        colour = colour_of(name, index)
        ax.plot(detail, length, "o", color=colour, ms=3, alpha=0.3, mew=0)
        ax.plot(np.mean(detail), np.mean(length), "o", color=colour, ms=10, mec="white", label=name.replace("_", " "))
    ax.axvline(1, **THEORY)
    ax.set(xlabel="detail of the images in between, ends = 1", ylabel="LPIPS length of the path", yscale="log")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def by_level(
    curves: Mapping[str, Sequence[tuple[float, float, tuple[float, float]]]],
    ax: Axes,
    *,
    ylabel: str,
    log: bool = False,
) -> Axes:
    """Draw a measurement over the noise level, one line a method, with intervals.

    Args:
        curves: By method, (share of T, value, interval) at each level, ascending.
        ax: Where to draw.
        ylabel: The measurement.
        log: Whether its axis is logarithmic.

    Returns:
        ``ax``.
    """
    for index, (name, rows) in enumerate(curves.items()):
        shares, values, intervals = zip(*rows, strict=True)
        colour = colour_of(name, index)
        ax.plot(shares, values, "o-", color=colour, ms=4, label=name)
        ax.fill_between(shares, *np.asarray(intervals).T, color=colour, alpha=0.15, lw=0)
    ax.set(xlabel=r"level $\tau$, share of $T$", ylabel=ylabel, yscale="log" if log else "linear")
    ax.set_xticks(shares)
    ax.legend(loc="best")
    return ax
