"""Spheres seen from afar: the view is a rotation, circles keep their angle, the chart draws what the metric says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from isodiff import plots
from isodiff.geometry import conformal_factor, stereographic

circles = np.stack([plots.small_circle(latitude, 20, 9) for latitude in (-60, 0, 40)])
images = stereographic(torch.from_numpy(circles.reshape(-1, 3)), 1.0).reshape(3, -1, 2).numpy()


@pytest.mark.parametrize(
    "draw",
    [
        plots.globe,
        plots.scale_bar,
        lambda ax: plots.curve(circles[0], ax, color="black", linewidth=2),
        lambda ax: plots.circles_on_sphere(circles, np.array([1.8, 1.0, 0.4]), ax),
        lambda ax: plots.circles_in_chart(images, np.ones(3), ax),
    ],
    ids=["globe", "scale_bar", "curve", "circles_on_sphere", "circles_in_chart"],
)
def test_returns_its_axes_and_can_be_drawn(draw: Callable[[Axes], Axes], ax: Axes) -> None:
    assert draw(ax) is ax
    assert ax.has_data() or draw is plots.scale_bar
    ax.figure.canvas.draw()


def test_what_lies_behind_is_fainter_than_what_lies_in_front(ax: Axes) -> None:
    plots.circles_on_sphere(np.stack([plots.small_circle(0, 25, 9), plots.small_circle(0, 205, 9)]), np.ones(2), ax)
    front, behind = ax.patches[-2:]
    assert front.get_alpha() > 2 * behind.get_alpha()
    assert front.get_zorder() > behind.get_zorder()


def test_orthographic_is_a_rotation() -> None:
    points = np.random.default_rng(0).normal(size=(40, 3))
    screen = np.stack(plots.orthographic(points), axis=1)
    np.testing.assert_allclose(screen @ screen.T, points @ points.T, atol=1e-12)
    e, a = np.deg2rad([22, 25])
    towards = plots.orthographic(np.array([[np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]]))
    np.testing.assert_allclose(np.concatenate(towards), [0, 0, 1], atol=1e-12)
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        plots.orthographic(np.zeros((4, 2)))


@pytest.mark.parametrize("latitude", [-90.0, 70.0])
def test_small_circle_keeps_its_angle_from_the_centre_and_starts_north(latitude: float) -> None:
    centre, circle = plots.small_circle(latitude, 40, 0)[0], plots.small_circle(latitude, 40, 12)
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(circle @ centre, np.cos(np.deg2rad(12)), atol=1e-12)
    np.testing.assert_allclose(circle[0], circle[-1], atol=1e-12)
    np.testing.assert_allclose(circle[0, 2], np.sin(np.deg2rad(latitude + 12)), atol=1e-12)


def test_the_chart_turns_circles_into_circles_of_the_size_that_the_metric_says() -> None:
    centre, circle = (torch.from_numpy(plots.small_circle(-20, 40, radius)) for radius in (0, 0.01))
    image = stereographic(circle, 1.0)
    distance = (image - (image[0] + image[36]) / 2).norm(dim=1)
    torch.testing.assert_close(distance, distance[:1].expand_as(distance), rtol=1e-9, atol=0)
    length = distance[0] * conformal_factor(stereographic(centre[:1], 1.0), 1.0).sqrt()[0]
    assert length.item() == pytest.approx(np.deg2rad(0.01), rel=1e-6)
