"""Move a point of the sphere and watch its image in the stereographic chart."""

from __future__ import annotations

import io

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from isodiff.geometry.sphere import conformal_factor, stereographic
from isodiff.plots.charts import circles_in_chart, circles_on_sphere, scale_bar
from isodiff.plots.globe import orthographic, small_circle
from isodiff.plots.style import caption
from isodiff.widgets.explorer import Explorer, slider

_NORTHERNMOST = 45.0  # degrees; further north, the chart sends the point far out of any picture
_SMALLEST, _LARGEST = 0.5, 1.5  # radii
_CIRCLE = 12.0  # degrees from the centre of the circle around the point to its rim
_LIMIT = 4.2  # half the width of the chart's panel, in the units of z
_POINT = {"color": "black", "markeredgecolor": "white", "markersize": 5}


class SphereExplorer(Explorer):
    """Show a point of S²(r), its stereographic coordinates z, and how much the chart enlarges what is around it.

    The circle around the point keeps its angle; its image is 1/√G times as large as on the sphere, with the conformal
    factor G = 4r⁴/(‖z‖² + r²)² (Eq. 3 of Hahm et al. 2024).

    Args:
        latitude: Of the point in the beginning, degrees, −90 to 45.
        longitude: Of the point in the beginning, degrees, −180 to 180.
        radius: Of the sphere in the beginning, 0.5 to 1.5.

    Raises:
        ValueError: If one of them is out of range.
    """

    def __init__(self, *, latitude: float = 20.0, longitude: float = 45.0, radius: float = 1.0) -> None:
        north = _NORTHERNMOST
        controls = {
            "latitude": slider(-90, north, 2.5, latitude, "latitude", "Degrees north of the equator", form=".1f"),
            "longitude": slider(-180, 180, 5, longitude, "longitude", "Degrees east", form=".0f"),
            "radius": slider(_SMALLEST, _LARGEST, 0.05, radius, "radius r", "Radius of the sphere"),
        }
        super().__init__("The sphere and its stereographic chart", controls)

    def point(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the point x of the sphere, (3,), its coordinates z, (2,), and the conformal factor G there."""
        now = self.state
        x = now["radius"] * small_circle(now["latitude"], now["longitude"], 0.0, number=1)
        z = stereographic(torch.from_numpy(x), now["radius"])
        return x[0], z[0].numpy(), conformal_factor(z, now["radius"]).item()

    def figure(self) -> Figure:
        """Draw the sphere and its chart."""
        fig = Figure(figsize=(8.6, 4.1), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=[1, 1.15])
        self._draw_axes(left, right)
        scale_bar(right)
        caption(fig, self._describe())
        return fig

    def _draw(self) -> tuple[bytes, str]:
        fig = Figure(figsize=(6.6, 3.2), dpi=100, layout="none")
        canvas = FigureCanvasAgg(fig)  # no layout engine, which would take a second
        self._draw_axes(fig.add_axes((0, 0.02, 0.46, 0.9)), fig.add_axes((0.56, 0.15, 0.4, 0.77)))
        canvas.draw()
        png = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(png, "png", compress_level=1)
        return png.getvalue(), self._describe()

    def _draw_axes(self, left: Axes, right: Axes) -> None:
        now = self.state
        r = now["radius"]
        x, z, factor = self.point()
        circle = small_circle(now["latitude"], now["longitude"], _CIRCLE)
        image = stereographic(torch.from_numpy(r * circle), r).numpy()
        scale = np.array([np.sqrt(factor)])
        circles_on_sphere(circle[None], scale, left)
        u, v, depth = orthographic(x[None] / r)
        left.plot(u, v, "o", **_POINT, alpha=1.0 if depth[0] >= 0 else 0.3, zorder=6)
        view = 1.12 * _LARGEST / r  # the globe keeps its scale, so that a larger sphere looks larger
        left.set(xlim=(-view, view), ylim=(-view, view), title=f"a circle on the sphere, r = {r:.2f}")
        circles_in_chart(image[None] / r, scale, right, limit=_LIMIT / r)
        right.plot(*(z / r), "o", **_POINT, zorder=6)
        ticks = np.arange(-4, 5, 2)
        for axis in (right.xaxis, right.yaxis):
            axis.set_ticks(ticks / r, [f"{tick:g}" for tick in ticks])
        right.set(xlabel=r"$z_1$", ylabel=r"$z_2$", title="its image in the chart")

    def _describe(self) -> str:
        x, z, factor = self.point()
        return (
            f"x = ({', '.join(f'{value:.2f}' for value in x)}), z = ({', '.join(f'{value:.2f}' for value in z)}), "
            f"‖z‖ = {np.linalg.norm(z):.2f}, G = {factor:.3f}, √G = {np.sqrt(factor):.2f} (sphere per chart)"
        )
