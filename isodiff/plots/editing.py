"""Figures of edits: what a move along a direction changes, and what comes back from an inversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isodiff.plots.metrics import colour_of
from isodiff.plots.style import COLOURS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_QUIET = "#c4c4c4"


def factors_along_move(
    gammas: ArrayLike, factors: ArrayLike, names: Sequence[str], target: int, ax: Axes, *, colour: str = "isometric"
) -> Axes:
    """Draw every factor along a move, the target in colour and the strongest other one dark.

    Args:
        gammas: (G,), ascending.
        factors: (G, K), each of range [−1, 1].
        names: Of the factors, (K,).
        target: Index of the target.
        ax: Where to draw.
        colour: Name of the method, of which the target has the colour.

    Returns:
        ``ax``.
    """
    x, z = np.asarray(gammas, dtype=float), np.asarray(factors, dtype=float)
    change = np.ptp(z, axis=0)
    change[target] = -1
    other = int(change.argmax())
    for k in range(z.shape[1]):
        if k not in (target, other):
            ax.plot(x, z[:, k], color=_QUIET, lw=1, zorder=1)
    ax.plot(x, z[:, other], "s--", color="#444444", ms=3.5, lw=1.3, label=f"most changed other: {names[other]}")
    ax.plot(x, z[:, target], "o-", color=COLOURS[colour], ms=4, label=f"target: {names[target]}")
    ax.axvline(0, color=_QUIET, lw=0.8)
    ax.set(xlabel=r"arc length $\gamma$, units of $x$", ylabel="factor, range −1 to 1", ylim=(-1.08, 1.08))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return ax


def error_by_steps(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], ax: Axes, *, ylabel: str, dashed: Sequence[str] = ()
) -> Axes:
    """Draw an error over the number of steps, both logarithmic, with intervals.

    Args:
        curves: By name, steps (K,), values (K,) and intervals (K, 2). Names that begin alike up to a comma share their
            colour.
        ax: Where to draw.
        ylabel: The error.
        dashed: Names of the curves to be drawn dashed.

    Returns:
        ``ax``.
    """
    models = list(dict.fromkeys(name.split(",")[0] for name in curves))
    for name, (steps, values, intervals) in curves.items():
        model = name.split(",")[0]
        colour, low_high = colour_of(model, models.index(model)), np.asarray(intervals, dtype=float).T
        line = "s--" if name in dashed else "o-"
        ax.plot(steps, values, line, color=colour, ms=4, label=name, mfc="white" if name in dashed else colour)
        ax.fill_between(np.asarray(steps, dtype=float), *low_high, color=colour, alpha=0.15, lw=0)
    ticks = sorted({int(step) for steps, _, _ in curves.values() for step in np.asarray(steps)})
    ax.set(xscale="log", yscale="log", xlabel="DDIM steps, down and up", ylabel=ylabel)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1, borderaxespad=0.2)
    return ax
