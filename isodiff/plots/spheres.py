"""A unit sphere seen from 22° above the equator, at 25° of longitude, and its stereographic chart."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

_SCALE = Normalize(0, 2)  # √G runs from 0 at the pole to 2 opposite it
_LINES = "#9aa3b2"


def orthographic(points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return how far points (N, 3) lie to the right, up, and towards the viewer, (N,) each."""
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be of shape (N, 3), got {points.shape}")
    e, a = np.deg2rad([22, 25])
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
    parallels = [(90, 0, polar) for polar in np.arange(graticule, 180, graticule)]
    meridians = [(0, longitude, 90) for longitude in np.arange(0, 180, graticule)]  # whole great circles, by their pole
    for circle in parallels + meridians:
        curve(small_circle(*circle, number=361), ax, color=_LINES, linewidth=0.6)
    angle = np.linspace(-np.pi, np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="#6b7485", linewidth=1, zorder=1)
    ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
    ax.set_axis_off()
    return ax


def curve(points: FloatArray, ax: Axes, *, color: str, linewidth: float) -> Axes:
    """Draw a curve (N, 3) on the unit sphere, solid in front and faint behind."""
    u, v, depth = orthographic(points)
    style = {"color": color, "linewidth": linewidth, "solid_capstyle": "round"}
    for side, alpha, order in ((depth >= 0, 1.0, 2), (depth < 0, 0.22, 1)):
        if side.any():
            ax.plot(np.where(side, u, np.nan), np.where(side, v, np.nan), alpha=alpha, zorder=order, **style)
    return ax


def small_circle(latitude: float, longitude: float, radius: float, *, number: int = 73) -> FloatArray:
    """Return a circle on the unit sphere, (number, 3), the first and last due north of its centre; in degrees."""
    lat, lon, r = np.deg2rad([latitude, longitude, radius])
    centre = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    north = np.array([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    turn = np.linspace(0, 2 * np.pi, number)[:, None]
    return np.cos(r) * centre + np.sin(r) * (np.cos(turn) * north + np.sin(turn) * np.cross(centre, north))


def scale_colour(root_g: float) -> tuple[float, float, float, float]:
    """Return the colour of a length scale √G between 0 and 2."""
    return colormaps["cividis"](_SCALE(root_g))


def scale_bar(ax: Axes) -> Axes:
    """Add the colour bar of √G to a panel."""
    bar = ax.figure.colorbar(ScalarMappable(_SCALE, "cividis"), ax=ax, shrink=0.8, pad=0.02, ticks=[0, 1, 2])
    bar.set_label(r"$\sqrt{G}$, sphere per chart")
    bar.outline.set_visible(False)
    return ax


def circles_on_sphere(circles: FloatArray, scales: FloatArray, ax: Axes) -> Axes:
    """Draw circles (N, K, 3) on the unit sphere, coloured by the chart's length scale √G at their centres, (N,)."""
    globe(ax)
    for circle, scale in zip(circles, scales, strict=True):
        u, v, depth = orthographic(circle)
        style = {"alpha": 1, "zorder": 3} if depth.mean() >= 0 else {"alpha": 0.13, "zorder": 1}
        ax.fill(u, v, facecolor=scale_colour(scale), edgecolor="white", linewidth=0.6, **style)
    ax.plot(*orthographic(np.array([[0.0, 0.0, 1.0]]))[:2], "o", color="black", markersize=5, zorder=5)
    ax.set_title("equal circles on the sphere")
    return ax


def circles_in_chart(images: FloatArray, scales: FloatArray, ax: Axes, *, limit: float = 3.8) -> Axes:
    """Draw what the chart makes of those circles, (N, K, 2) in units of r, in a panel of half the width `limit`."""
    turn = np.linspace(0, 2 * np.pi, 361)
    for latitude in np.deg2rad([-60, -30, 0, 25, 50]):
        radius, width = np.cos(latitude) / (1 - np.sin(latitude)), 0.6 if latitude else 1.2
        ax.plot(radius * np.cos(turn), radius * np.sin(turn), color=_LINES, linewidth=width, zorder=1)
    for angle in np.deg2rad(np.arange(0, 180, 30)):
        ends = 2 * limit * np.array([-1, 1])
        ax.plot(ends * np.cos(angle), ends * np.sin(angle), color=_LINES, linewidth=0.6, zorder=1)
    for image, scale in zip(images, scales, strict=True):
        ax.fill(*image.T, facecolor=scale_colour(scale), edgecolor="white", linewidth=0.6, zorder=2)
    ax.grid(False)
    ax.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit), xlabel=r"$z_1/r$", ylabel=r"$z_2/r$")
    ax.set_title("the same circles in the chart")
    return ax
