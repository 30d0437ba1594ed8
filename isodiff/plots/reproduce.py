"""Figures of the reproduction: arms side by side over seeds, RTL over the weight, claims against what decides them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from isodiff.plots.style import COLOURS, THEORY
from isodiff.results import VERDICT_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from isodiff.reproduce.decide import Estimate


def arm_changes(
    estimates: Mapping[str, Estimate],
    ax: Axes,
    *,
    xlabel: str,
    rows: Sequence[str] | None = None,
) -> Axes:
    """Draw log ratios as changes in percent: a dot a seed, a bar for the interval, an arm a row.

    Args:
        estimates: Of each arm: log ratios.
        ax: Where to draw.
        xlabel: The quantity.
        rows: Arms from top to bottom; one without an estimate keeps its row, with a word. Default: those there are.

    Returns:
        ``ax``.
    """
    percent = lambda x: 100 * np.expm1(np.asarray(x, dtype=float))  # noqa: E731
    rows = list(estimates) if rows is None else rows
    for row, name in enumerate(rows):
        estimate = estimates.get(name)
        if estimate is None:
            ax.text(0.02, row, "not measured", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
            continue
        low, high = percent(estimate.interval)
        colour = COLOURS.get(name, "#222222")
        ax.plot([low, high], [row, row], color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
        ax.plot(percent(estimate.values), np.full(len(estimate.values), row), "o", ms=3.5, color=colour)
        ax.plot(percent(estimate.mean), row, "|", ms=11, mew=2, color=colour)
    ax.axvline(0, **THEORY)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    return ax


def rtl_by_weight(
    steps: Sequence[int], curves: Mapping[str, ArrayLike], ax: Axes, *, regularised_from: int = 500
) -> Axes:
    """Draw RTL(t), one curve a weight of the term, light to dark; the band is the range over seeds.

    Args:
        steps: Diffusion steps t, (T,).
        curves: For each weight, ascending, (S, T): RTL of every seed.
        ax: Where to draw.
        regularised_from: The step from which the term acts.

    Returns:
        ``ax``.
    """
    import matplotlib as mpl

    shades = mpl.colormaps["YlOrBr"](np.linspace(0.3, 0.95, len(curves)))
    for (name, values), shade in zip(curves.items(), shades, strict=True):
        rows = np.asarray(values, dtype=float)
        ax.fill_between(steps, rows.min(0), rows.max(0), color=shade, alpha=0.25, lw=0)
        ax.plot(steps, rows.mean(0), color=shade, label=name)
    ax.axhline(math.pi / 2 / math.sqrt(2), **THEORY)
    ax.annotate("round embedding, 1.1107", (0.99, math.pi / 2 / math.sqrt(2)), xycoords=("axes fraction", "data"),
                ha="right", va="bottom", fontsize=8)  # fmt: skip
    ax.axvspan(regularised_from, max(steps), color=COLOURS["base"], alpha=0.1, lw=0)
    ax.set(xlabel="diffusion step t (the term acts in the shaded part)", ylabel="RTL(t)", xlim=(max(steps), min(steps)))
    ax.legend(title="weight of the term", fontsize=8, title_fontsize=8)
    return ax


def two_quantities(points: Mapping[str, tuple[ArrayLike, ArrayLike]], ax: Axes, *, xlabel: str, ylabel: str) -> Axes:
    """Draw one quantity of every model over another, an arm a colour and a seed a marker.

    Args:
        points: Of each arm, (S,) and (S,).
        ax: Where to draw.
        xlabel: The first quantity.
        ylabel: The second.

    Returns:
        ``ax``.
    """
    import matplotlib as mpl

    for index, (name, (x, y)) in enumerate(points.items()):
        colour = COLOURS.get(name) or mpl.colormaps["tab20"](index)
        for seed, point in enumerate(zip(np.ravel(x), np.ravel(y), strict=True)):
            ax.plot(*point, "o^sDv"[seed % 5], ms=5, color=colour, label=None if seed else name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(fontsize=7.5, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def verdict_counts(groups: Mapping[str, Mapping[str, int]], ax: Axes) -> Axes:
    """Draw how many claims of each group had which verdict, as stacked bars with their numbers.

    Args:
        groups: For each group, from top to bottom, the number of claims by verdict.
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    left = np.zeros(len(groups))
    for kind, (sign, colour) in VERDICT_KINDS.items():
        counts = np.array([group.get(kind, 0) for group in groups.values()], dtype=float)
        ax.barh(range(len(groups)), counts, left=left, color=colour, height=0.7, label=f"{sign} {kind}")
        for row, count in enumerate(counts):
            if count:
                ax.text(left[row] + count / 2, row, f"{count:.0f}", ha="center", va="center", color="white", fontsize=9)
        left += counts
    ax.set_yticks(range(len(groups)), list(groups))
    ax.set(ylim=(len(groups) - 0.5, -0.5), xlabel="claims", ylabel="source")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, columnspacing=1, handlelength=1)
    return ax
