"""Figures of paths between noise vectors: the chord that leaves the sphere, the arc that stays on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from isodiff.plots.globe import curve, globe, orthographic
from isodiff.plots.sphere import dimension_colour
from isodiff.plots.style import COLOURS, THEORY

FloatArray = NDArray[np.floating]


def paths_on_sphere(lerp_path: FloatArray, slerp_path: FloatArray, ax: Axes) -> Axes:
    """Draw a chord through the unit ball and the great arc above it, with their midpoints.

    Args:
        lerp_path: Points of the chord, (K, 3), K odd.
        slerp_path: Points of the arc, (K, 3).
        ax: Where to draw.

    Returns:
        ``ax``.
    """
    globe(ax)
    curve(slerp_path, ax, color=COLOURS["slerp"], linewidth=3)
    u, v, _ = orthographic(lerp_path)
    ax.plot(u, v, color=COLOURS["lerp"], linewidth=3, zorder=3, solid_capstyle="round")
    for path, name in ((slerp_path, "slerp"), (lerp_path, "lerp")):
        right, up, _ = orthographic(path[[len(path) // 2]])
        ax.plot([0, right[0]], [0, up[0]], color=COLOURS[name], linewidth=1, linestyle=":", zorder=3)
        ax.plot(right, up, "o", color=COLOURS[name], markersize=8, zorder=4, label=f"{name}, midway")
    ends = orthographic(slerp_path[[0, -1]])
    ax.plot(ends[0], ends[1], "o", color="black", markersize=6, zorder=5)
    for right, up, text in zip(ends[0], ends[1], ("a", "b"), strict=True):
        ax.annotate(f"${text}$", (right, up), (0, -16), textcoords="offset points", ha="center", fontsize=14)
    ax.plot(0, 0, "+", color="#555555", markersize=8, zorder=3)
    ax.legend(loc="lower right", bbox_to_anchor=(1.08, -0.08))
    return ax


def paths_in_plane(paths: Mapping[str, FloatArray], ax: Axes, *, n: int, shell: tuple[float, float]) -> Axes:
    """Draw paths between pairs of noise vectors in the plane of each pair, over the shell of noise.

    Args:
        paths: By interpolation, ``"lerp"`` and ``"slerp"``, coordinates in units of √n, (pairs, K, 2).
        ax: Where to draw.
        n: Dimension of the noise.
        shell: Smallest and largest plausible radius in units of √n.

    Returns:
        ``ax``.
    """
    angle = np.linspace(-0.2, np.pi / 2 + 0.6, 181)
    ring = np.stack([np.cos(angle), np.sin(angle)])
    outline = np.concatenate([shell[0] * ring, shell[1] * ring[:, ::-1]], axis=1)
    ax.fill(outline[0], outline[1], color="#dddddd", linewidth=0.8, edgecolor="#bbbbbb", label="99.7 % of noise")
    ax.plot(ring[0], ring[1], **THEORY)
    for name, curves in paths.items():
        for index, path in enumerate(curves):
            label = name if index == 0 else None
            ax.plot(path[:, 0], path[:, 1], color=COLOURS[name], linewidth=0.8, label=label)
    ax.plot(0, 0, "+", color="#555555", markersize=8)
    ax.set(aspect="equal", xlim=(-1.0, 1.7), ylim=(-0.2, 1.65), title=f"n = {n:,}")
    ax.set(xlabel=r"along $a$, in units of $\sqrt{n}$", ylabel=r"across $a$, in units of $\sqrt{n}$")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 0.05), fontsize=8)
    return ax


def norms_along_path(
    positions: FloatArray, scores: Mapping[int, FloatArray], ax: Axes, *, name: str, band: float = 3.0
) -> Axes:
    """Draw how many standard deviations the norm along a path is from noise, one line per dimension.

    Args:
        positions: Positions along the path, 0 to 1, (K,).
        scores: By dimension n, (mean norm − E‖x‖)/std‖x‖ at each position, (K,).
        ax: Where to draw.
        name: Which interpolation.
        band: Height of the band of plausible norms.

    Returns:
        ``ax``.
    """
    ax.axhspan(-band, band, color="#e3e3e3", linewidth=0, label=f"within {band:g} std")
    for n, score in scores.items():
        ax.plot(positions, score, "o-", color=dimension_colour(n), markersize=3.5, label=f"n = {n:,}")
    ax.set_yscale("symlog", linthresh=band, linscale=0.8)
    ax.set(xlabel="position along the path", ylabel="norm − mean norm of noise, std", title=name, ylim=(-400, 12))
    ax.set_yticks([-300, -100, -30, -10, -3, 0, 3, 10], minor=False)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend(loc="lower center", ncols=2)
    return ax
