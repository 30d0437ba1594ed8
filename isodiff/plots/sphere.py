"""Figures of the shell that noise lives on: its radius, its thickness, and both at each step t."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]

DATA_COLOURS = MappingProxyType({"digits": "#44aa99", "faces": "#cc6677"})
PAPER = MappingProxyType({"color": "#882255", "linestyle": "-.", "linewidth": 1.5})  # what the paper states
_LARGEST_DIMENSION = 196_608


def dimension_colour(n: int) -> tuple[float, float, float, float]:
    """Return the colour of a dimension: violet at 2, yellow-green from 196,608 on, by its logarithm."""
    return colormaps["viridis"](0.88 * min(1.0, np.log(n / 2) / np.log(_LARGEST_DIMENSION / 2)))


def noise_ring(points: FloatArray, ax: Axes, *, n: int) -> Axes:
    """Draw noise at its true distance from the origin, in units of √n; a shell becomes a ring.

    Args:
        points: (N, 2), each with the norm ‖x‖/√n of one noise vector, in the direction of its first two
            coordinates.
        ax: Where to draw.
        n: Dimension of the noise.

    Returns:
        ``ax``.
    """
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.scatter(points[:, 0], points[:, 1], s=3.5, color=dimension_colour(n), linewidths=0)
    ax.plot(np.cos(angle), np.sin(angle), **{**THEORY, "linewidth": 0.7}, zorder=3)
    ax.plot(0, 0, "+", color="#555555", markersize=7, zorder=4)
    norms = np.linalg.norm(points, axis=1)
    ax.set(xlim=(-1.95, 1.95), ylim=(-1.95, 1.95), aspect="equal", title=f"n = {n:,}")
    ax.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    ax.set_xlabel(f"units of $\\sqrt{{n}}$\nthickness {100 * norms.std() / norms.mean():.2g} % of the radius")
    ax.set_ylabel(r"units of $\sqrt{n}$")
    return ax


def ridges(
    samples: Mapping[int, FloatArray],
    density: Callable[[int, FloatArray], FloatArray],
    ax: Axes,
    *,
    xlabel: str,
    limits: tuple[float, float],
    bins: int = 32,
) -> Axes:
    """Stack one histogram per dimension over its theoretical density, each scaled to the same height.

    Args:
        samples: By dimension n, the measured values, (N,).
        density: ``density(n, values)``, the theoretical density at the given values.
        ax: Where to draw.
        xlabel: What was measured, with its unit.
        limits: Range of the axis.
        bins: Bars in each histogram.

    Returns:
        ``ax``.
    """
    for row, (n, values) in enumerate(samples.items()):
        height, edges = np.histogram(values, bins=bins, density=True)
        scale, base = 0.82 / height.max(), -float(row)
        colour = dimension_colour(n)
        ax.stairs(base + scale * height, edges, baseline=base, fill=True, facecolor=colour, edgecolor=colour, lw=1.8)
        margin = 0.25 * (edges[-1] - edges[0])
        low, high = max(limits[0], edges[0] - margin), min(limits[1], edges[-1] + margin)
        grid = np.linspace(low, high, 1001)[1:-1]
        theory = base + scale * density(n, grid)
        label = "theory" if row == 0 else None
        ax.plot(grid, np.where(theory <= base + 1, theory, np.nan), **{**THEORY, "linewidth": 1}, label=label)
    ax.set(xlim=limits, ylim=(0.15 - len(samples), 1.25), xlabel=xlabel, ylabel="dimension n")
    ax.set_yticks([-row for row in range(len(samples))], [f"{n:,}" for n in samples])
    ax.grid(axis="y", visible=True)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.legend(loc="upper right")
    return ax


def against_dimension(
    dimensions: Sequence[int],
    values: FloatArray,
    ax: Axes,
    *,
    ylabel: str,
    theory: Callable[[FloatArray], FloatArray],
    theory_label: str,
    errors: FloatArray | None = None,
    claim: tuple[float, str] | None = None,
    logarithmic: bool = True,
    label: str = "measured",
    colour: str = COLOURS["slerp"],
) -> Axes:
    """Draw a quantity against the dimension n, with its theory and, where there is one, the paper's value.

    Args:
        dimensions: The dimensions n.
        values: What was measured at each.
        ax: Where to draw; several calls may share it.
        ylabel: Name of the quantity, with its unit.
        theory: The quantity as a function of n.
        theory_label: Its formula.
        errors: Lower and upper error of each value, (2, N).
        claim: Value and name of a constant that the paper states.
        logarithmic: Whether the vertical axis is logarithmic.
        label: Name of the measured points.
        colour: Their colour.

    Returns:
        ``ax``.
    """
    n = np.geomspace(min(dimensions), max(dimensions), 200)
    ax.plot(n, theory(n), **THEORY, label=theory_label)
    if claim is not None:
        ax.axhline(claim[0], **PAPER, label=claim[1])
    ax.errorbar(dimensions, values, yerr=errors, fmt="o", color=colour, capsize=3, markersize=5.5, label=label)
    ax.set(xscale="log", xlabel="dimension n", ylabel=ylabel, yscale="log" if logarithmic else "linear")
    ax.legend()
    return ax


def radius_over_time(
    steps: FloatArray,
    norms: FloatArray,
    ax: Axes,
    *,
    times: FloatArray,
    exact: FloatArray,
    paper: FloatArray,
    name: str,
) -> Axes:
    """Draw the radius of x_t against t: measured, exact, and as the paper approximates it.

    Args:
        steps: The steps t at which x_t was made, (T,).
        norms: ‖x_t‖/√n of each x_t, (T, N).
        ax: Where to draw.
        times: The steps of the two curves, (U,).
        exact: √(ᾱ_t E‖x_0‖²/n + 1 − ᾱ_t), (U,).
        paper: √(1 − ᾱ_t), (U,).
        name: Which images, a key of ``DATA_COLOURS``.

    Returns:
        ``ax``.
    """
    low, median, high = np.quantile(norms, [0.025, 0.5, 0.975], axis=1)
    colour = DATA_COLOURS[name]
    ax.fill_between(steps, low, high, color=colour, alpha=0.3, linewidth=0, label="95 % of the $x_t$")
    ax.plot(steps, median, "o", color=colour, markersize=4, label="median $x_t$")
    ax.plot(times, exact, **THEORY, label=r"$\sqrt{\bar\alpha_t\,E\|x_0\|^2/n + 1-\bar\alpha_t}$")
    ax.plot(times, paper, **PAPER, label=r"paper: $\sqrt{1-\bar\alpha_t}$")
    ax.set(xlabel="step t", ylabel=r"$\|x_t\|/\sqrt{n}$", ylim=(0, 1.25), title=name)
    ax.legend(loc="lower right")
    return ax


def error_over_time(
    times: FloatArray,
    curves: Mapping[str, FloatArray],
    ax: Axes,
    *,
    steps: FloatArray,
    measured: Mapping[str, FloatArray],
    ylabel: str,
    tolerance: tuple[float, str] | None = None,
    paper_step: float | None = None,
    logarithmic: bool = True,
) -> Axes:
    """Draw how far x_t is from the spherical picture against t, one colour per set of images.

    Args:
        times: Steps of the theoretical curves, (U,).
        curves: By images, the theoretical error, (U,).
        ax: Where to draw.
        steps: Steps of the measurements, (T,).
        measured: By images, the measured error, (T,).
        ylabel: Which error, with its unit.
        tolerance: Height and name of a level that counts as small.
        paper_step: The step pT from which the paper uses the approximation.
        logarithmic: Whether the vertical axis is logarithmic.

    Returns:
        ``ax``.
    """
    for name, values in measured.items():
        ax.plot(times, curves[name], **THEORY, label="theory" if name == next(iter(measured)) else None)
        ax.plot(steps, values, "o", color=DATA_COLOURS[name], markersize=4, label=name)
    if tolerance is not None:
        ax.axhline(tolerance[0], color="#777777", linewidth=1, label=tolerance[1])
    if paper_step is not None:
        ax.axvline(paper_step, **PAPER, label="paper: p = 0.5")
    ax.set(xlabel="step t", ylabel=ylabel, yscale="log" if logarithmic else "linear")
    ax.legend(loc="upper right", frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return ax


def shells_and_mean(
    along: Mapping[int, FloatArray], across: Mapping[int, FloatArray], centres: Mapping[int, float], ax: Axes
) -> Axes:
    """Draw x_t in the half-plane spanned by the data mean: its distances from both centres are true.

    Args:
        along: By step t, the component of each x_t along the mean of the data, in units of √n, (N,).
        across: By step t, the norm of the rest, in units of √n, (N,).
        centres: By step t, √ᾱ_t times the norm of the mean, in units of √n.
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    angle = np.linspace(0, np.pi, 181)
    for index, (t, centre) in enumerate(centres.items()):
        colour = colormaps["plasma"](0.9 * index / max(1, len(centres) - 1))
        radius = float(np.sqrt(np.mean((along[t] - centre) ** 2 + across[t] ** 2)))
        ax.plot(centre + radius * np.cos(angle), radius * np.sin(angle), color=colour, linewidth=0.9, alpha=0.8)
        ax.plot([centre, centre], [0, radius], color=colour, linewidth=0.6, linestyle=":")
        ax.scatter(along[t], across[t], s=6, color=colour, linewidths=0, zorder=3, label=f"t = {t}")
        ax.plot(centre, 0, "o", color=colour, markersize=6, clip_on=False, zorder=4)
    ax.plot(0, 0, "+", color="black", markersize=10, clip_on=False, zorder=5)
    ax.set(aspect="equal", ylim=(0, 1.12), xlim=(-1.1, 1.75))
    ax.set_xlabel(r"component along the mean of the data, in units of $\sqrt{n}$")
    ax.set_ylabel(r"the rest, in units of $\sqrt{n}$")
    ax.legend(loc="upper right", markerscale=2.5)
    return ax
