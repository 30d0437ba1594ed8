"""Figures of models at real size: how much of an isometry there is room for, and where their noise lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from isodiff.plots.style import COLOURS, THEORY

_SHELL_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#aa4499", "#56b4e9")


def room_for_isometry(sizes: Mapping[str, tuple[int, int]], ax: Axes) -> Axes:
    """Draw the dimension of the noise sphere beside that of the bottleneck, on a logarithmic axis.

    Args:
        sizes: By model, n (numbers in x_t) and m (numbers in h), from top to bottom.
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    rows = np.arange(len(sizes))
    spheres = np.array([n - 1 for n, _ in sizes.values()])
    bottlenecks = np.array([m for _, m in sizes.values()])
    ax.hlines(rows, np.minimum(spheres, bottlenecks), np.maximum(spheres, bottlenecks), color="#bbbbbb", lw=2)
    ax.plot(spheres, rows, "o", color=COLOURS["control"], label="noise sphere, n − 1")
    ax.plot(bottlenecks, rows, "s", color=COLOURS["isometric"], label="bottleneck, m")
    for row, (sphere, bottleneck) in enumerate(zip(spheres, bottlenecks, strict=True)):
        share = min(sphere, bottleneck) / sphere
        ax.annotate(f"{share:.0%}", (max(sphere, bottleneck), row), (9, 0), textcoords="offset points", va="center")
    ax.set_yticks(rows, list(sizes))
    ax.set(xscale="log", ylim=(len(sizes) - 0.4, -0.6), xlabel="dimension", ylabel="model")
    ax.set_xlim(spheres.min() / 3, 3.5 * max(spheres.max(), bottlenecks.max()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1, handletextpad=0.4)
    return ax


def shell_over_time(shells: Mapping[str, Sequence[Mapping[str, Any]]], ax: Axes, *, quantity: str) -> Axes:
    """Draw where the noisy images of data sets lie, against the sphere that the paper puts them on.

    Args:
        shells: By data set, the points of a `metrics.shell.Shell` as plain values, ascending in t.
        ax: Where to draw.
        quantity: ``"ratio"``, mean ‖x_t‖ over the paper's radius, less 1; or ``"variation"``, the thickness of the
            shell over that of noise, less 1.

    Returns:
        ``ax``.

    Raises:
        ValueError: If the quantity is neither.
    """
    labels = {"ratio": "mean radius / paper's − 1", "variation": "thickness / that of noise − 1"}
    if quantity not in labels:
        raise ValueError(f"quantity must be one of {', '.join(labels)}; got {quantity!r}")
    for (name, points), colour in zip(shells.items(), _SHELL_COLOURS, strict=False):
        unit = np.array([1.0 if quantity == "ratio" else point["noise_variation"] for point in points])
        t = np.array([point["t"] for point in points])
        low, high = np.array([point[f"{quantity}_interval"] for point in points]).T / unit - 1
        ax.fill_between(t, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(t, np.array([point[quantity] for point in points]) / unit - 1, "o-", color=colour, ms=4, label=name)
    ax.axhline(0.01 if quantity == "ratio" else 0.1, **THEORY, label="1 %" if quantity == "ratio" else "10 %")
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set(xlabel="step t", ylabel=labels[quantity])
    ax.set_ylim(bottom=-0.02 if quantity == "ratio" else -0.2)
    ax.legend(loc="upper right", frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return ax
