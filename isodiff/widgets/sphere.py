"""Move a point of the sphere and watch its image in the stereographic chart."""

import io

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isodiff.geometry import conformal_factor, stereographic
from isodiff.plots import caption, circles_in_chart, circles_on_sphere, orthographic, scale_bar, small_circle
from isodiff.widgets.explorer import Explorer, slider

_POINT = {"color": "black", "markeredgecolor": "white", "markersize": 5, "zorder": 6}


class SphereExplorer(Explorer):
    """Show a point of S²(r), its chart z and a circle around it, G = 4r⁴/(‖z‖² + r²)² (Eq. 3, Hahm et al. 2024)."""

    def __init__(self) -> None:
        controls = {
            "latitude": slider(np.linspace(-90, 45, 55), "latitude", "Degrees north of the equator", 20, ".1f"),
            "longitude": slider(np.linspace(-180, 180, 73), "longitude", "Degrees east", 45, ".0f"),
            "radius": slider(np.linspace(0.5, 1.5, 21), "radius r", "Radius of the sphere", 1),
        }
        super().__init__("The sphere and its stereographic chart", controls)

    def figure(self) -> Figure:
        """Draw the sphere and its chart."""
        fig = Figure(figsize=(8.6, 4.1), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=[1, 1.15])
        text = _panels(left, right, **self.state)
        scale_bar(right)
        caption(fig, text)
        return fig

    def _draw(self) -> tuple[bytes, str]:
        fig, png = Figure(figsize=(6.6, 3.2), dpi=100, layout="none"), io.BytesIO()  # a layout engine takes a second
        text = _panels(fig.add_axes((0, 0.02, 0.46, 0.9)), fig.add_axes((0.56, 0.15, 0.4, 0.77)), **self.state)
        fig.savefig(png, bbox_inches=None, facecolor="white", pil_kwargs={"compress_level": 1})
        return png.getvalue(), text


def point(latitude: float, longitude: float, radius: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the point x of the sphere, (3,), its coordinates z, (2,), and the conformal factor G there."""
    x = radius * small_circle(latitude, longitude, 0.0, number=1)
    z = stereographic(torch.from_numpy(x), radius)
    return x[0], z[0].numpy(), conformal_factor(z, radius).item()


def _panels(left: Axes, right: Axes, latitude: float, longitude: float, radius: float) -> str:
    x, z, G = point(latitude, longitude, radius)
    circle, scale = small_circle(latitude, longitude, 12.0), np.sqrt([G])
    circles_on_sphere(circle[None], scale, left)
    u, v, depth = orthographic(x[None] / radius)
    left.plot(u, v, "o", **_POINT, alpha=1.0 if depth[0] >= 0 else 0.3)
    view = 1.68 / radius  # the globe keeps its scale, so that a larger sphere looks larger
    left.set(xlim=(-view, view), ylim=(-view, view), title=f"a circle on the sphere, r = {radius:.2f}")
    circles_in_chart(stereographic(torch.from_numpy(circle), 1.0).numpy()[None], scale, right, limit=4.2 / radius)
    right.plot(*(z / radius), "o", **_POINT)
    for axis in (right.xaxis, right.yaxis):
        axis.set_ticks(np.arange(-4, 5, 2) / radius, range(-4, 5, 2))
    right.set(xlabel=r"$z_1$", ylabel=r"$z_2$", title="its image in the chart")
    at = [f"({', '.join(f'{value:.2f}' for value in point)})" for point in (x, z)]
    scales = f"‖z‖ = {np.linalg.norm(z):.2f}, G = {G:.3f}, √G = {np.sqrt(G):.2f} (sphere per chart)"
    return f"x = {at[0]}, z = {at[1]}, {scales}"
