"""Figures of uncertain numbers: models side by side, repeated experiments, paired differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isodiff.plots.metrics import colour_of
from isodiff.plots.style import COLOURS, THEORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

PAPER = COLOURS["chart_identity"]
"""What a paper reports, beside what was measured."""


def grouped_points(
    groups: Mapping[str, Mapping[str, tuple[float, tuple[float, float] | None]]],
    ax: Axes,
    *,
    ylabel: str,
    xlabel: str = "protocol",
    lines: Mapping[str, float] | None = None,
) -> Axes:
    """Draw values with intervals side by side, one colour a model.

    Args:
        groups: For each group, for each model, the value and its interval or None.
        ax: Where to draw.
        ylabel: The quantity.
        xlabel: What the groups are.
        lines: Levels to draw dashed, by name.

    Returns:
        ``ax``.
    """
    models = list(dict.fromkeys(model for group in groups.values() for model in group))
    for index, model in enumerate(models):
        colour, first = colour_of(model, index), True
        for position, group in enumerate(groups.values()):
            if model not in group:
                continue
            value, interval = group[model]
            x = position + 0.22 * (index - (len(models) - 1) / 2)
            if interval is not None:
                ax.plot([x, x], interval, color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
            ax.plot(x, value, "o", color=colour, ms=6, label=model if first else None)
            first = False
    for style, (name, level) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        ax.axhline(level, **{**THEORY, "linestyle": style}, label=name)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(xlim=(-0.6, len(groups) - 0.4), xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="x", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1, handletextpad=0.5)
    return ax


def interval_coverage(estimates: ArrayLike, intervals: ArrayLike, truth: float, ax: Axes, *, xlabel: str) -> Axes:
    """Draw the intervals of repeated experiments, and which of them miss the truth.

    Args:
        estimates: (R,).
        intervals: (R, 2).
        truth: The true value.
        ax: Where to draw.
        xlabel: The quantity.

    Returns:
        ``ax``.
    """
    low, high = np.asarray(intervals, dtype=float).T
    misses = (low > truth) | (high < truth)
    for hit, colour, name in ((~misses, COLOURS["control"], "covers"), (misses, COLOURS["isometric"], "misses")):
        rows = np.flatnonzero(hit)
        ax.hlines(rows, low[hit], high[hit], color=colour, lw=1.2, label=f"{name}, {len(rows)}")
        ax.plot(np.asarray(estimates)[hit], rows, "o", color=colour, ms=2.5)
    ax.axvline(truth, **THEORY, label="truth")
    ax.set(xlabel=xlabel, ylabel="experiment")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def difference_forest(
    names: Sequence[str],
    differences: ArrayLike,
    intervals: ArrayLike,
    ax: Axes,
    *,
    xlabel: str,
    paper: Mapping[str, float] | None = None,
    limit: float | None = None,
) -> Axes:
    """Draw paired differences with their intervals, filled where zero lies outside.

    Args:
        names: Of the metrics, from top to bottom.
        differences: (R,).
        intervals: (R, 2).
        ax: Where to draw.
        xlabel: The unit of the differences.
        paper: The paper's difference for some of the names.
        limit: Half the width of the axis; values and ends of intervals that lie beyond are drawn as arrows at
            its edge.

    Returns:
        ``ax``.
    """
    limit = np.inf if limit is None else limit
    colours = {True: "#222222", False: "#8a8a8a"}
    for row, (name, value, (low, high)) in enumerate(zip(names, differences, intervals, strict=True)):
        outside = not low <= 0 <= high
        ax.plot(np.clip([low, high], -limit, limit), [row, row], color=colours[outside], lw=2)
        for end in (low, high):
            if abs(end) > limit:
                ax.plot(np.sign(end) * limit, row, "<" if end < 0 else ">", ms=4, color=colours[outside])
        marker = "o" if abs(value) <= limit else "<" if value < 0 else ">"
        face = colours[outside] if outside else "white"
        ax.plot(np.clip(value, -limit, limit), row, marker, ms=6, color=colours[outside], mfc=face, zorder=3)
        if paper and name in paper:
            ax.plot(np.clip(paper[name], -limit, limit), row, "D", ms=5, color=PAPER, mfc="none", zorder=2)
    for marker, face, colour, text in (
        ("o", colours[True], colours[True], "interval without zero"),
        ("o", "white", colours[False], "interval with zero"),
        *((("D", "none", PAPER, "paper"),) if paper else ()),
    ):
        ax.plot([], [], marker, mfc=face, color=colour, label=text)
    ax.axvline(0, **THEORY)
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    if np.isfinite(limit):
        ax.set_xlim(-1.05 * limit, 1.05 * limit)
    ax.set(xlabel=xlabel, ylabel="metric")
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1, handletextpad=0.3)
    return ax
