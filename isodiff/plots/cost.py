"""Figures of what the regulariser costs: over resolution, against the gradient's variance, and on the way to isotropy.

Each takes what the programs `cost.py` and `isotropy_race.py` of the benchmarks write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isodiff.plots.style import COLOURS, THEORY

# method → label, colour, marker: plain training and the full term keep the colours they have across the course
METHODS = MappingProxyType(
    {
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
)
_UNITS = {"cpu_seconds": "CPU seconds a pass", "seconds": "seconds a pass", "mib": "peak memory of a pass, MiB"}


def cost_over_resolution(
    cells: Sequence[Mapping[str, Any]], ax: Axes, *, batch: int, quantity: str = "cpu_seconds"
) -> Axes:
    """Draw what a step costs each way over the side of the image, on logarithmic axes.

    Args:
        cells: The part ``steps`` of `cost.py`: ``resolution``, ``batch`` and, by way, the quantities.
        ax: Where to draw.
        batch: Rows a step; cells of other batches are left out.
        quantity: ``"cpu_seconds"``, ``"seconds"`` or ``"mib"``.

    Returns:
        ``ax``.

    Raises:
        ValueError: If the quantity is unknown or no cell of this batch was measured.
    """
    if quantity not in _UNITS:
        raise ValueError(f"quantity must be one of {', '.join(_UNITS)}, got {quantity!r}")
    measured = [cell for cell in cells if cell["batch"] == batch and "ways" in cell]
    if not measured:
        raise ValueError(f"no cell of batch {batch} was measured; there are {sorted({c['batch'] for c in cells})}")
    for name, (label, colour, marker) in METHODS.items():
        points = [(cell["resolution"], cell["ways"][name][quantity]) for cell in measured if name in cell["ways"]]
        points = [point for point in points if point[1]]
        if points:
            ax.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=label)
    sides = sorted({cell["resolution"] for cell in measured})
    ax.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=_UNITS[quantity])
    ax.set_title(f"batch {batch}")
    ax.xaxis.set_major_locator(FixedLocator(sides))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    ax.legend(loc="upper left", ncols=2, fontsize=8)
    return ax


def variance_against_cost(variance: Mapping[str, Mapping[str, float]], ax: Axes, *, term_over_dsm: float = 1.0) -> Axes:
    """Draw the variance of the term's gradient against what it adds to a step.

    Args:
        variance: By form of the term, ``variance``, relative to the squared mean, and ``cost``, in full terms a step,
            as it would be in proportion to rows and steps; small batches cost more than that.
        ax: Where to draw.
        term_over_dsm: What the full term costs, in denoising passes.

    Returns:
        ``ax``.
    """
    families = {
        "fewer rows": (("eighth", "1/8"), ("fraction", "1/4"), ("half", "1/2"), ("full", "all rows, every step")),
        "fewer steps": (("every 8", "k = 8"), ("every 4", "k = 4"), ("every 2", "k = 2"), ("full", "")),
    }
    for (family, points), (_, colour, marker) in zip(
        families.items(), (METHODS["fraction"], METHODS["lazy"]), strict=True
    ):
        known = [(name, text) for name, text in points if name in variance]
        x = np.array([100 * term_over_dsm * variance[name]["cost"] for name, _ in known])
        y = np.array([variance[name]["variance"] for name, _ in known])
        ax.plot(x, y, color=colour, marker=marker, markersize=6, label=family)
        below = family == "fewer rows"
        for (_, text), xi, yi in zip(known, x, y, strict=True):
            shift = (-6, -14) if below else (7, 4)
            side = "right" if below else "left"
            ax.annotate(text, (xi, yi), shift, textcoords="offset points", fontsize=9, ha=side, color=colour)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="nominal cost added to a step, % of the denoising pass",
        ylabel="variance / squared mean of the gradient",
    )
    ax.margins(0.2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator([5, 10, 20, 50, 100]))
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200]))
    ax.legend(loc="upper right")
    return ax


def isotropy_over_time(race: Mapping[str, Any], ax: Axes) -> Axes:
    """Draw isotropy over computing time for each method at its best λ, and the target.

    Args:
        race: What `isotropy_race.py` writes: ``curves``, ``best_lambda``, ``cpu_seconds_a_step``.
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    best, seconds = dict(race["best_lambda"]) | {"control": 0.0}, race["cpu_seconds_a_step"]["step"]
    finals = []
    for method in ("control", "released", "full", "lazy", "fraction"):
        runs = [run for run in race["curves"] if (run["method"], run["lambda"]) == (method, best.get(method))]
        label, colour, marker = METHODS[method]
        for index, run in enumerate(runs):
            x = seconds[method] * np.array(run["step"])
            weight = "" if method == "control" else f", λ = {run['lambda']:g}"
            ax.plot(x, run["isotropy"], color=colour, marker=marker, markersize=4, linewidth=1.4, alpha=0.9,
                    label=label + weight if index == 0 else None)  # fmt: skip
            if method == "control":
                finals.append(run["isotropy"][-1])
    ax.axhline(np.mean(finals) / 4, **THEORY, label="a quarter of the control's")
    ax.set(yscale="log", xlabel="CPU seconds of training", ylabel="isotropy, held-out images (1 is perfect)")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlim(left=0)
    ax.legend(loc="upper right", fontsize=8)
    return ax
