"""Figures of what is measured on a latent space: how a number arises, what it depends on, and how models differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isodiff.metrics.trajectory import ROUND_EMBEDDING
from isodiff.plots.style import COLOURS, THEORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

_QUIET = "#b8b8b8"
_OTHERS = ("#009e73", "#e69f00", "#aa4499", "#56b4e9", "#332288", "#117733", "#882255", "#999933")


def metric_by_size(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: Axes,
    *,
    ylabel: str,
    truth: tuple[float, str] | None = None,
) -> Axes:
    """Draw a metric against the number of images, with the law a + b/n fitted to each curve where n is largest.

    Args:
        curves: For each name, sizes n (K,), ascending, and values (K,), or (R, K) for R repetitions.
        ax: Where to draw.
        ylabel: The metric.
        truth: Its true value and what to call it.

    Returns:
        ``ax``; the end of each dotted line, at 1/n = 0, is where the curve is heading.
    """
    for index, (name, (sizes, values)) in enumerate(curves.items()):
        colour = colour_of(name, index)
        inverse, values = 1 / np.asarray(sizes, dtype=float), np.atleast_2d(values)
        mean = values.mean(axis=0)
        half = max(2, len(inverse) // 2)
        slope, limit = np.polyfit(inverse[-half:], mean[-half:], 1)
        ax.plot(inverse, mean, "o-", color=colour, ms=4, label=name)
        if len(values) > 1:
            ax.fill_between(inverse, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
        ax.plot([0, inverse[-1]], [limit, limit + slope * inverse[-1]], ":", color=colour, lw=1.3)
    if truth is not None:
        ax.axhline(truth[0], **THEORY, label=truth[1])
    shown = [np.inf]
    for n in sorted({int(n) for sizes, _ in curves.values() for n in np.asarray(sizes)}, reverse=True):
        if 1 / n - 1 / shown[-1] >= 0.07 * ax.dataLim.xmax:  # labels must not overlap
            shown.append(n)
    ax.set_xticks([1 / n for n in shown], ["∞", *(f"{n:,}" for n in shown[1:])])
    ax.set_xlim(left=0)
    ax.set(xlabel="images n (axis linear in 1/n)", ylabel=ylabel)
    ax.set_ylim(top=ax.get_ylim()[1] + 0.25 * (ax.get_ylim()[1] - ax.get_ylim()[0]))  # room for the legend
    ax.legend(loc="upper left")
    return ax


def epsilon_sweep(
    epsilons: ArrayLike,
    values: Mapping[str, ArrayLike],
    ax: Axes,
    *,
    floors: Mapping[str, ArrayLike] | None = None,
    used: float | None = None,
    ylabel: str = "perceptual path length",
) -> Axes:
    """Draw path lengths against the step ε that approximates the derivative, with the level that rounding reaches.

    Args:
        epsilons: Steps, (K,).
        values: For each convention or model, (K,).
        ax: Where to draw.
        floors: For some of them, (K,): what is measured between an image and its own repetition.
        used: The ε that the course uses.
        ylabel: The quantity.

    Returns:
        ``ax``; a derivative is a plateau.
    """
    for index, (name, value) in enumerate(values.items()):
        ax.plot(epsilons, value, "o-", ms=4, color=colour_of(name, index), label=name)
    for index, (name, floor) in enumerate((floors or {}).items()):
        floor = np.asarray(floor, dtype=float)
        ax.plot(epsilons, np.where(floor > 0, floor, np.nan), **{**THEORY, "linestyle": ":"}, alpha=1 - 0.4 * index)
        ax.plot([], [], **{**THEORY, "linestyle": ":"}, alpha=1 - 0.4 * index, label=f"noise floor, {name}")
    if used is not None:
        ax.axvline(used, color=_QUIET, lw=6, alpha=0.5, zorder=0)
        ax.annotate("used", (used, 1), (4, -10), xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel=r"step $\varepsilon$ along the path", ylabel=ylabel)
    ax.invert_xaxis()
    ax.legend()
    return ax


def arcs_over_chords(paths: Mapping[str, ArrayLike], ax: Axes) -> Axes:
    """Draw paths of many dimensions in the plane of their chord and their largest bulge, with the chord as unit.

    Args:
        paths: For each model, (N + 1, M) points.
        ax: Where to draw.

    Returns:
        ``ax``; dashed, the quarter circle over the same chord: an isometry with no curvature of its own.
    """
    for index, (name, path) in enumerate(paths.items()):
        along, bulge = plane_of_path(path)
        ax.plot(along, bulge, "o-", ms=3, color=colour_of(name, index), label=name)
    angle = np.linspace(-np.pi / 4, np.pi / 4, 91)
    ax.plot(0.5 + np.sin(angle) / np.sqrt(2), (np.cos(angle) - np.sqrt(0.5)) / np.sqrt(2), **THEORY, label="90° arc")
    ax.plot([0, 1], [0, 0], color=_QUIET, lw=1, zorder=0)
    ax.set(xlabel="along the chord", ylabel="across it", aspect="equal")
    ax.legend(loc="lower center", ncols=2, fontsize=8, columnspacing=1)
    return ax


def plane_of_path(path: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the coordinates of a path along its chord and along the direction in which it leaves the chord most.

    Args:
        path: (N + 1, M) points.

    Returns:
        Both (N + 1,), in units of the chord, the second not negative where it is largest.

    Raises:
        ValueError: If the path does not have two dimensions and three points, or its ends coincide.
    """
    path = np.asarray(path, dtype=float)
    if path.ndim != 2 or len(path) < 3 or path.shape[1] < 2:
        raise ValueError(f"a path has at least 3 points of at least 2 dimensions, (N + 1, M); got {path.shape}")
    offset, chord = path - path[0], path[-1] - path[0]
    length = np.linalg.norm(chord)
    if length == 0:
        raise ValueError("the ends of the path coincide, so that it has no chord")
    along = offset @ chord / length
    across = offset - np.outer(along, chord / length)
    bulge = across @ np.linalg.svd(across, full_matrices=False)[2][0]
    return along / length, bulge / length * (np.sign(bulge[np.abs(bulge).argmax()]) or 1)


def rtl_by_step(
    steps: Sequence[int],
    values: Mapping[str, ArrayLike],
    intervals: Mapping[str, ArrayLike],
    ax: Axes,
    *,
    regularised_from: float | None = None,
) -> Axes:
    """Draw the relative trajectory length against the diffusion step t (Fig. 5 of Hahm et al. 2024).

    Args:
        steps: The steps t of the sampler, (K,).
        values: For each model, (K,).
        intervals: For each model, (K, 2) interval ends.
        ax: Where to draw.
        regularised_from: First regularised step, pT; the range from there on is shaded.

    Returns:
        ``ax``; dashed, what a round embedding gives, and dotted, what a flat one would.
    """
    for index, (name, value) in enumerate(values.items()):
        low, high = np.asarray(intervals[name]).T
        ax.fill_between(steps, low, high, color=colour_of(name, index), alpha=0.2, lw=0)
        ax.plot(steps, value, "o-", ms=4, color=colour_of(name, index), label=name)
    if regularised_from is not None:
        ax.axvspan(regularised_from, max(steps), color="0.5", alpha=0.1, lw=0, label="regularised steps")
    ax.axhline(ROUND_EMBEDDING, **THEORY, label=r"round embedding, $(\pi/2)/\sqrt{2}$")
    ax.axhline(1, **{**THEORY, "linestyle": ":"}, label="straight line")
    ax.set(xlabel="diffusion step $t$", ylabel="RTL(t), arc over chord in $H$")
    ax.invert_xaxis()
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, columnspacing=1)
    return ax


def condition_by_k(spectra: Mapping[str, ArrayLike], ax: Axes, *, marked: Sequence[int] = ()) -> Axes:
    """Draw σ₁/σ_k, what a condition number would be, for every number k of singular values it could be cut off at.

    Args:
        spectra: For each model, (K,) or (rows, K) singular values in descending order.
        ax: Where to draw.
        marked: Values of k to point out.

    Returns:
        ``ax``.
    """
    for index, (name, sigma) in enumerate(spectra.items()):
        sigma = np.atleast_2d(sigma)
        condition = (sigma[:, :1] / sigma).mean(axis=0)
        ax.plot(np.arange(1, len(condition) + 1), condition, color=colour_of(name, index), label=name)
    for k in marked:
        ax.axvline(k, color=_QUIET, lw=1, zorder=0)
        ax.annotate(f"k = {k:,}", (k, 1), (3, -10), xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.axhline(1, **THEORY, label="scaled isometry")
    ax.set(xscale="log", yscale="log", xlabel="singular values kept, $k$", ylabel=r"$\sigma_1/\sigma_k$")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.92))
    return ax


def scores_by_dimension(
    dimensions: Sequence[int], scores: Mapping[str, Sequence[float]], ax: Axes, *, n: int, chance: float = 2.0
) -> Axes:
    """Draw separability scores of one attribute against the dimension of the latents.

    Args:
        dimensions: d, (K,).
        scores: By name, (K,); a name that ends in "same points" is drawn with open markers.
        ax: Where to draw.
        n: Number of latents, marked where d = n.
        chance: Score of a machine that knows nothing.

    Returns:
        ``ax``.
    """
    labels = list(dict.fromkeys(name.split(",")[0] for name in scores))
    for name, score in scores.items():
        colour = _OTHERS[labels.index(name.split(",")[0])]
        face, style = ("white", ":") if name.endswith("same points") else (colour, "-")
        ax.plot(dimensions, score, marker="o", ms=5, ls=style, color=colour, mfc=face, label=name)
    ax.axhline(chance, **THEORY, label="ignorance")
    ax.axvline(n, color=_QUIET, lw=1, zorder=0)
    ax.annotate("d = n", (n, 0.5), (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points")
    ax.set(xscale="log", xlabel="dimension $d$ of the latents", ylabel="separability, 1 is perfect")
    ax.legend(fontsize=8)
    return ax


def factor_paths(
    position: ArrayLike, factors: ArrayLike, names: Sequence[str], ax: Axes, *, columns: Sequence[int]
) -> Axes:
    """Draw the true factors along a path, some in colour with the detour they take, the others in grey.

    Args:
        position: Position on the path, (N + 1,).
        factors: (N + 1, K) factors there.
        names: Of the factors, K.
        ax: Where to draw.
        columns: The factors to colour, in the order of the colours; at most eight.

    Returns:
        ``ax``; dotted, the straight way between the ends of each coloured factor.
    """
    position, factors = np.asarray(position), np.asarray(factors, dtype=float)
    excess = np.abs(np.diff(factors, axis=0)).sum(axis=0) - np.abs(factors[-1] - factors[0])
    ax.plot(position, np.delete(factors, columns, axis=1), color=_QUIET, lw=0.8, zorder=1)
    for colour, column in zip(_OTHERS, columns, strict=False):
        label = f"{names[column].replace('_', ' ')} +{excess[column]:.2f}"
        ax.plot(position, factors[:, column], "o-", ms=3, color=colour, label=label)
        ax.plot(position[[0, -1]], factors[[0, -1], column], ":", lw=1, color=colour)
    ax.set(ylim=(-1.05, 1.05), xlabel="position on the path", ylabel="factor")
    ax.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1)
    return ax


def colour_of(name: str, index: int) -> str:
    """Return the colour of the method that a name begins with, or else, by its place in the figure, another."""
    return COLOURS.get(name.partition(" ")[0], _OTHERS[index % len(_OTHERS)])
