"""Curves and intervals that recur in the course: each draws on the axes it is given and returns them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from isodiff.plots.style import COLOURS, OTHERS, THEORY, colour_of

# ways of taking the isometry term → label, colour, marker; plain training and the full term keep their colours
WAYS = {
    "dsm": ("denoising loss alone", COLOURS["control"], "o"),
    "dsm, recomputed": ("denoising loss, recomputed", "#56b4e9", "v"),
    "control": ("control, λ = 0", COLOURS["control"], "o"),
    "full": ("full term", COLOURS["isometric"], "s"),
    "differences": ("full, by differences", "#e69f00", "D"),
    "differences, recomputed": ("by differences, recomputed", "#aa4499", "v"),
    "half": ("half of the rows", "#44aa99", "^"),
    "fraction": ("a quarter of the rows", "#009e73", "^"),
    "eighth": ("an eighth of the rows", "#117733", "^"),
    "lazy": ("every 4th step", "#882255", "P"),
    "released": ("released formula", "#555555", "X"),
}
Group = Mapping[str, tuple[float, tuple[float, float] | None]]  # by model, a value and its interval
Levels = Mapping[str, float]
_ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "columnspacing": 1, "handletextpad": 0.4}


def training_curves(curves: Mapping[str, Mapping[str, Sequence]], quantity: str, ax: Axes, *, smooth: int) -> Axes:
    """Draw "dsm" or "anisotropy", or None, of several runs against "step", and its mean over ``smooth`` points."""
    labels = {"dsm": r"$L_{\mathrm{dsm}}$ (mean squared error of the noise)"}
    labels["anisotropy"] = r"anisotropy $L_{\mathrm{iso}}\cdot$rank"
    for method, curve in curves.items():
        pairs = [(s, v) for s, v in zip(curve["step"], curve[quantity], strict=True) if v is not None]
        if not pairs:
            continue
        step, value = np.array(pairs, dtype=float).T
        width = min(smooth, len(value))
        ax.plot(step, value, color=COLOURS[method], lw=1, alpha=0.25)
        mean = np.convolve(value, np.ones(width) / width, mode="valid")
        ax.plot(step[width - 1 :], mean, color=COLOURS[method], label=method)
    if quantity == "anisotropy":
        ax.axhline(1, **THEORY, label="scaled isometry")
    ax.set(yscale="log", xlabel="optimiser step", ylabel=labels[quantity])
    ax.legend()
    return ax


def grouped_points(
    groups: Mapping[str, Group], ax: Axes, *, ylabel: str, xlabel: str = "protocol", lines: Levels | None = None
) -> Axes:
    """Draw each model's value with its interval side by side, group by group; ``lines`` are dashed levels."""
    models = list(dict.fromkeys(model for group in groups.values() for model in group))
    for index, model in enumerate(models):
        colour, offset = colour_of(model, index), 0.22 * (index - (len(models) - 1) / 2)
        points = {place + offset: group[model] for place, group in enumerate(groups.values()) if model in group}
        ax.plot(list(points), [value for value, _ in points.values()], "o", color=colour, ms=6, label=model)
        for x, (_, interval) in points.items():
            if interval is not None:
                ax.plot([x, x], interval, color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
    for style, (name, level) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        ax.axhline(level, **(THEORY | {"linestyle": style}), label=name)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(xlim=(-0.6, len(groups) - 0.4), xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="x", visible=False)
    ax.legend(**_ABOVE)
    return ax


def difference_forest(
    names: Sequence[str],
    differences: ArrayLike,
    intervals: ArrayLike,
    ax: Axes,
    *,
    xlabel: str,
    paper: Levels | None = None,
    limit: float = np.inf,
) -> Axes:
    """Draw paired differences (R,) with intervals (R, 2), filled where zero lies outside; arrows are beyond ±limit."""
    published = {"marker": "D", "ms": 5, "color": COLOURS["chart_identity"], "mfc": "none", "zorder": 2, "ls": "none"}
    for row, (name, value, (low, high)) in enumerate(zip(names, differences, intervals, strict=True)):
        colour, face = ("#8a8a8a", "white") if low <= 0 <= high else ("#222222", "#222222")
        ax.plot(np.clip([low, high], -limit, limit), [row, row], color=colour, lw=2)
        for end in (e for e in (low, high) if abs(e) > limit):
            ax.plot(np.sign(end) * limit, row, "<" if end < 0 else ">", ms=4, color=colour)
        marker = "o" if abs(value) <= limit else "<" if value < 0 else ">"
        ax.plot(np.clip(value, -limit, limit), row, marker, ms=6, color=colour, mfc=face, zorder=3)
        if paper and name in paper:
            ax.plot(np.clip(paper[name], -limit, limit), row, **published)
    ax.plot([], [], "o", color="#222222", label="interval without zero")
    ax.plot([], [], "o", mfc="white", color="#8a8a8a", label="interval with zero")
    if paper:
        ax.plot([], [], label="paper", **published)
    ax.axvline(0, **THEORY)
    ax.set_yticks(range(len(names)), list(names))
    ax.set(xlabel=xlabel, ylabel="metric", ylim=(len(names) - 0.4, -0.6))
    if np.isfinite(limit):
        ax.set_xlim(-1.05 * limit, 1.05 * limit)
    ax.grid(axis="y", visible=False)
    ax.legend(**_ABOVE)
    return ax


def cost_over_resolution(cells: Sequence[Mapping[str, Any]], ax: Axes, *, batch: int, quantity: str) -> Axes:
    """Draw a quantity of ``steps``, which `benchmarks/cost.py` writes, in each of the `WAYS` over the image's side."""
    units = {"cpu_seconds": "CPU seconds a pass", "seconds": "seconds a pass", "mib": "peak memory of a pass, MiB"}
    measured = [cell for cell in cells if cell["batch"] == batch and "ways" in cell]
    for name, (label, colour, marker) in WAYS.items():
        values = {cell["resolution"]: cell["ways"][name][quantity] for cell in measured if name in cell["ways"]}
        if points := [(side, value) for side, value in values.items() if value]:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)
    ax.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=units[quantity])
    ax.set_title(f"batch {batch}")
    sides = sorted({cell["resolution"] for cell in measured})
    ax.set_xticks(sides, map(str, sides))
    ax.set_xticks([], minor=True)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    ax.legend(loc="upper left", ncols=2, fontsize=8)
    return ax


def factor_paths(
    position: ArrayLike, factors: ArrayLike, names: Sequence[str], ax: Axes, *, columns: Sequence[int]
) -> Axes:
    """Draw the true factors (N + 1, K) along a path, columns in colour with their detours ∑|Δz| − |z_N − z_0|."""
    position, factors = np.asarray(position), np.asarray(factors, dtype=float)
    excess = np.abs(np.diff(factors, axis=0)).sum(axis=0) - np.abs(factors[-1] - factors[0])
    ax.plot(position, np.delete(factors, columns, axis=1), color="#b8b8b8", lw=0.8, zorder=1)
    for colour, column in zip(OTHERS, columns, strict=False):
        label = f"{names[column].replace('_', ' ')} +{excess[column]:.2f}"
        ax.plot(position, factors[:, column], "o-", ms=3, color=colour, label=label)
        ax.plot(position[[0, -1]], factors[[0, -1], column], ":", lw=1, color=colour)
    ax.set(ylim=(-1.05, 1.05), xlabel="position on the path", ylabel="factor")
    ax.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
    return ax
