"""Figures of the score's Jacobian: its eigenvalues near a circle, its spectrum, the dimension that it counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]

SERIES = ("#117733", "#882255", "#44aa99", "#cc6677", "#332288")
MARKERS = ("o", "s", "^", "D", "v")


def noise_colours(count: int) -> FloatArray:
    """Return colours from light to dark, one a noise level, (count, 4)."""
    return colormaps["viridis_r"](np.linspace(0.12, 1, count))


def plane(ax: Axes) -> Axes:
    """Make a panel a plane with equal axes."""
    ax.set(aspect="equal", xlabel=r"$x_1$", ylabel=r"$x_2$")
    return ax


def projector_field(points: FloatArray, values: FloatArray, vectors: FloatArray, ax: Axes, *, scale: float) -> Axes:
    """Draw a symmetric matrix at points of the plane: a stick along every eigenvector, as long as its eigenvalue.

    Args:
        points: Where, (M, 2).
        values: Eigenvalues, ascending, (M, 2).
        vectors: Unit eigenvectors in columns, (M, 2, 2).
        ax: Where to draw.
        scale: Length of the stick of the eigenvalue 1.

    Returns:
        ``ax``.
    """
    for index, (colour, name) in enumerate(((COLOURS["base"], "smaller"), (COLOURS["tangential"], "larger"))):
        half = scale / 2 * values[:, index, None] * vectors[:, :, index]
        ends = np.stack([points - half, points + half, np.full_like(points, np.nan)], 1).reshape(-1, 2)
        ax.plot(*ends.T, color=colour, linewidth=1.6, solid_capstyle="round", zorder=3, label=f"{name} eigenvalue")
    return plane(ax)


def eigenvalues_by_radius(
    radii: FloatArray, measured: Mapping[str, FloatArray], formulas: Mapping[str, FloatArray], ax: Axes, *, ridge: float
) -> Axes:
    """Draw eigenvalues of Ĵ over the distance from the centre of a noisy circle, on their formulas.

    Args:
        radii: (K,).
        measured: By direction, ``"radius"`` and ``"tangent"``, by automatic differentiation, (K,).
        formulas: By direction, the closed form, (K,).
        ax: Where to draw.
        ridge: Radius of the ridge of the density.

    Returns:
        ``ax``.
    """
    for index, (name, values) in enumerate(measured.items()):
        ax.plot(radii, values, MARKERS[index], color=SERIES[index], markersize=4, label=f"along the {name}")
    for index, values in enumerate(formulas.values()):
        ax.plot(radii, values, **THEORY, label="closed form" if index == 0 else None)
    ax.axvline(ridge, color="#777777", linewidth=1, linestyle=":")
    ax.annotate("ridge", (ridge, 0.5), (4, 0), textcoords="offset points", color="#555555", fontsize=9)
    ax.set(xlabel="distance from the centre, in radii", ylabel=r"eigenvalue of $\hat J$", ylim=(-1.05, 1.25))
    ax.legend(loc="lower right")
    return ax


def dimension_by_noise(
    sigmas: FloatArray, counts: Mapping[str, FloatArray], truth: Mapping[str, FloatArray], ax: Axes
) -> Axes:
    """Draw how many directions look flat at each noise level, and how many should.

    Args:
        sigmas: Noise levels, ascending, (K,).
        counts: By data set, the mean number of small singular values, (K,).
        truth: By data set, the expected number, (K,); sets without one are left out.
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    for index, (name, values) in enumerate(counts.items()):
        ax.plot(sigmas, values, MARKERS[index] + "-", color=SERIES[index], markersize=4, linewidth=1, label=name)
        if name in truth:
            ax.plot(sigmas, truth[name], **THEORY, label="theory" if name == next(iter(truth)) else None)
    ax.set(xscale="log", xlabel=r"noise $\sigma$", ylabel=r"singular values of $\hat J$ below ½")
    ax.legend(loc="best")
    return ax


def spectra_by_noise(
    spectra: Mapping[str, FloatArray],
    ax: Axes,
    *,
    ylabel: str,
    dimension: int,
    theory: Mapping[str, FloatArray] | None = None,
    threshold: float = 0.5,
) -> Axes:
    """Draw spectra by rank, one line a noise level from light to dark.

    Args:
        spectra: By noise level, singular values of each image, (B, k).
        ax: Where to draw.
        ylabel: Of which matrix.
        dimension: True dimension of the data, marked.
        theory: By noise level, predicted values, (m,).
        threshold: Level above or below which values count.

    Returns:
        ``ax``.
    """
    for colour, (name, values) in zip(noise_colours(len(spectra)), spectra.items(), strict=True):
        rank = np.arange(1, values.shape[1] + 1)
        for row, line in enumerate(values):
            label = name if row == 0 else None
            ax.plot(rank, line, "o-", color=colour, markersize=3, linewidth=1, label=label)
        if theory and name in theory:
            ax.plot(np.arange(1, len(theory[name]) + 1), theory[name], **THEORY)
    ax.axvline(dimension + 0.5, color="#777777", linewidth=1, linestyle=":")
    ax.axhline(threshold, color="#777777", linewidth=1, linestyle=":")
    ax.set(xlabel="rank", ylabel=ylabel, xlim=(0.5, rank[-1] + 0.5), xticks=rank[4::5])
    ax.legend(loc="best")
    return ax
