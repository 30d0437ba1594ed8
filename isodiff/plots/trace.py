"""Figures of traces without matrices: laws on logarithmic axes, running estimates, time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from isodiff.plots.style import THEORY

FloatArray = NDArray[np.floating]

# probes, estimators and products in Tol's muted scheme; the methods of the course keep their own colours
TRACE_COLOURS = MappingProxyType(
    {
        "Gaussian": "#117733",
        "Rademacher": "#cc6677",
        r"$A$": "#117733",
        r"$A^\top A$": "#999933",
        "estimate": "#117733",
        "ratio of means": "#117733",
        "unbiased denominator": "#882255",
        "jackknife": "#999933",
        "mean of ratios": "#cc6677",
        r"$Jv$": "#117733",
        r"$J^\top J v$": "#999933",
        "dense $J$": "#882255",
        "the two vectors": "#117733",
        "graph of one product": "#999933",
    }
)
_MARKERS = ("o", "s", "^", "D")


def law(
    x: Mapping[str, FloatArray],
    measured: Mapping[str, FloatArray],
    ax: Axes,
    *,
    theory: Mapping[str, FloatArray],
    xlabel: str,
    ylabel: str,
    theory_label: str = "theory",
) -> Axes:
    """Draw measurements with intervals over their laws, on logarithmic axes.

    Args:
        x: By series, where it was measured, (N,).
        measured: By series, value and the two ends of its interval, (3, N), all positive.
        ax: Where to draw.
        theory: By series, the predicted values, (N,); series without a prediction are left out.
        xlabel: What varies, with its unit.
        ylabel: What is measured, with its unit.
        theory_label: Entry of the dashed lines in the legend.

    Returns:
        ``ax``.
    """
    for index, (name, (value, low, high)) in enumerate(measured.items()):
        if name in theory:
            ax.plot(x[name], theory[name], **THEORY, zorder=1, label=theory_label if index == 0 else None)
        ax.errorbar(
            x[name],
            value,
            yerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
            fmt=_MARKERS[index],
            color=TRACE_COLOURS[name],
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label=name,
        )
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ticks = np.unique(np.concatenate([np.asarray(positions) for positions in x.values()]))
    return _plain_ticks(ax, ticks[:: max(1, len(ticks) // 6)])


def running_estimate(
    samples: FloatArray, exact: float, ax: Axes, *, spread: FloatArray, name: str, ylabel: str
) -> Axes:
    """Draw an estimate as probes come in, its own two-standard-error band, and the exact value.

    Args:
        samples: The estimate after each number of probes, (N,).
        exact: The exact value.
        ax: Where to draw.
        spread: Half-width of the band after each number of probes, (N,), NaN where there is none yet.
        name: Colour and label of the estimate, a key of ``TRACE_COLOURS``.
        ylabel: What is estimated, with its unit.

    Returns:
        ``ax``.
    """
    count = np.arange(1, len(samples) + 1)
    ax.fill_between(
        count,
        samples - spread,
        samples + spread,
        color=TRACE_COLOURS[name],
        alpha=0.2,
        linewidth=0,
        label="± 2 standard errors",
    )
    ax.plot(count, samples, color=TRACE_COLOURS[name], label=name)
    ax.axhline(exact, **THEORY, label="exact, from the dense Jacobian")
    ax.set(xscale="log", xlabel="number of probes K", ylabel=ylabel, xlim=(1, len(samples)))
    ax.legend(loc="best")
    return _plain_ticks(ax, 4 ** np.arange(int(np.log(len(samples)) / np.log(4)) + 1))


def cost_against_resolution(
    resolutions: Mapping[str, FloatArray],
    cost: Mapping[str, FloatArray],
    ax: Axes,
    *,
    powers: Mapping[str, int],
    ylabel: str,
    unit: Mapping[str, float],
    paper: Mapping[str, float] | None = None,
) -> Axes:
    """Draw costs against the side of the image with their power laws, continued to the largest side of all.

    Args:
        resolutions: By product, the sides R that were measured, ascending, (N,), in pixels.
        cost: By product, cheapest first, the measured cost, (N,).
        ax: Where to draw.
        powers: By product, the exponent of R in its law, drawn through the last measurement.
        ylabel: Which cost, with its unit.
        unit: Names of round costs, to place ticks where a reader thinks: ``{"1 s": 1.0}``.
        paper: By product, the paper's own value at the largest side, drawn as a star.

    Returns:
        ``ax``.
    """
    sides = np.unique(np.concatenate(list(resolutions.values())))
    for index, (name, values) in enumerate(cost.items()):
        colour, last = TRACE_COLOURS[name], resolutions[name][-1]
        expected = values[-1] * (sides / last) ** powers[name]
        ax.plot(sides, expected, **THEORY, zorder=1)
        ax.plot(resolutions[name], values, _MARKERS[index], color=colour, markersize=5.5, label=name)
        if last < sides[-1]:
            ax.plot(
                sides[-1],
                expected[-1],
                _MARKERS[index],
                color=colour,
                markerfacecolor="white",
                markersize=6.5,
            )
        if index in (0, len(cost) - 1):
            above, middle = index > 0, np.sqrt(sides[0] * sides[-1])
            ax.annotate(
                rf"$\propto R^{powers[name]}$",
                (middle, values[-1] * (middle / last) ** powers[name]),
                (-4, 5) if above else (4, -13),
                textcoords="offset points",
                ha="right" if above else "left",
            )
        if paper and name in paper:
            ax.plot(sides[-1], paper[name], "*", color=colour, markersize=13, markeredgecolor="white", zorder=4)
    ax.set(xscale="log", yscale="log", xlabel="side R of the image, pixels", ylabel=ylabel)
    ax.yaxis.set_major_locator(FixedLocator(list(unit.values())))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _name_of(value, unit)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(loc="upper left")
    return _plain_ticks(ax, 2.0 ** np.arange(np.ceil(np.log2(sides[0])), np.log2(sides[-1]) + 1))


def _name_of(value: float, names: Mapping[str, float]) -> str:
    return min(names, key=lambda name: abs(np.log(names[name] / value)))


def _plain_ticks(ax: Axes, ticks: FloatArray) -> Axes:
    ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    return ax
