"""A sphere seen from afar: orthographic projection, a softly lit globe, and curves that go behind it.

Drawn on ordinary two-dimensional axes, so that what lies on the far side can be told from what lies on the
near side, which matplotlib's own three-dimensional axes do not do.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

ELEVATION, AZIMUTH = 22.0, 25.0  # degrees; the course looks at every sphere from here


def orthographic(
    points: FloatArray, *, elevation: float = ELEVATION, azimuth: float = AZIMUTH
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the screen coordinates of points of ℝ³ and their depth, positive towards the viewer.

    Args:
        points: (N, 3).
        elevation: Height of the viewer above the equator, degrees.
        azimuth: Longitude of the viewer, degrees.

    Returns:
        To the right, up, and towards the viewer, (N,) each.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be of shape (N, 3), got {points.shape}")
    e, a = np.deg2rad(elevation), np.deg2rad(azimuth)
    right = np.array([-np.sin(a), np.cos(a), 0])
    up = np.array([-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)])
    return points @ right, points @ up, points @ np.cross(right, up)


def globe(ax: Axes, *, graticule: float = 30.0) -> Axes:
    """Draw the unit sphere, lit from the upper left, with a parallel and a meridian every so many degrees."""
    u, v = np.meshgrid(np.linspace(-1, 1, 401), np.linspace(-1, 1, 401))
    inside = u**2 + v**2 <= 1
    depth = np.sqrt(np.clip(1 - u**2 - v**2, 0, None))
    light = np.clip(0.78 + 0.22 * (-0.45 * u + 0.55 * v + 0.70 * depth), 0, 1)[..., None]
    light = np.round(light * 60) / 60  # steps too fine to see keep the picture small
    picture = np.concatenate([light * np.array([0.955, 0.965, 0.985]), inside[..., None]], axis=-1)
    ax.imshow(picture, extent=(-1, 1, -1, 1), origin="lower", interpolation="nearest", zorder=0)
    angle = np.linspace(-np.pi, np.pi, 361)
    for latitude in np.deg2rad(np.arange(-90 + graticule, 90, graticule)):
        parallel = np.stack([np.cos(latitude) * np.cos(angle), np.cos(latitude) * np.sin(angle)], axis=1)
        curve(np.column_stack([parallel, np.full(361, np.sin(latitude))]), ax, color="#9aa3b2", linewidth=0.6)
    half = np.linspace(-np.pi / 2, np.pi / 2, 181)
    for longitude in np.deg2rad(np.arange(0, 360, graticule)):
        meridian = [np.cos(half) * np.cos(longitude), np.cos(half) * np.sin(longitude), np.sin(half)]
        curve(np.stack(meridian, axis=1), ax, color="#9aa3b2", linewidth=0.6)
    ax.plot(np.cos(angle), np.sin(angle), color="#6b7485", linewidth=1, zorder=1)
    ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
    ax.set_axis_off()
    return ax


def curve(points: FloatArray, ax: Axes, *, color: str, linewidth: float = 2.0, zorder: float = 2) -> Axes:
    """Draw a curve on the unit sphere, solid in front and faint behind."""
    u, v, depth = orthographic(points)
    for side, alpha, order in ((depth >= 0, 1.0, zorder), (depth < 0, 0.22, 1)):
        if side.any():
            ax.plot(
                np.where(side, u, np.nan),
                np.where(side, v, np.nan),
                color=color,
                linewidth=linewidth,
                alpha=alpha,
                zorder=order,
                solid_capstyle="round",
            )
    return ax


def small_circle(latitude: float, longitude: float, radius: float, *, number: int = 73) -> FloatArray:
    """Return points of a circle on the unit sphere.

    Args:
        latitude: Of its centre, degrees.
        longitude: Of its centre, degrees.
        radius: Angle between the centre and the circle, degrees.
        number: Points, the first and last equal, the first due north of the centre.

    Returns:
        (number, 3).
    """
    lat, lon, r = np.deg2rad([latitude, longitude, radius])
    centre = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    turn = np.linspace(0, 2 * np.pi, number)[:, None]
    return np.cos(r) * centre + np.sin(r) * (np.cos(turn) * north + np.sin(turn) * np.cross(centre, north))
